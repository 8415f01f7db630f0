import math

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeport_export.diagnosis.differences import Limit, OutputDifference, fault, finite, output_difference

NOISE = Limit(relative=1e-6, source="a test")
FLOOR = Limit(least_db=20.0, source="a test")


def array(*values: float) -> NDArray[np.float32]:
    return np.array([values], np.float32)


@pytest.mark.parametrize(
    ("expected", "got", "words"),
    [
        (array(1, 2), array(1, 2, 3), "the shapes differ, (1, 2) of the first and (1, 3) of the second"),
        (array(1, 2), np.array([[1, 2]]), "the dtypes differ, float32 of the first and int64 of the second"),
        (np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), "there are no values"),
        (array(1, 2), array(1, math.nan), "NaN: 0 values of the first, 1 of the second, of 2"),
        (array(1, math.nan), array(1, math.nan), "NaN: 1 values of the first, 1 of the second, of 2"),
        (array(1, math.inf), array(1, -math.inf), "infinite: 1 values of the first, 1 of the second, not the same ones"),
        (array(1, 2), array(1, math.inf), "infinite: 0 values of the first, 1 of the second"),
        (array(1, math.inf), array(2, math.inf), None),
        (array(1, 2), array(5, 9), None),
        (np.array([True]), np.array([False]), None),
    ],
)
def test_what_cannot_be_compared_says_why(expected: NDArray[np.float32], got: NDArray[np.float32], words: str | None) -> None:
    found = fault(expected, got)
    assert (found is None) if words is None else (found is not None and words in found)


def test_equal_infinities_are_no_difference() -> None:
    first, second = finite(array(1, math.inf), array(3, math.inf))
    assert first.tolist() == [[1, 0]] and second.tolist() == [[3, 0]]


def made(expected: list[NDArray[np.float32]], got: list[NDArray[np.float32]], relative: list[float], limit: Limit = NOISE) -> OutputDifference:
    return output_difference("logits", [f"case {index}" for index in range(len(expected))], expected, got, relative, limit)


def test_the_figures_are_those_of_a_hand_computation() -> None:
    """Differences 0, 0, 0, 3 and 4, 0: rms is the root of 25 / 6. The signal is what differs from image to image, here from the mean of each column."""
    expected, got = [array(1, 2), array(3, 4), array(5, 0)], [array(1, 2), array(3, 1), array(9, 0)]
    found = made(expected, got, [0.0, 0.5, 0.75])
    assert found.max_abs == 4 and found.relative == 0.75 and found.worst == (0, 0) and found.worst_input == "case 2"
    assert found.elements == 6 and found.rms == pytest.approx(math.sqrt(25 / 6))
    signal = ((np.array([1, 3, 5]) - 3) ** 2).sum() + ((np.array([2, 4, 0]) - 2) ** 2).sum()
    assert found.sqnr_db == pytest.approx(10 * math.log10(signal / 25))
    a, b = np.array([1, 2, 3, 4, 5, 0]), np.array([1, 2, 3, 1, 9, 0])
    assert found.cosine == pytest.approx(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    assert "FAILED logits: largest difference 4, 7.5e-01 of the range, at (0, 0) of case 2" in str(found)


@pytest.mark.parametrize(("relative", "passes"), [(1e-6, True), (1.01e-6, False), (math.nan, False), (math.inf, False)])
def test_a_difference_is_held_to_its_limit(relative: float, passes: bool) -> None:
    assert bool(made([array(1, 2)], [array(1, 2)], [relative])) is passes


def test_nothing_compared_never_passes() -> None:
    found = made([], [], [])
    assert not found and "nothing was compared" in str(found)
    assert not output_difference("logits", [], [], [], [], Limit(least_db=-999.0, source="a test"))


def test_a_fault_fails_whatever_the_rest_is() -> None:
    found = output_difference("logits", ["a"], [array(1, 2)], [array(1, 2)], [0.0], NOISE, ["b: NaN", "c: NaN", "d: NaN"])
    assert not found and "b: NaN" in str(found) and "at 1 more inputs" in str(found)


def test_decibels_are_held_to_the_floor_less_what_few_images_cannot_tell() -> None:
    """Twenty images whose error is a tenth of the signal's spread: 20 dB, known to a fraction of one."""
    generator = np.random.default_rng(0)
    signal = generator.standard_normal((400, 10)).astype(np.float32)
    error = generator.standard_normal((400, 10)).astype(np.float32)
    near, far = (made([signal], [signal + share * error], [1.0], FLOOR) for share in (0.1, 0.2))
    assert near.sqnr_db == pytest.approx(20, abs=0.2) and far.sqnr_db == pytest.approx(14, abs=0.2)
    assert 0 < near.sqnr_error_db < 0.4 and near and not far
    two = made([signal[:2]], [signal[:2] + 0.1 * error[:2]], [1.0], FLOOR)
    assert two.sqnr_error_db == 1.5


def test_a_limit_that_does_not_decide_is_told_all_the_same() -> None:
    far = output_difference("logits", ["a"], [array(1, 2)], [array(2, 1)], [1.0], FLOOR)
    assert not far and not far.is_within_limit
    told = OutputDifference(**{**vars(far), "decides": False})
    assert told and not told.is_within_limit and told.to_dict()["passed"] is True


@pytest.mark.parametrize(("decibels", "error", "passes"), [(17.1, 1.5, True), (16.9, 1.5, False), (19.9, 0.0, False), (20.0, 0.0, True), (19.7, 0.2, True)])
def test_the_floor_gives_way_by_twice_the_standard_error(decibels: float, error: float, passes: bool) -> None:
    found = OutputDifference(**{**vars(made([array(1, 2)], [array(1, 2)], [0.0], FLOOR)), "sqnr_db": decibels, "sqnr_error_db": error})
    assert bool(found) is passes
