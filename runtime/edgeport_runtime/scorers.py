"""Quality against the truth: how answers for many images become one figure, a scorer for each kind of truth."""

import math
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .average_precision import TrueBoxes, mean_average_precision
from .errors import InputError
from .predictions import Detections
from .similarity import structural_similarity
from .tasks import TruthKind

SHARES = ("accuracy", "mean_iou", "mean_ap")  # metrics in 0..1, whose losses are told in points
IGNORED = 255  # a position of a mask that counts for nothing (PASCAL VOC, Cityscapes, ADE20K)


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The task's metric over `count` images: "accuracy", "mean_iou" and "mean_ap" in 0..1, "psnr_db" from the mean squared error of all pixels, or the
    user's own.

    For a classifier, `answers` are the chosen classes, and `margins` how far each led the next one, over the range of its logits. For images, `ssim` is
    the mean of their structural similarity; None if one is smaller than 11 pixels. For a detector, `at_50` is the average precision at an overlap of 0.50.
    """

    metric: str
    value: float
    count: int
    answers: tuple[int, ...] = ()
    margins: tuple[float, ...] = ()
    ssim: float | None = None
    at_50: float | None = None

    def __str__(self) -> str:
        name = {"accuracy": " accuracy", "psnr_db": " PSNR", "mean_iou": " mean IoU", "mean_ap": " mAP"}.get(self.metric, f" {self.metric}")
        beside = "" if self.ssim is None else f", {self.ssim:.4f} SSIM"
        beside += "" if self.at_50 is None else f", {self.at_50:.2%} mAP@50"
        return f"{format_metric(self.metric, self.value)}{name}{beside}"


def format_metric(metric: str, value: float) -> str:
    """A quality as people read it: 98.06% or 30.21 dB."""
    return f"{value:.2%}" if metric in SHARES else f"{value:.2f} dB" if metric == "psnr_db" else f"{value:.4g}"


def metric_unit(metric: str) -> str | None:
    """The unit of a loss in a task's own metric; None for a metric of the user's."""
    return "points" if metric in SHARES else "dB" if metric == "psnr_db" else None


def _class_of(truth: Any, classes: int) -> int | None:
    """The truth as an index; None if it is none."""
    try:
        index = operator.index(truth)  # numpy's and torch's whole numbers, too
    except TypeError:
        return None
    return index if 0 <= index < classes else None


class AccuracyScorer:
    """Counts right answers. Truths are indices of classes."""

    takes_answers = False

    def __init__(self, count: int) -> None:
        self.answers, self.margins, self.right = [0] * count, [0.0] * count, 0

    def add(self, index: int, output: NDArray[Any], truth: Any, name: str) -> None:
        """`index`: of the example. `output`: logits (classes,). `name`: of the image. Raises InputError for a truth that is no class."""
        true = _class_of(truth, output.size)
        if true is None:
            raise InputError(f"{name}: its truth must be the index of its class, 0 to {output.size - 1}, got {truth!r}")
        self.answers[index], self.margins[index] = int(output.argmax()), margin(output)
        self.right += self.answers[index] == true

    def quality(self) -> Quality:
        count = len(self.answers)
        return Quality(metric="accuracy", value=self.right / count, count=count, answers=tuple(self.answers), margins=tuple(self.margins))


class PsnrScorer:
    """Adds up squared errors, and structural similarity. Truths are pixels, uint8 (H, W, C)."""

    takes_answers = False

    def __init__(self, count: int) -> None:
        self.count, self.squared_error, self.elements = count, 0.0, 0
        self.similarities: list[float | None] = []

    def add(self, index: int, output: NDArray[Any], truth: NDArray[Any], name: str) -> None:
        """`output`: uint8 (H, W, C). `name`: of the image. Raises InputError if the output's size is not the truth's."""
        if truth.shape != output.shape:
            raise InputError(f"{name}: the output is {output.shape}, but its target image is {truth.shape}")
        self.squared_error += float(np.sum(np.square(output.astype(np.float64) - truth.astype(np.float64))))
        self.elements += output.size
        self.similarities.append(structural_similarity(output, truth))

    def quality(self) -> Quality:
        found = [each for each in self.similarities if each is not None]
        ssim = sum(found) / len(found) if found and len(found) == len(self.similarities) else None
        return Quality(metric="psnr_db", value=psnr_db(self.squared_error, self.elements), count=self.count, ssim=ssim)


class MeanIouScorer:
    """Counts positions by true and answered class. Truths are masks, integers (H, W); IGNORED counts for nothing.

    The mean is over classes that occur in a truth or an answer, each with its positions of all images pooled (as PASCAL VOC and torchvision do).
    """

    takes_answers = False

    def __init__(self, count: int) -> None:
        self.count, self.table, self.ignored = count, np.zeros((0, 0), np.int64), 0

    def add(self, index: int, output: NDArray[Any], truth: NDArray[Any], name: str) -> None:
        """`output`: scores (classes, H, W). `name`: of the image. Raises InputError for a mask of another size, or with a class that there is not."""
        classes = output.shape[0]
        if truth.shape != output.shape[1:]:
            raise InputError(f"{name}: the output is {output.shape[1:]} (HxW), but its mask is {truth.shape}")
        counted = truth != IGNORED
        self.ignored += int(truth.size - counted.sum())
        true, answered = truth[counted].astype(np.int64), output.argmax(axis=0)[counted]
        if true.size and not 0 <= true.min() <= true.max() < classes:
            odd = true.max() if true.max() >= classes else true.min()
            raise InputError(f"{name}: its mask has the class {odd}, but the model has the classes 0 to {classes - 1} ({IGNORED} is ignored)")
        if not self.table.size:
            self.table = np.zeros((classes, classes), np.int64)
        self.table += np.bincount(true * classes + answered, minlength=classes**2).reshape(classes, classes)

    def quality(self) -> Quality:
        """Raises InputError if nothing but the first class can be judged."""
        if self.ignored and self.table[:1].any() and len(self.table) > 1 and not self.table[1:].any():
            raise InputError(f"the masks hold 0 and {IGNORED} alone, and {IGNORED} counts for nothing: store the classes as 0, 1 and so on")
        both = np.diag(self.table)
        either = self.table.sum(axis=0) + self.table.sum(axis=1) - both
        value = float(np.mean(both[either > 0] / either[either > 0])) if either.any() else 0.0
        return Quality(metric="mean_iou", value=value, count=self.count)


class MeanApScorer:
    """Compares boxes with true boxes. Truths are TrueBoxes, or pairs (boxes, classes); answers are Detections.

    The metric is COCO's: average precision at overlaps of 0.50 to 0.95, the mean over classes. It looks at 100 boxes of each class and image.
    """

    takes_answers = True

    def __init__(self, count: int) -> None:
        self.found: list[Detections | None] = [None] * count
        self.truths: list[TrueBoxes | None] = [None] * count

    def add(self, index: int, output: Detections, truth: Any, name: str) -> None:
        """`output`: the answer, in pixels of the source image. `name`: of the image. Raises InputError for a truth that is none, or an unknown class."""
        true = TrueBoxes.of(truth, name)
        classes = len(output.labels)
        if classes and true.classes.size and not 0 <= true.classes.min() <= true.classes.max() < classes:
            raise InputError(f"{name}: its true boxes have classes {true.classes.min()} to {true.classes.max()}, but the model has 0 to {classes - 1}")
        self.found[index], self.truths[index] = output, true

    def quality(self) -> Quality:
        """Raises InputError if no image has a true box."""
        pairs = [(found, true) for found, true in zip(self.found, self.truths, strict=True) if found is not None and true is not None]
        value, at_50 = mean_average_precision([(each.boxes, each.scores, each.classes) for each, _ in pairs], [true for _, true in pairs])
        return Quality(metric="mean_ap", value=value, count=len(self.found), at_50=at_50)


Scorer = AccuracyScorer | PsnrScorer | MeanIouScorer | MeanApScorer
# Each is made for a number of examples. `takes_answers`: it is given answers, and otherwise rows of the first output.
SCORERS: dict[TruthKind, type[Scorer]] = {"label": AccuracyScorer, "image": PsnrScorer, "mask": MeanIouScorer, "boxes": MeanApScorer}


def margin(logits: NDArray[Any]) -> float:
    """How far the largest of (classes,) leads the next one, over their range; 0..1."""
    ordered = np.sort(logits.astype(np.float64))
    return float((ordered[-1] - ordered[-2]) / (ordered[-1] - ordered[0])) if len(ordered) > 1 and ordered[-1] > ordered[0] else 0.0


def psnr_db(squared_error: float, elements: int) -> float:
    """Peak signal-to-noise ratio for levels in 0..255."""
    return float(10 * np.log10(255.0**2 * elements / squared_error)) if squared_error else math.inf
