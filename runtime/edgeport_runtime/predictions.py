"""What a model answers: results as applications use them, made from raw outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Label:
    """One class with its index among the logits and its probability, 0..1."""

    label: str
    index: int
    score: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A classifier's answer for one image: the most probable class, and `top` classes in falling order of probability."""

    label: str
    index: int
    score: float
    top: tuple[Label, ...]


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """The class of each position of an image: `classes` int64 (H, W), indices into `labels` if there are any."""

    classes: NDArray[np.int64]
    labels: tuple[str, ...]


Answer = Prediction | Segmentation | Image.Image | NDArray[np.float32]


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities along the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponents: NDArray[np.float64] = np.exp(shifted)
    probabilities: NDArray[np.float64] = exponents / exponents.sum(axis=-1, keepdims=True)
    return probabilities


def predictions(logits: NDArray[Any], labels: Sequence[str], top: int) -> list[Answer]:
    """(N, classes) -> a Prediction for each image. Classes without labels are named by their index."""
    return [_prediction(row, labels, top) for row in softmax(logits)]


def _prediction(probabilities: NDArray[np.float64], labels: Sequence[str], top: int) -> Prediction:
    order = np.argsort(-probabilities, kind="stable")[:top]
    ranked = tuple(Label(label=labels[index] if labels else str(index), index=int(index), score=float(probabilities[index])) for index in order)
    return Prediction(label=ranked[0].label, index=ranked[0].index, score=ranked[0].score, top=ranked)


def segmentations(scores: NDArray[Any], labels: Sequence[str], top: int) -> list[Answer]:
    """(N, classes, H, W) -> a Segmentation for each image. `top` does not apply."""
    return [Segmentation(classes=row.argmax(axis=0), labels=tuple(labels)) for row in scores]


def embeddings(vectors: NDArray[Any], labels: Sequence[str], top: int) -> list[Answer]:
    """(N, channels) -> an array for each image. `labels` and `top` do not apply."""
    return list(vectors)


def generated_images(pixels: NDArray[Any], labels: Sequence[str], top: int) -> list[Answer]:
    """uint8 (N, H, W, C) -> a PIL image for each image. `labels` and `top` do not apply."""
    return [Image.fromarray(row[:, :, 0] if row.shape[2] == 1 else row) for row in pixels]
