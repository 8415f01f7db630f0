"""Boxes on images: how much two of them overlap, and which of many that overlap are kept.

A box is left, top, right, bottom, float32. Arithmetic is torchvision's, operation by operation, so that the same boxes are kept to the index.
"""

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]
BLOCK = 256  # candidates that are compared with each other at once


def areas(boxes: Boxes) -> NDArray[np.float32]:
    """(n, 4) -> (n,)."""
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def intersections(first: Boxes, second: Boxes) -> NDArray[np.float32]:
    """The common area of each pair: (n, 4), (m, 4) -> (n, m)."""
    width = np.minimum(first[:, None, 2], second[None, :, 2]) - np.maximum(first[:, None, 0], second[None, :, 0])
    height = np.minimum(first[:, None, 3], second[None, :, 3]) - np.maximum(first[:, None, 1], second[None, :, 1])
    np.maximum(width, 0, out=width)
    width *= np.maximum(height, 0, out=height)
    return width


def iou(first: Boxes, second: Boxes) -> NDArray[np.float32]:
    """Intersection over union of each pair: (n, 4), (m, 4) -> (n, m). NaN for two boxes without area, which overlap by no measure."""
    common = intersections(first, second)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(common / (areas(first)[:, None] + areas(second)[None, :] - common))


def suppress(boxes: Boxes, scores: NDArray[np.float32], classes: NDArray[np.int64] | None, iou_threshold: float, most: int | None = None) -> NDArray[np.int64]:
    """Greedy suppression: of boxes that overlap by more than `iou_threshold`, the one with the higher score is kept, at equal scores the earlier one.

    `boxes`: (n, 4). `scores`, `classes`: (n,). Boxes of different classes leave each other alone; None: all are of one class.
    Returns the indices of kept boxes in falling order of score, at most `most` of them, as torchvision.ops.batched_nms does.
    """
    order = np.argsort(-scores, kind="stable")
    threshold = _at_most(iou_threshold)
    kept = np.zeros(0, np.int64)
    for start in range(0, len(order), BLOCK):
        if most is not None and len(kept) >= most:
            break
        block = order[start : start + BLOCK]
        block = block[~_overlapping(boxes, classes, block, kept, threshold).any(axis=1)]
        kept = np.concatenate([kept, block[_survivors(_overlapping(boxes, classes, block, block, threshold))]])
    return kept[:most]


def _overlapping(
    boxes: Boxes, classes: NDArray[np.int64] | None, first: NDArray[np.int64], second: NDArray[np.int64], threshold: np.float32
) -> NDArray[np.bool_]:
    found = iou(boxes[first], boxes[second]) > threshold
    return found if classes is None else found & (classes[first][:, None] == classes[second][None, :])


def _survivors(overlapping: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of candidates in falling order: those that no survivor before them overlaps."""
    alive = np.ones(len(overlapping), bool)
    for index in np.flatnonzero(np.triu(overlapping, 1).any(axis=1)):  # the others suppress nothing
        if alive[index]:
            alive[index + 1 :] &= ~overlapping[index, index + 1 :]
    return np.flatnonzero(alive)


def _at_most(threshold: float) -> np.float32:
    """The largest float32 that is not above it: torchvision compares a float32 with a float64."""
    rounded = np.float32(threshold)
    return rounded if float(rounded) <= threshold else np.nextafter(rounded, np.float32(-np.inf))
