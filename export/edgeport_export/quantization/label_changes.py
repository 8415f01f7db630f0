"""A budget for classifiers without labels: how many answers int8 changes.

A distance in dB says little about a classifier. 14 dB of signal over error may change no label of a network that is sure, and 30 dB may change
many of one that is not. So the labels of int8 are compared with fp32's. Where fp32 itself hesitates between two classes, either answer is as good, and a
change costs nothing that anybody could measure. Those images are counted apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLEAR = 0.1  # between the two best probabilities of fp32, from which on a label is clear
LEAST_CLEAR = 30  # images with a clear label; fewer cannot tell a few percent
SURE = 1.96  # standard deviations: 95 %


@dataclass(frozen=True, kw_only=True)
class LabelChanges:
    """`images`: all. `clear`: those with a clear label; `clear_changed`, `close_changed`: how many of these and of the others int8 answers otherwise."""

    images: int
    clear: int
    clear_changed: int
    close_changed: int

    @property
    def percent(self) -> float:
        """Of the clear labels, how many change."""
        return 100 * self.clear_changed / max(1, self.clear)

    @property
    def most_percent(self) -> float:
        """The upper end of the 95 % interval of `percent`."""
        return 100 * share_interval(self.clear_changed, self.clear)[1]

    def __str__(self) -> str:
        close = self.images - self.clear
        beside = f" and {self.close_changed} of {close} close ones" if close else ""
        return f"changes {self.clear_changed} of {self.clear} clear labels (at most {self.most_percent:.1f}% at 95%){beside}"


def share_interval(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share of which `count` of `total` were seen, after Wilson (1927). Of nothing, all of 0..1."""
    if not total:
        return 0.0, 1.0
    share, square = count / total, SURE**2
    middle, spread = share + square / (2 * total), SURE * math.sqrt(share * (1 - share) / total + square / (4 * total**2))
    return (middle - spread) / (1 + square / total), (middle + spread) / (1 + square / total)


def margins(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Between the two best probabilities of each image, 0..1; 0 for a single class. `logits`: (N, classes)."""
    rows = logits.astype(np.float64)
    odds = np.exp(rows - rows.max(axis=1, keepdims=True))
    best = np.sort(odds / odds.sum(axis=1, keepdims=True), axis=1)
    return np.asarray(best[:, -1] - best[:, -2]) if rows.shape[1] > 1 else np.zeros(len(rows))


def clear_labels(logits: Sequence[NDArray[Any]]) -> NDArray[np.bool_]:
    """For each image whether its label is clear. Each array: (N, classes)."""
    return np.asarray(margins(np.concatenate(logits)) >= CLEAR)


def label_changes(expected: Sequence[NDArray[Any]], got: Sequence[NDArray[Any]]) -> LabelChanges:
    """Compare int8's logits with fp32's."""
    clear = clear_labels(expected)
    moved = np.concatenate([a.argmax(axis=1) != b.argmax(axis=1) for a, b in zip(expected, got, strict=True)])
    return LabelChanges(images=len(clear), clear=int(clear.sum()), clear_changed=int((moved & clear).sum()), close_changed=int((moved & ~clear).sum()))
