"""Overlap and suppression; torchvision's own operators are the oracle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeport_runtime.boxes import BLOCK, iou, suppress

torch = pytest.importorskip("torch", reason="torchvision.ops is the oracle")
ops = pytest.importorskip("torchvision").ops


def drawn_boxes(seed: int, count: int, side_px: float = 100.0, whole: bool = False) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Many overlap; some boxes have no area. Of whole numbers, some scores are equal."""
    draw = np.random.default_rng(seed)
    corner, size = draw.uniform(0, side_px, (count, 2)), draw.exponential(side_px / 4, (count, 2)) * (draw.random((count, 1)) > 0.05)
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    scores = draw.random(count).astype(np.float32)
    return (boxes.round() if whole else boxes), (scores.round(2) if whole else scores), draw.integers(0, 4, count)


def test_overlap_by_hand() -> None:
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6], [4, 4, 4, 4]], np.float32)
    found = iou(boxes, boxes)
    assert found[0, 1] == np.float32(1 / 7) and found[0, 2] == 0 and found[0, 0] == 1 and np.isnan(found[3, 3])


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.one_of(st.integers(0, 40), st.integers(BLOCK - 1, BLOCK + 1), st.integers(500, 900)),
    threshold=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0]),
    whole=st.booleans(),
)
def test_the_same_boxes_are_kept_in_the_same_order(seed: int, count: int, threshold: float, whole: bool) -> None:
    boxes, scores, classes = drawn_boxes(seed, count, whole=whole)
    one_class = ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold)
    assert suppress(boxes, scores, None, threshold).tolist() == one_class.tolist()
    # batched_nms itself adds offsets to the boxes of small sets, which rounds, unless they are whole; the other way sorts equal scores as it likes
    several = (ops.batched_nms if whole else ops.boxes._batched_nms_vanilla)(*map(torch.from_numpy, (boxes, scores, classes)), threshold)
    assert suppress(boxes, scores, classes, threshold).tolist() == several.tolist()
    assert suppress(boxes, scores, classes, threshold, 7).tolist() == several.tolist()[:7]


@pytest.mark.parametrize(("threshold", "kept"), [(0.1, [0]), (np.nextafter(np.float64(np.float32(0.1)), 1), [0, 1])])
def test_a_threshold_is_not_rounded_up(threshold: float, kept: list[int]) -> None:
    """One box has a tenth of the other's area: as float32 that is 0.100000001, above a threshold of 0.1, as torchvision has it."""
    boxes, scores = np.array([[0, 0, 10, 10], [0, 0, 10, 1]], np.float32), np.array([0.9, 0.8], np.float32)
    assert suppress(boxes, scores, None, float(threshold)).tolist() == kept == ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold).tolist()
