"""The tasks: everything that depends on what a model is for stands here, once for each task.

Nothing here knows a contract or a model. A task says how its outputs are checked, turned into answers, and scored.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .detection_head import Role
from .errors import InputError
from .interpretation import RunOutputs, detections, embeddings, float_maps, generated_images, named_values, predictions, segmentations
from .predictions import Answer, Segmentation, as_image

TaskName = Literal["classification", "detection", "segmentation", "image-to-image", "map", "embedding", "tensors"]
OutputKind = Literal["logits", "pixels", "tensor", "map", "landmarks"] | Role
TruthKind = Literal["label", "image", "mask", "boxes"]
Interpret = Callable[[RunOutputs], list[Answer]]


@dataclass(frozen=True, kw_only=True)
class Positions:
    """A task that answers each position of an image, so that an image can be answered in parts.

    `maps`: the first output -> (N, H, W, channels). `settle`: maps -> what an answer keeps of each position. `answer`: that of a whole image, and the
    labels -> the answer.
    """

    maps: Callable[[NDArray[Any]], NDArray[Any]]
    settle: Callable[[NDArray[Any]], NDArray[Any]]
    answer: Callable[[NDArray[Any], Sequence[str]], Answer]


PIXELS = Positions(maps=lambda output: output, settle=lambda maps: maps, answer=lambda image, labels: as_image(image))
CLASSES = Positions(
    maps=lambda output: np.moveaxis(output, 1, -1),
    settle=lambda maps: maps.argmax(axis=-1),
    answer=lambda classes, labels: Segmentation(classes=classes, labels=tuple(labels)),
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a model is for.

    `output_axes`: number of axes of the first output; None if any will do. `output_kind`: of the first output. `classes_axis`: its axis that holds
    the classes. `takes_image`: exactly one input of pixels. `first_answers`: the first output alone is the answer. `needs_head`: a
    contract says how outputs are read. `interpret`: a run's outputs -> an
    answer for each image. `file_suffix`: of an answer that a shell writes to a file; None if it is a row of text. `metric`: the name of its own.
    `truth`: what an example is judged by, see `scorers`; None if the task has no metric. `positions`: None if the answer is one for the whole image.
    """

    name: TaskName
    interpret: Interpret
    output_axes: int | None = None
    output_kind: OutputKind = "tensor"
    classes_axis: int | None = None
    takes_image: bool = True
    first_answers: bool = True
    needs_head: bool = False
    file_suffix: str | None = ".png"
    metric: str | None = None
    truth: TruthKind | None = None
    positions: Positions | None = None

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
            truth="label",
        ),
        Task(name="image-to-image", output_axes=4, output_kind="pixels", interpret=generated_images, metric="psnr_db", truth="image", positions=PIXELS),
        Task(name="segmentation", output_axes=4, classes_axis=1, interpret=segmentations, metric="mean_iou", truth="mask", positions=CLASSES),
        Task(
            name="detection",
            first_answers=False,
            needs_head=True,
            interpret=detections,
            file_suffix=None,
            metric="mean_ap",
            truth="boxes",
        ),
        Task(name="map", output_kind="map", interpret=float_maps, file_suffix=".npy"),
        Task(name="embedding", output_axes=2, interpret=embeddings, file_suffix=".npy"),
        Task(name="tensors", takes_image=False, first_answers=False, interpret=named_values, file_suffix=None),
    )
}


def find_task(name: str) -> Task:
    """Look a task up. Raises InputError listing the names."""
    if name not in TASKS:
        raise InputError(f"task must be one of {list(TASKS)}, got {name!r}")
    return TASKS[name]
