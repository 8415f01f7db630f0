"""Mean average precision as COCO defines it (Lin et al. 2014, and the code of pycocotools, which is the oracle of the tests)."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .boxes import areas, intersections
from .errors import InputError

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST_FOUND = 100  # boxes of one class in one image

FoundBoxes = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]  # boxes (n, 4), scores (n,), classes (n,)


class TrueBoxes(NamedTuple):
    """What is in an image. `boxes`: (n, 4), left, top, right, bottom in pixels of the upright source. `classes`: (n,), indices of labels.

    `crowd`: (n,), boxes around many things of a class; what is found inside counts neither as right nor as wrong.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    crowd: NDArray[np.bool_]

    @classmethod
    def of(cls, truth: Any, name: str) -> "TrueBoxes":
        """From TrueBoxes, or a pair (boxes, classes). `name`: of the image. Raises InputError."""
        try:
            boxes, classes, *crowd = truth
            table, indices = np.asarray(boxes, np.float64), np.asarray(classes)
            whole = indices.size == 0 or indices.dtype.kind in "iu"
            shaped = table.shape == (len(indices), 4) if table.size else len(indices) == 0
            if not shaped or not whole or indices.ndim != 1 or len(crowd) > 1 or (crowd and len(crowd[0]) != len(indices)):
                raise ValueError
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{name}: its truth must be a pair: boxes (n, 4) as left, top, right, bottom, and classes (n,) as whole numbers; got {str(truth)[:60]}"
            ) from error
        made = cls(
            boxes=table.astype(np.float32).reshape(-1, 4),
            classes=indices.astype(np.int64),
            crowd=np.asarray(crowd[0] if crowd else np.zeros(len(indices)), bool).reshape(-1),
        )
        if not np.isfinite(made.boxes).all() or (made.boxes[:, 2:] < made.boxes[:, :2]).any():
            raise InputError(f"{name}: a true box is left, top, right, bottom in pixels, right and bottom being the larger ones")
        return made


class _Matches(NamedTuple):
    """Of one class and image. `scores`: (n,). `right`, `counted`: (overlaps, n). `there`: true boxes that count."""

    scores: NDArray[np.float32]
    right: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    there: int


def mean_average_precision(found: Sequence[FoundBoxes], truths: Sequence[TrueBoxes]) -> tuple[float, float]:
    """The mean over classes that occur in a truth, and over OVERLAPS; and that at an overlap of 0.50 alone. Raises InputError if there is no true box."""
    precisions = list(_class_precisions(found, truths))
    if not precisions:
        raise InputError("no image has a true box, so there is no average precision")
    table = np.array(precisions)  # (classes, overlaps)
    return float(table.mean()), float(table[:, 0].mean())


def _class_precisions(found: Sequence[FoundBoxes], truths: Sequence[TrueBoxes]) -> Iterator[NDArray[np.float64]]:
    for each in np.unique(np.concatenate([np.zeros(0, np.int64), *(truth.classes for truth in truths)])):
        matches = [_matches(boxes, truth, int(each)) for boxes, truth in zip(found, truths, strict=True)]
        if sum(match.there for match in matches):
            yield _average_precision(matches)


def _matches(found: FoundBoxes, truth: TrueBoxes, index: int) -> _Matches:
    """Greedy, in falling order of score: each box takes the free true box that it overlaps most, if by enough."""
    boxes, scores, classes = found
    order = np.flatnonzero(classes == index)
    order = order[np.argsort(-scores[order], kind="stable")][:MOST_FOUND]
    true = np.flatnonzero(truth.classes == index)
    crowd = truth.crowd[true]
    overlaps = _overlaps(boxes[order], truth.boxes[true], crowd)
    right, counted = np.zeros((len(OVERLAPS), len(order)), bool), np.ones((len(OVERLAPS), len(order)), bool)
    for level, least in enumerate(OVERLAPS):
        free = np.ones(len(true), bool)
        for place, row in enumerate(overlaps):
            best = _best(row, free, crowd, least)
            if best is not None:
                free[best] = crowd[best]  # a crowd is never used up
                right[level, place], counted[level, place] = not crowd[best], not crowd[best]
    return _Matches(scores=scores[order], right=right, counted=counted, there=int((~crowd).sum()))


def _overlaps(boxes: NDArray[np.float32], true: NDArray[np.float32], crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(found, true): intersection over union; over the found box's own area where the true one is a crowd."""
    common = intersections(boxes.astype(np.float64), true.astype(np.float64))
    own = areas(boxes.astype(np.float64))[:, None]
    union = np.where(crowd[None, :], own, own + areas(true.astype(np.float64))[None, :] - common)
    return np.asarray(np.divide(common, union, out=np.zeros_like(common), where=union > 0), np.float64)


def _best(row: NDArray[np.float64], free: NDArray[np.bool_], crowd: NDArray[np.bool_], least: float) -> int | None:
    """The true box with the largest overlap, of equal ones the last; a crowd only if there is no other."""
    for group in (free & ~crowd, crowd):
        chosen = np.flatnonzero(group & (row >= least - 1e-10))
        if chosen.size:
            return int(chosen[len(chosen) - 1 - row[chosen][::-1].argmax()])
    return None


def _average_precision(matches: Sequence[_Matches]) -> NDArray[np.float64]:
    """At each overlap the mean of the precision at 101 recalls, each the best at that recall or a higher one."""
    scores = np.concatenate([match.scores for match in matches])
    order = np.argsort(-scores, kind="stable")
    right = np.concatenate([match.right for match in matches], axis=1)[:, order]
    counted = np.concatenate([match.counted for match in matches], axis=1)[:, order]
    there = sum(match.there for match in matches)
    hits, misses = np.cumsum(right, axis=1, dtype=np.float64), np.cumsum(~right & counted, axis=1, dtype=np.float64)
    found: list[float] = []
    for hit, miss in zip(hits, misses, strict=True):
        precision = hit / np.maximum(hit + miss, np.spacing(1))
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(hit / there, RECALLS, side="left")
        found.append(float(np.append(envelope, 0.0)[np.minimum(places, len(envelope))].mean()))
    return np.array(found)
