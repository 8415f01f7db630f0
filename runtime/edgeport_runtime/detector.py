"""From the raw outputs of a detector to the boxes of one image: threshold, decode, suppress.

Nearly all scores of nearly all anchors are below the threshold. So raw scores are compared with the threshold's own raw value, and only
what is above it is activated and decoded: 8,400 anchors with 80 classes take 0.6 ms (tests/bench/boxes.py).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .boxes import Boxes, suppress
from .detection_head import TURNED, DetectionHead
from .errors import InputError

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The boxes of one image in falling order of score. `boxes`: (n, 4) corners in pixels of the network's input. `classes`: indices of labels."""

    boxes: Boxes
    scores: Floats
    classes: Indices


@dataclass(frozen=True, kw_only=True)
class _Raw:
    """One image's outputs: `boxes` (anchors, 4), `scores` (anchors, columns), and what else there is. Any of them may be a view with turned axes."""

    boxes: Floats
    scores: Floats
    objectness: Floats | None
    points: Floats | None
    levels: Indices | None


def detect(outputs: Mapping[str, NDArray[Any]], head: DetectionHead, network_px: tuple[int, int]) -> list[Found]:
    """The boxes of each image of a batch. `outputs`: by kind, see DetectionHead. `network_px`: (height, width) of the network's input.

    Boxes and scores that are no numbers are left out. Raises InputError for outputs of different anchors.
    """
    return [_detected(each, head, network_px) for each in _images(outputs, head)]


def _images(outputs: Mapping[str, NDArray[Any]], head: DetectionHead) -> Iterator[_Raw]:
    turned = TURNED if head.anchors_axis == 2 else ()
    tables = {kind: np.swapaxes(each, 1, 2) if kind in turned else each for kind, each in outputs.items()}
    for index in range(len(next(tables[kind] for kind in ("joined", "boxes") if kind in tables))):
        objectness: Floats | None = None
        if "joined" in tables:
            row, extra = tables["joined"][index], int(head.objectness != "none")
            boxes, scores = row[:, :4], row[:, 4 + extra :]
            objectness = row[:, 4] if extra else None
        else:
            boxes, scores = tables["boxes"][index], tables["scores"][index]
            objectness = tables["objectness"][index].reshape(len(boxes)) if "objectness" in tables else None
        points, levels = (tables[kind][index] if kind in tables else None for kind in ("points", "levels"))
        yield _Raw(boxes=boxes, scores=scores, objectness=objectness, points=points, levels=levels)


def _detected(raw: _Raw, head: DetectionHead, network_px: tuple[int, int]) -> Found:
    rows = {len(each) for each in (raw.boxes, raw.scores, raw.objectness, raw.points, raw.levels) if each is not None}
    if len(rows) > 1:
        raise InputError(f"a detector's outputs have one row for each anchor, got {', '.join(map(str, sorted(rows)))} rows")
    anchors, columns, scores = _above(raw, head)
    kept = _candidates(anchors, columns, scores, raw.levels, head)
    anchors, columns, scores = anchors[kept], columns[kept], scores[kept]
    boxes = _corners(raw, anchors, head, network_px)
    finite = np.isfinite(boxes).all(axis=1)
    boxes, columns, scores = boxes[finite], columns[finite], scores[finite]
    if head.clip:
        limits = np.array(network_px[::-1] * 2, np.float32)
        boxes = np.minimum(np.maximum(boxes, 0), limits)
    if head.iou_threshold is None:
        chosen = np.argsort(-scores, kind="stable")[: head.most]
    else:
        chosen = suppress(boxes, scores, columns if head.class_aware else None, head.iou_threshold, head.most)
    return Found(boxes=boxes[chosen], scores=scores[chosen], classes=columns[chosen] + head.label_offset)


def _above(raw: _Raw, head: DetectionHead) -> tuple[Indices, Indices, Floats]:
    """Anchors, columns and scores of all pairs above the threshold, anchor by anchor."""
    table = raw.scores
    if head.activation == "softmax":
        table = _softmax(table)
    if head.best_class:
        anchors, columns = _best(table, head)
    else:
        anchors, columns = _pairs(table, _raw_threshold(head))
    if head.background is not None:
        foreground = columns != head.background
        anchors, columns = anchors[foreground], columns[foreground]
    scores = np.ascontiguousarray(table[anchors, columns])
    if head.activation == "sigmoid":
        scores = _sigmoid(scores)
    if raw.objectness is not None:
        there = raw.objectness[anchors]
        scores = scores * (there if head.activation == "none" else _sigmoid(there))
        scores = np.sqrt(scores) if head.objectness == "root" else scores
    above = (scores > np.float32(head.score_threshold)) & np.isfinite(scores)
    return anchors[above], columns[above], scores[above]


def _best(table: Floats, head: DetectionHead) -> tuple[Indices, Indices]:
    """The best class of each anchor; the background is none."""
    if head.background is not None:
        table = table.copy()
        table[:, head.background] = -np.inf
    return np.arange(len(table)), table.argmax(axis=1)


def _pairs(table: Floats, threshold: np.float32) -> tuple[Indices, Indices]:
    """Indices of what is above, anchor by anchor; the table is looked through as it lies in memory."""
    if table.flags.f_contiguous and not table.flags.c_contiguous:
        columns, anchors = np.divmod(np.flatnonzero((threshold < table.T).ravel()), len(table))
        order = np.argsort(anchors, kind="stable")
        return anchors[order], columns[order]
    anchors, columns = np.divmod(np.flatnonzero((table > threshold).ravel()), table.shape[1])
    return anchors, columns


def _raw_threshold(head: DetectionHead) -> np.float32:
    """A raw score at or below it cannot be above the threshold, whatever the objectness, which is at most 1. A little less, for rounding."""
    share = head.score_threshold**2 if head.objectness == "root" else head.score_threshold
    if head.activation != "sigmoid":
        return np.float32(share * (1 - 1e-5))
    if not 0 < share < 1:
        return np.float32(-np.inf if share <= 0 else np.inf)
    return np.float32(math.log(share / (1 - share)) - 1e-4)


def _sigmoid(values: Floats) -> Floats:
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and its inverse 0
        return np.asarray(np.float32(1) / (np.float32(1) + np.exp(-values)))


def _softmax(table: Floats) -> Floats:
    exponents = np.exp(table - table.max(axis=1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))


def _candidates(anchors: Indices, columns: Indices, scores: Floats, levels: Indices | None, head: DetectionHead) -> Indices:
    """Which pairs go on, group by group, in falling order of score within each: as torchvision joins its levels and its classes."""
    order = np.argsort(-scores, kind="stable")
    if head.candidates_per == "image":
        return order[: head.candidates]
    if head.candidates_per == "level":
        assert levels is not None  # a contract says so
        groups = levels[anchors]
    else:
        groups = columns
    order = order[np.argsort(groups[order], kind="stable")]
    ordered = groups[order]
    first = np.searchsorted(ordered, ordered)  # where each one's group begins
    return order if head.candidates is None else order[np.arange(len(order)) - first < head.candidates]


def _corners(raw: _Raw, anchors: Indices, head: DetectionHead, network_px: tuple[int, int]) -> Boxes:
    """The boxes of these anchors as corners in pixels."""
    boxes = np.ascontiguousarray(raw.boxes[anchors], np.float32)
    if head.box_format == "center":
        half = boxes[:, 2:] / 2
        boxes = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
    elif head.box_format == "distances":
        assert raw.points is not None  # a contract says so
        points = raw.points[anchors]
        boxes = np.concatenate([points - boxes[:, :2], points + boxes[:, 2:]], axis=1)
    return boxes * np.array(network_px[::-1] * 2, np.float32) if head.unit == "share" else boxes


def by_kind(outputs: Mapping[str, NDArray[Any]], described: Sequence[Any]) -> dict[str, NDArray[Any]]:
    """Outputs by name as outputs by kind. `described`: the contract's, of type Output."""
    return {each.kind: outputs[each.name] for each in described if each.kind != "tensor"}
