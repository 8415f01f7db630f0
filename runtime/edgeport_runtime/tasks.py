"""The tasks: everything that depends on what a model is for stands here, once for each task.

Nothing here knows a contract or a model. A task says how its outputs are checked, turned into answers, and scored.
"""

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .predictions import Answer, Segmentation, embeddings, generated_images, predictions, segmentations
from .similarity import structural_similarity

TaskName = Literal["classification", "image-to-image", "segmentation", "embedding", "tensors"]
OutputKind = Literal["logits", "pixels", "tensor"]
TruthKind = Literal["label", "image", "mask"]
SHARES = ("accuracy", "mean_iou")  # metrics in 0..1, whose losses are told in points
IGNORED = 255  # a position of a mask that counts for nothing (PASCAL VOC, Cityscapes, ADE20K)
Interpret = Callable[[NDArray[Any], Sequence[str], int], list[Answer]]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The task's metric over `count` images: "accuracy" in 0..1, "psnr_db" from the mean squared error of all pixels, "mean_iou" in 0..1, or the user's own.

    For a classifier, `answers` are the chosen classes, and `margins` how far each led the next one, over the range of its logits. For images, `ssim` is
    the mean of their structural similarity; None if one is smaller than 11 pixels.
    """

    metric: str
    value: float
    count: int
    answers: tuple[int, ...] = ()
    margins: tuple[float, ...] = ()
    ssim: float | None = None

    def __str__(self) -> str:
        name = {"accuracy": " accuracy", "psnr_db": " PSNR", "mean_iou": " mean IoU"}.get(self.metric, f" {self.metric}")
        return f"{format_metric(self.metric, self.value)}{name}" + ("" if self.ssim is None else f", {self.ssim:.4f} SSIM")


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

    truth: TruthKind = "label"

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

    truth: TruthKind = "image"

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

    truth: TruthKind = "mask"

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


Scorer = type[AccuracyScorer] | type[PsnrScorer] | type[MeanIouScorer]


@dataclass(frozen=True, kw_only=True)
class Positions:
    """A task that answers each position of an image, so that an image can be answered in parts.

    `maps`: the first output -> (N, H, W, channels). `settle`: maps -> what an answer keeps of each position. `answer`: that of a whole image, and the
    labels -> the answer.
    """

    maps: Callable[[NDArray[Any]], NDArray[Any]]
    settle: Callable[[NDArray[Any]], NDArray[Any]]
    answer: Callable[[NDArray[Any], Sequence[str]], Answer]


PIXELS = Positions(maps=lambda output: output, settle=lambda maps: maps, answer=lambda image, labels: generated_images(image[None], labels, 1)[0])
CLASSES = Positions(
    maps=lambda output: np.moveaxis(output, 1, -1),
    settle=lambda maps: maps.argmax(axis=-1),
    answer=lambda classes, labels: Segmentation(classes=classes, labels=tuple(labels)),
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a model is for.

    `output_axes`: number of axes of the first output; None if any will do. `output_kind`: of the first output. `classes_axis`: its axis that holds
    the classes. `takes_image`: exactly one input of pixels. `interpret`: the first output, labels and `top` -> an answer for each image; None if there
    is none. `file_suffix`: of an answer that a shell writes to a file; None if it is a row of text. `metric`: the name of its own. `scorer`: takes the
    number of examples. `positions`: None if the answer is one for the whole image.
    """

    name: TaskName
    output_axes: int | None = None
    output_kind: OutputKind = "tensor"
    classes_axis: int | None = None
    takes_image: bool = True
    interpret: Interpret | None = None
    file_suffix: str | None = ".png"
    metric: str | None = None
    scorer: Scorer | None = None
    positions: Positions | None = None

    @property
    def truth(self) -> TruthKind | None:
        """What the truth of an example is: its label, an image, or a mask. None if the task has no metric."""
        return None if self.scorer is None else self.scorer.truth

    @property
    def answers_are_labels(self) -> bool:
        """Whether the answer for an image is one label, so that changed labels can be counted."""
        return self.output_kind == "logits"

    def faults(self, images: Sequence[bool], first_shape: Sequence[int | str], labels: Sequence[str]) -> Iterator[str]:
        """What a contract of this task gets wrong. `images`: for each input, whether it holds pixels. `first_shape`: of the first output."""
        if self.takes_image and list(images) != [True]:
            yield f"the task {self.name!r} takes exactly one input of pixels"
        if self.classes_axis is not None and labels and first_shape:
            classes = list(first_shape)[self.classes_axis :][:1]
            if classes != [len(labels)]:
                axis = "last" if self.classes_axis == -1 else "second"
                yield f"{len(labels)} labels for an output of shape {tuple(first_shape)}, whose {axis} axis holds the classes"


TASKS = {
    task.name: task
    for task in (
        Task(
            name="classification",
            output_axes=2,
            output_kind="logits",
            classes_axis=-1,
            interpret=predictions,
            file_suffix=None,
            metric="accuracy",
            scorer=AccuracyScorer,
        ),
        Task(name="image-to-image", output_axes=4, output_kind="pixels", interpret=generated_images, metric="psnr_db", scorer=PsnrScorer, positions=PIXELS),
        Task(name="segmentation", output_axes=4, classes_axis=1, interpret=segmentations, metric="mean_iou", scorer=MeanIouScorer, positions=CLASSES),
        Task(name="embedding", output_axes=2, interpret=embeddings, file_suffix=".npy"),
        Task(name="tensors", takes_image=False, file_suffix=None),
    )
}


def find_task(name: str) -> Task:
    """Look a task up. Raises InputError listing the names."""
    if name not in TASKS:
        raise InputError(f"task must be one of {list(TASKS)}, got {name!r}")
    return TASKS[name]


def margin(logits: NDArray[Any]) -> float:
    """How far the largest of (classes,) leads the next one, over their range; 0..1."""
    ordered = np.sort(logits.astype(np.float64))
    return float((ordered[-1] - ordered[-2]) / (ordered[-1] - ordered[0])) if len(ordered) > 1 and ordered[-1] > ordered[0] else 0.0


def psnr_db(squared_error: float, elements: int) -> float:
    """Peak signal-to-noise ratio for levels in 0..255."""
    return float(10 * np.log10(255.0**2 * elements / squared_error)) if squared_error else math.inf
