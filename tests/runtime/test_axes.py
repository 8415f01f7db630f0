import numpy as np
import pytest

from edgeport_runtime.axes import Range, image_axes, is_whole


@pytest.mark.parametrize(("value", "whole"), [(3, True), (np.int64(3), True), (True, False), (3.0, False), ("3", False), (None, False)])
def test_whole_numbers(value: object, whole: bool) -> None:
    assert is_whole(value) is whole


@pytest.mark.parametrize(
    ("size", "inside", "nearest"), [(32, True, 32), (48, False, 32), (49, False, 64), (96, True, 96), (97, False, 96), (1, False, 32), (500, False, 96)]
)
def test_a_range_holds_its_steps(size: int, inside: bool, nearest: int) -> None:
    sides = Range(low=32, high=100, step=32)
    assert (size in sides) is inside and sides.nearest(size) == nearest and str(sides) == "32..100 in steps of 32"


@pytest.mark.parametrize(("low", "high", "step"), [(0, 4, 1), (5, 4, 1), (1, 4, 0), (1.0, 4, 1)])
def test_a_range_that_is_none(low: int, high: int, step: int) -> None:
    assert "expected 1 <= low <= high" in Range(low=low, high=high, step=step).faults()[0]


def test_the_axes_of_an_image() -> None:
    assert image_axes(smallest_px=8, largest_px=64, largest_batch=4) == {
        "batch": Range(low=1, high=4),
        "height": Range(low=8, high=64),
        "width": Range(low=8, high=64),
    }
