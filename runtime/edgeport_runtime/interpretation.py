"""From raw outputs to answers, a function for each task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .framing import Framing
from .predictions import Answer, Detections, FloatMap, Label, Prediction, Segmentation, Values, as_image, label_of

if TYPE_CHECKING:
    from .contract import Contract


@dataclass(frozen=True, kw_only=True)
class RunOutputs:
    """What one run gave: `outputs` by name, each (N, …), and what is needed to read them.

    `sources_px`: (height, width) of each source image. `network_px`: (height, width) that the network saw. `top`: classes to list.
    """

    outputs: Mapping[str, NDArray[Any]]
    contract: "Contract"
    sources_px: Sequence[tuple[int, int]]
    network_px: tuple[int, int]
    top: int = 5

    @property
    def first(self) -> NDArray[Any]:
        """The first output, which answers for all tasks but detection and tensors."""
        return self.outputs[self.contract.outputs[0].name]

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the contract."""
        return tuple(self.contract.labels)

    @cached_property
    def framings(self) -> list[Framing]:
        """How each image lies in the network's input."""
        return [Framing.of(each, self.contract.pixels, self.network_px) for each in self.sources_px]


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities along the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponents: NDArray[np.float64] = np.exp(shifted)
    probabilities: NDArray[np.float64] = exponents / exponents.sum(axis=-1, keepdims=True)
    return probabilities


def predictions(run: RunOutputs) -> list[Answer]:
    """Logits (N, classes) -> a Prediction for each image."""
    return [_prediction(row, run.labels, run.top) for row in softmax(run.first)]


def _prediction(probabilities: NDArray[np.float64], labels: Sequence[str], top: int) -> Prediction:
    order = np.argsort(-probabilities, kind="stable")[:top]
    ranked = tuple(Label(label=label_of(int(index), labels), index=int(index), score=float(probabilities[index])) for index in order)
    return Prediction(label=ranked[0].label, index=ranked[0].index, score=ranked[0].score, top=ranked)


def detections(run: RunOutputs) -> list[Answer]:
    """A detector's raw outputs -> Detections for each image. A box that lies in a letterbox's padding alone is none."""
    from .detector import by_kind, detect  # a process with another model starts without it

    head = run.contract.detection
    assert head is not None  # a contract says so
    found = detect(by_kind(run.outputs, run.contract.outputs), head, run.network_px)
    answers: list[Answer] = []
    for each, framing in zip(found, run.framings, strict=True):
        boxes = framing.clipped(framing.to_source(each.boxes)) if head.clip else framing.to_source(each.boxes)
        before, after = _have_area(each.boxes), _have_area(boxes)
        kept = after | ~before
        answers.append(Detections(boxes=boxes[kept].astype(np.float32), scores=each.scores[kept], classes=each.classes[kept], labels=run.labels))
    return answers


def _have_area(boxes: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))


def segmentations(run: RunOutputs) -> list[Answer]:
    """Scores (N, classes, H, W) -> a Segmentation for each image."""
    pairs = zip(run.first, run.framings, strict=True)
    return [Segmentation(classes=row.argmax(axis=0), labels=run.labels, scores=row, framing=framing) for row, framing in pairs]


def float_maps(run: RunOutputs) -> list[Answer]:
    """(N, H, W) or (N, 1, H, W) -> a FloatMap for each image."""
    output = run.contract.outputs[0]
    rows = run.first if run.first.ndim == 3 else run.first[:, 0]
    return [FloatMap(values=row, range=output.range, unit=output.unit, framing=framing) for row, framing in zip(rows, run.framings, strict=True)]


def embeddings(run: RunOutputs) -> list[Answer]:
    """(N, channels) -> an array for each image."""
    return list(run.first)


def generated_images(run: RunOutputs) -> list[Answer]:
    """uint8 (N, H, W, C) -> a PIL image for each image."""
    return [as_image(row) for row in run.first]


def named_values(run: RunOutputs) -> list[Answer]:
    """Every output, told apart by the names and the kind that the contract gives it -> Values for each image."""
    return [_values(run, index, framing) for index, framing in enumerate(run.framings)]


def _values(run: RunOutputs, index: int, framing: Framing) -> Values:
    values: dict[str, float] = {}
    points: dict[str, tuple[float, float]] = {}
    units: dict[str, str] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for each in run.contract.outputs:
        row = run.outputs[each.name][index]
        if not each.names:
            arrays[each.name] = row
        elif each.kind == "landmarks":
            there = row.reshape(-1, 2) * (1 if each.unit == "px" else np.array(run.network_px[::-1], row.dtype))
            points |= zip(each.names, map(_pair, framing.to_source(there)), strict=True)
        else:
            values |= zip(each.names, map(float, row.ravel()), strict=True)
            units |= {name: each.unit for name in each.names if each.unit}
    return Values(values=values, points=points, units=units, arrays=arrays)


def _pair(point: NDArray[Any]) -> tuple[float, float]:
    return float(point[0]), float(point[1])
