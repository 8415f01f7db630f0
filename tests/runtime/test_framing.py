"""Boxes there and back, and against the pixels: a box drawn on the source is found where the framing says."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeport_runtime import Pixels
from edgeport_runtime.framing import Framing
from edgeport_runtime.images import prepare

RULES: list[dict[str, Any]] = [
    {"resize": "stretch"},
    {"resize": "letterbox", "fill": 0},
    {"resize": "crop", "resize_shorter_px": 70},
    {"resize": "crop", "resize_shorter_px": 40},
]


@pytest.mark.parametrize(
    ("rule", "source_px", "scaled_px", "offset"),
    [
        ({"resize": "stretch"}, (30, 90), (64, 64), (0, 0)),
        ({"resize": "letterbox"}, (100, 50), (64, 32), (0, 16)),
        ({"resize": "letterbox"}, (50, 101), (32, 64), (16, 0)),  # 31.68 rows are 32
        ({"resize": "crop", "resize_shorter_px": 80}, (427, 640), (80, 119), (-8, -28)),  # 119.9 is truncated; 27.5 from the left is 28, halves to even
        ({"resize": "crop", "resize_shorter_px": 40}, (50, 50), (40, 40), (12, 12)),  # too small, so it is padded
    ],
)
def test_by_hand(rule: dict[str, Any], source_px: tuple[int, int], scaled_px: tuple[int, int], offset: tuple[int, int]) -> None:
    found = Framing.of(source_px, Pixels(height=64, width=64, **rule), (64, 64))
    assert (found.scaled_px, (found.top, found.left)) == (scaled_px, offset)


@settings(max_examples=60, deadline=None)
@given(rule=st.sampled_from(RULES), height=st.integers(40, 200), width=st.integers(40, 200), place=st.tuples(*[st.floats(0.3, 0.7)] * 2))
def test_a_box_in_the_source_is_where_the_framing_says(rule: dict[str, Any], height: int, width: int, place: tuple[float, float]) -> None:
    """A white square on black; its center of gravity in the prepared pixels is the mapped one's, to a fifth of a pixel."""
    source = np.zeros((height, width, 3), np.uint8)
    top, left, side = int(place[0] * height), int(place[1] * width), 12
    top, left = min(top, height - side), min(left, width - side)
    source[top : top + side, left : left + side] = 255
    pixels = Pixels(height=64, width=64, **rule)
    seen = prepare(source, pixels)[:, :, 0].astype(float)
    framing = Framing.of((height, width), pixels, (64, 64))
    box = framing.to_network(np.array([left, top, left + side, top + side], np.float32))
    np.testing.assert_allclose(framing.to_source(box), [left, top, left + side, top + side], atol=1e-3)
    if box.min() > 1 and box.max() < 63:  # all of it is seen
        weights = seen.sum(axis=0), seen.sum(axis=1)
        center = [float((each * (np.arange(64) + 0.5)).sum() / each.sum()) for each in weights]
        np.testing.assert_allclose(center, [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2], atol=0.2)


def test_what_is_visible() -> None:
    crop = Framing.of((100, 200), Pixels(height=50, width=50, resize="crop", resize_shorter_px=50), (50, 50))
    assert crop.visible == (50, 0, 150, 100)
    assert Framing.of((100, 200), Pixels(height=50, width=50, resize="letterbox"), (50, 50)).visible == (0, 0, 200, 100)
    assert crop.clipped(np.array([[-5.0, 3.0, 250.0, 101.0]], np.float32)).tolist() == [[0, 3, 200, 100]]
