"""The data set `scenes`: handwritten digits of several sizes, scattered over photographs. Their boxes and their masks are known exactly.

Digits and photographs ship inside scikit-learn. Held-out scenes have digits of other writers, on another photograph.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeport_runtime.average_precision import TrueBoxes

Photo = NDArray[np.uint8]
Item = TypeVar("Item")

SCENE_PX = 128
SMALLEST_PX, LARGEST_PX = 20, 56  # of a digit's height
MOST_DIGITS = 5
MOST_TURN_RAD, MOST_SHEAR, MOST_STRETCH = 0.2, 0.2, 0.12
INK = 0.35  # of a glyph's opacity, from which on a pixel belongs to the digit
CONTRAST = 90  # levels between a digit and the photograph below it, at least


@dataclass(frozen=True, kw_only=True)
class Scene:
    """`image`: uint8 (H, W, 3). `boxes`: in pixels, with the digits as classes. `mask`: uint8 (H, W), 1 where a digit is, 0 elsewhere."""

    image: Photo
    boxes: TrueBoxes
    mask: NDArray[np.uint8]


class Made(Sequence[Item]):
    """`count` items, each made by `make(index)` when it is first asked for, and kept."""

    def __init__(self, count: int, make: Callable[[int], Item]) -> None:
        self._made: list[Item | None] = [None] * count
        self._make = make

    def __len__(self) -> int:
        return len(self._made)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # raises IndexError, as a sequence does
        made = self._made[place]
        if made is None:
            made = self._made[place] = self._make(place)
        return made


def scenes(glyphs: NDArray[np.uint8], digits: NDArray[np.int64], photo: Photo, count: int, *, seed: int, varied: bool) -> Made[Scene]:
    """`count` scenes. The same seed gives the same scenes.

    `glyphs`: (n, 8, 8), opacity 0..255, of the digits `digits` (n,). `photo`: squares of it are the ground. `varied`: its channels change places and some
    are inverted, so that one photograph stands for many; digits are turned, sheared and stretched a little, so that few writers stand for many.
    """

    def make(index: int) -> Scene:
        draw = np.random.default_rng([seed, index])
        return _scene(glyphs, digits, _ground(photo, draw, varied), draw, varied)

    return Made(count, make)


def _ground(photo: Photo, draw: np.random.Generator, varied: bool) -> Photo:
    """A square of the photograph, of one to two times SCENE_PX, mirrored at random, at SCENE_PX."""
    side = int(draw.integers(SCENE_PX, 2 * SCENE_PX))
    top, left = (int(draw.integers(size - side + 1)) for size in photo.shape[:2])
    square = photo[top : top + side, left : left + side]
    square = square[:, :: -1 if draw.random() < 0.5 else 1]
    if varied:
        square = square[:, :, draw.permutation(3)]
        square = np.where(draw.integers(0, 2, 3).astype(bool), 255 - square, square).astype(np.uint8)
    return np.array(Image.fromarray(np.ascontiguousarray(square)).resize((SCENE_PX, SCENE_PX), Image.Resampling.BILINEAR))


def _scene(glyphs: NDArray[np.uint8], digits: NDArray[np.int64], ground: Photo, draw: np.random.Generator, varied: bool) -> Scene:
    image, mask = ground.astype(np.float32), np.zeros(ground.shape[:2], np.uint8)
    boxes: list[list[int]] = []
    classes: list[int] = []
    for place, glyph, digit in _placed(glyphs, digits, draw, varied):
        top, left = place
        if any(_overlap(box, (left, top, left + glyph.shape[1], top + glyph.shape[0])) for box in boxes):
            continue
        area = np.s_[top : top + glyph.shape[0], left : left + glyph.shape[1]]
        share = glyph.astype(np.float32)[:, :, None] / 255
        image[area] = image[area] * (1 - share) + _ink(image[area], draw) * share
        inked = share[:, :, 0] >= INK
        mask[area][inked] = 1
        if not inked.any():
            continue
        rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
        boxes.append([left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1])
        classes.append(digit)
    found = TrueBoxes.of((np.array(boxes, np.float32).reshape(-1, 4), np.array(classes, np.int64)), "a scene")
    return Scene(image=image.round().astype(np.uint8), boxes=found, mask=mask)


def _placed(glyphs: NDArray[np.uint8], digits: NDArray[np.int64], draw: np.random.Generator, varied: bool) -> Iterator[tuple[tuple[int, int], Photo, int]]:
    """Digits at random places, at sizes whose logarithm is even; one in ten scenes has none."""
    wanted = 0 if draw.random() < 0.1 else int(draw.integers(1, MOST_DIGITS + 1))
    for _ in range(wanted):
        chosen = int(draw.integers(len(glyphs)))
        side = round(float(np.exp(draw.uniform(np.log(SMALLEST_PX), np.log(LARGEST_PX)))))
        glyph = Image.fromarray(glyphs[chosen]).resize((side, side), Image.Resampling.BICUBIC)
        glyph = _turned(glyph, draw) if varied else glyph
        yield (int(draw.integers(SCENE_PX - side + 1)), int(draw.integers(SCENE_PX - side + 1))), np.array(glyph), int(digits[chosen])


def _turned(glyph: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Turned, sheared and stretched around its middle, by as much as handwriting is."""
    turn, shear = draw.uniform(-MOST_TURN_RAD, MOST_TURN_RAD), draw.uniform(-MOST_SHEAR, MOST_SHEAR)
    wide, high = draw.uniform(1 - MOST_STRETCH, 1 + MOST_STRETCH, 2)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.array([[1 / wide, shear], [0, 1 / high]])
    middle = np.array([glyph.width, glyph.height]) / 2
    shift = middle - matrix @ middle
    rows = (*matrix[0], shift[0], *matrix[1], shift[1])
    return glyph.transform(glyph.size, Image.Transform.AFFINE, tuple(map(float, rows)), Image.Resampling.BICUBIC)


def _overlap(box: list[int], other: tuple[int, int, int, int]) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def _ink(ground: NDArray[np.float32], draw: np.random.Generator) -> NDArray[np.float32]:
    """A color that stands out from the ground: lighter or darker by CONTRAST at least."""
    mean = float(ground.mean())
    low, high = max(0.0, mean - CONTRAST), min(255.0, mean + CONTRAST)
    lighter = draw.random() < 0.5 if low > 20 and high < 235 else mean < 128
    level = draw.uniform(high, 255) if lighter else draw.uniform(0, low)
    return np.clip(level + draw.uniform(-40, 40, 3), 0, 255).astype(np.float32)
