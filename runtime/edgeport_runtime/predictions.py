"""What a model answers: results as applications use them, made from raw outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import InputError
from .framing import Framing
from .maps import class_dtype, classes_at_source, map_at_source

if TYPE_CHECKING:
    from .decoding import ImageSource

SHOWN = 0.3  # the score from which on a box is drawn: below it, pictures are full of what is probably not there


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

    def draw(self, image: "ImageSource") -> Image.Image:
        """The image with its label and score below it: RGB, at least 320 pixels wide."""
        from .drawing import captioned

        return captioned(image, [f"{each.label} {each.score:.0%}" for each in self.top[:3]])


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One thing found. `box`: left, top, right, bottom in pixels of the source image as it is shown upright. `score`: 0..1."""

    label: str
    index: int
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections(Sequence[Detection]):
    """A detector's answer for one image: a sequence of Detection in falling order of score, empty if nothing was found.

    `boxes`: float32 (n, 4), left, top, right, bottom in pixels of the source image as it is shown upright. `scores`: float32 (n,), 0..1.
    `classes`: int64 (n,), indices into `labels` if there are any.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> Any:
        """One Detection; for a slice, a mask or indices, the Detections that these choose."""
        if not isinstance(index, int | np.integer):
            return Detections(boxes=self.boxes[index], scores=self.scores[index], classes=self.classes[index], labels=self.labels)
        found = int(self.classes[index])
        left, top, right, bottom = map(float, self.boxes[index])
        return Detection(label=label_of(found, self.labels), index=found, score=float(self.scores[index]), box=(left, top, right, bottom))

    def at_least(self, score: float) -> "Detections":
        """Those with that score or a higher one, 0..1; the contract's own threshold was applied before."""
        chosen: Detections = self[self.scores >= score]
        return chosen

    def draw(self, image: "ImageSource", min_score: float = SHOWN) -> Image.Image:
        """The image with boxes of at least that score, their labels and scores: RGB, at the image's size, enlarged if that is too small to read."""
        from .drawing import boxed

        return boxed(image, self.at_least(min_score))


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """The class of each position of an image: `classes` int64 (H, W) at the network's size, indices into `labels` if there are any.

    `scores`: float32 (classes, H, W), and `framing`, from which `at_source` is made; None for an image that was answered in tiles.
    """

    classes: NDArray[np.int64]
    labels: tuple[str, ...]
    scores: NDArray[np.float32] | None = None
    framing: Framing | None = None

    def at_source(self) -> NDArray[Any]:
        """The classes at the source image's size, (H, W): scores are resized (bilinear), then the best one is taken.

        uint8, and uint16 from 256 classes on. Its largest value stands where the network did not see the image, because it was cropped.
        """
        if self.scores is not None and self.framing is not None:
            return classes_at_source(self.scores, self.framing)
        return self.classes.astype(class_dtype(int(self.classes.max(initial=0)) + 1))

    def scores_at_source(self) -> NDArray[np.float32]:
        """Scores at the source image's size: float32 (classes, H, W), NaN where the network did not see it. Raises InputError for an answer in tiles."""
        if self.scores is None or self.framing is None:
            raise InputError("an image that was answered in tiles has classes alone: leave tile_px out for scores")
        return np.stack([map_at_source(each, self.framing) for each in self.scores])

    def to_image(self) -> Image.Image:
        """A palette image of `at_source`, whose values are classes, in the colors of PASCAL VOC. From 256 classes on it is gray, of 16 bits."""
        from .drawing import palette_image

        return palette_image(self.at_source())

    def overlay(self, image: "ImageSource", opacity: float = 0.5) -> Image.Image:
        """The image, RGB at its own size, with every class but the first in its color. `opacity`: 0..1. Raises InputError, ImageError."""
        from .drawing import overlaid

        return overlaid(image, self.at_source(), opacity)

    def draw(self, image: "ImageSource") -> Image.Image:
        """The overlay, with the names and shares of the classes below it."""
        from .drawing import segmented

        return segmented(image, self.at_source(), self.labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class FloatMap:
    """A number for each position, a depth say: `values` float32 (H, W) at the network's size. `range`: what is shown as black and as white. `unit`: theirs."""

    values: NDArray[np.float32]
    range: tuple[float, float]
    unit: str
    framing: Framing | None = None

    def at_source(self) -> NDArray[np.float32]:
        """Values at the source image's size, (H, W), bilinear; NaN where the network did not see the image, because it was cropped."""
        return self.values if self.framing is None else map_at_source(self.values, self.framing)

    def to_image(self) -> Image.Image:
        """Gray levels at the source image's size, from `range`; 0 where nothing was seen."""
        low, high = self.range
        levels = np.nan_to_num((self.at_source() - low) * (255 / (high - low)))
        return Image.fromarray(levels.clip(0, 255).round().astype(np.uint8))

    def draw(self, image: "ImageSource") -> Image.Image:
        """The map in colors, from dark to light, with its range and unit below it."""
        from .drawing import colored_map

        return colored_map(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Values:
    """Named numbers and named points of one image, and the outputs that have no names.

    `values`: name -> number. `points`: name -> (x, y) in pixels of the source image as it is shown upright. `units`: name -> unit of its value, if it has
    one. `arrays`: by output, the rest.
    """

    values: Mapping[str, float]
    points: Mapping[str, tuple[float, float]]
    units: Mapping[str, str]
    arrays: Mapping[str, NDArray[Any]]

    def draw(self, image: "ImageSource") -> Image.Image:
        """The image with its points, and the values below it."""
        from .drawing import pointed

        return pointed(image, self)


Answer = Prediction | Detections | Segmentation | FloatMap | Values | Image.Image | NDArray[np.float32]


def label_of(index: int, labels: Sequence[str]) -> str:
    """Classes without labels are named by their index."""
    return labels[index] if labels else str(index)


def as_image(pixels: NDArray[np.uint8]) -> Image.Image:
    """uint8 (H, W, C) -> a PIL image."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
