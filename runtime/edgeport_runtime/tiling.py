"""Images larger than a model takes: run in overlapping tiles, where that changes no answer.

A tile's borders are seen by the positions near them alone, if the network looks at a bounded neighborhood. How far it looks is measured on this
very variant. So are the offsets at which tiles may begin: a network that halves its maps gives another answer for an image that is moved by one pixel.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .axes import Range, is_whole
from .contract import Contract
from .decoding import ImageSource
from .errors import InputError
from .images import Pixel, prepare
from .model import Model
from .predictions import Answer
from .tasks import Positions, find_task

ALIGNMENTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # times the contract's step: the strides that networks have
LARGEST_SCALE = 64  # positions of the input for one of the output
DIFFERENT = 0.01  # share of values one level apart in the same neighborhood at another place: rounding moves fewer, another grid moves most
SMALLEST_CORE = 0.25  # of a tile: what is left when the overlap is taken away

Run = Callable[[Pixel], NDArray[Any]]  # uint8 (N, H, W, C) -> (N, h, w, channels)


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a model runs in tiles of `tile_px` (height and width).

    `reach_px`: how far the influence of an input pixel reaches. Tiles overlap by twice that, and begin at multiples of `alignment_px`.
    `scale`: output positions for one pixel of the input.
    """

    tile_px: int
    reach_px: int
    alignment_px: int
    scale: Fraction

    @property
    def stride_px(self) -> int:
        """From one tile to the next."""
        return (self.tile_px - 2 * self.reach_px) // self.alignment_px * self.alignment_px

    def offsets(self, side: int) -> list[int]:
        """Where tiles begin along a side of at least a tile's size, and of that size plus a multiple of the alignment."""
        return [*range(0, max(0, side - self.tile_px), self.stride_px), max(0, side - self.tile_px)]

    def spans(self, side: int) -> list[tuple[int, int, int]]:
        """For each tile along a side: its beginning, and the first and last position (exclusive) that is taken from it, in the image's pixels."""
        offsets, unit = self.offsets(side), self.scale.denominator
        cuts = [(after + before + self.tile_px) // 2 // unit * unit for before, after in pairwise(offsets)]
        return list(zip(offsets, [0, *cuts], [*cuts, side], strict=True))


def measured_tiling(contract: Contract, run: Run, tile_px: int) -> Tiling:
    """Run the model on tiles of every brightness and see how far a change reaches. Raises InputError if tiles would show seams."""
    step = _step(contract, tile_px)
    images = partial(_images, 2 * tile_px, contract.pixels.channels)
    scale, reach = _scale(run(next(images())[:, :tile_px, :tile_px]), tile_px), 0
    for image in images():
        tile = image[:, :tile_px, :tile_px]
        answer = run(tile)
        reach = max(reach, *(_reach(run, tile, answer, scale, axis, back) for axis in (1, 2) for back in (False, True)))
    if reach >= tile_px // 2:
        raise InputError(
            f"this model cannot run in tiles of {tile_px} px: an answer depends on pixels {reach} px away and more (measured), so tiles would show seams; "
            "resize the image, or export the model for larger images"
        )
    alignment = _alignment(run, images, tile_px, scale, reach, step)
    tiling = Tiling(tile_px=tile_px, reach_px=reach, alignment_px=alignment, scale=scale)
    if tiling.stride_px < max(1, SMALLEST_CORE * tile_px):
        raise InputError(
            f"tiles of {tile_px} px are too small for this model: an answer depends on pixels up to {reach} px away (measured); "
            f"take tiles of {2 * math.ceil((2 * reach + alignment) / (1 - SMALLEST_CORE) / 2)} px or more, if its range allows"
        )
    return tiling


def _images(side: int, channels: int) -> Iterator[Pixel]:
    """Images in which a change may act, (1, side, side, channels), one after another, since they may be large.

    A threshold on the brightness of a whole image is met by dark and bright ones alone.
    """
    noise = np.random.default_rng(0).integers(0, 256, (1, side, side, channels), dtype=np.uint8)
    yield noise
    yield noise // 4 + 96
    yield noise[:, ::8, ::8].repeat(8, 1).repeat(8, 2)[:, :side, :side]
    yield np.broadcast_to(np.linspace(0, 255, side)[:, None, None], noise.shape).astype(np.uint8)
    yield noise // 8
    yield 255 - noise // 8
    yield np.full_like(noise, 0)
    yield np.full_like(noise, 255)


def _step(contract: Contract, tile_px: Any) -> int:
    """The least common step of both sides. Raises InputError if the contract takes no such tile."""
    if not is_whole(tile_px) or tile_px < 1:
        raise InputError(f"tile_px is a tile's height and width in pixels, a whole number above 0, got {tile_px!r}")
    sides = [contract.axes[axis] if isinstance(axis, str) else Range(low=axis, high=axis) for axis in contract.inputs[0].shape[1:3]]
    for side in sides:
        if tile_px not in side:
            raise InputError(f"tiles of {tile_px} px: this model takes sides of {side} px")
    return math.lcm(*(side.step for side in sides))


def _scale(answer: NDArray[Any], tile_px: int) -> Fraction:
    scales = {Fraction(side, tile_px) for side in answer.shape[1:3]}
    if len(scales) > 1 or max(scales).denominator > LARGEST_SCALE:
        raise InputError(f"this model cannot run in tiles: its answer for {tile_px}x{tile_px} px is {answer.shape[1]}x{answer.shape[2]} positions")
    return scales.pop()


def _reach(run: Run, tile: Pixel, answer: NDArray[Any], scale: Fraction, axis: int, back: bool) -> int:
    """How far beyond the middle of a tile a change of everything on one side of it is seen, in pixels of the input."""
    changed, middle = tile.copy(), tile.shape[axis] // 2
    half = [slice(None)] * 4
    half[axis] = slice(middle, None) if back else slice(0, middle)
    changed[tuple(half)] = 255 - tile[tuple(half)]
    seen = np.flatnonzero(_levels_apart(run(changed), answer).max(axis=tuple(each for each in range(4) if each != axis)) >= 1)
    if not seen.size:
        return 0
    edge = int(middle * scale)
    return max(0, math.ceil((edge - int(seen.min()) if back else int(seen.max()) + 1 - edge) / scale))


def _alignment(run: Run, images: Callable[[], Iterator[Pixel]], tile_px: int, scale: Fraction, reach: int, step: int) -> int:
    """The smallest offset of ALIGNMENTS at which the same pixels get the same answer, there and as far away as the next tile begins."""
    for offset in (step * times for times in ALIGNMENTS):
        far = (tile_px - 2 * reach - 1) // offset * offset  # so that a row is left to be compared
        if (offset * scale).denominator == 1 and far >= offset and all(_repeats(run, image, tile_px, scale, reach, offset, far) for image in images()):
            return offset
    raise InputError(
        f"this model cannot run in tiles of {tile_px} px: the same pixels get another answer at another place of the image (measured), "
        f"at offsets of {', '.join(str(step * times) for times in ALIGNMENTS)} px; resize the image instead"
    )


def _repeats(run: Run, image: Pixel, tile_px: int, scale: Fraction, reach: int, offset: int, far: int) -> bool:
    """Whether tiles that begin `offset` and `far` later on both sides give the same pixels the same answer, without what their borders reach."""
    answer, kept = run(image[:, :tile_px, :tile_px]), math.ceil(reach * scale)

    def apart(later: int) -> NDArray[Any]:
        there, moved = run(image[:, later : later + tile_px, later : later + tile_px]), int(later * scale)
        inner, here = slice(kept, answer.shape[1] - kept - moved), slice(kept + moved, answer.shape[1] - kept)
        return _levels_apart(there[:, inner, inner], answer[:, here, here])

    near = apart(offset)
    return bool(near.max(initial=0) <= 1 and (near >= 1).mean() <= DIFFERENT and apart(far).max(initial=0) <= 1)


def _levels_apart(got: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """Differences in whole levels: of 0..255 for pixels. For scores, of how far a class leads, since only the best one is answered."""
    if other.dtype == np.uint8:
        return np.asarray(np.abs(got.astype(np.int16) - other))
    behind, behind_before = (scores.astype(np.float64) - scores.max(axis=-1, keepdims=True) for scores in (got, other))
    lead = -np.sort(behind_before, axis=-1)[..., -2:-1].min(initial=0.0) or 1.0  # the largest: a class that is further behind never comes first
    return np.asarray(np.floor(255 * np.abs(np.maximum(behind, -lead) - np.maximum(behind_before, -lead)) / lead))


class TiledModel:
    """A model that takes images of any size, one at a time, tile by tile."""

    def __init__(self, model: Model, tile_px: int) -> None:
        """Raises InputError if the model's task has no answer for each position, or tiles would show seams."""
        self.model, self.contract = model, model.contract
        task = find_task(self.contract.task)
        if task.positions is None:
            raise InputError(f"tiles are for models that answer each position of an image, and this one's task is {task.name!r}: leave tile_px out")
        self.positions: Positions = task.positions
        self.tiling = measured_tiling(self.contract, lambda tile: self._maps(np.ascontiguousarray(tile)), tile_px)

    def __call__(self, source: ImageSource) -> Answer:
        """The answer for one image at its own size, without resizing. Raises ImageError.

        Sides that tiles do not meet are continued by their last row or column, and the answer is cut to the image.
        """
        image = prepare(source, replace(self.contract.pixels, resize="keep", resize_shorter_px=None), limits=self.model.image_limits)
        height, width = (self._padded(side, axis) for side, axis in zip(image.shape[:2], self.contract.inputs[0].shape[1:3], strict=True))
        whole = np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), mode="edge")
        scale, canvas = self.tiling.scale, None
        for (top, first, last), (left, start, end) in self._tiles(height, width):
            tile = whole[None, top : top + self.tiling.tile_px, left : left + self.tiling.tile_px]
            part = self.positions.settle(self._maps(np.ascontiguousarray(tile)))[0]
            if canvas is None:
                canvas = np.empty((int(height * scale), int(width * scale), *part.shape[2:]), part.dtype)
            rows, columns = (slice(int(a * scale), int(b * scale)) for a, b in ((first, last), (start, end)))
            y, x = int(top * scale), int(left * scale)
            canvas[rows, columns] = part[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
        assert canvas is not None  # an image has pixels
        cut = canvas[: math.ceil(image.shape[0] * scale), : math.ceil(image.shape[1] * scale)]
        return self.positions.answer(cut, self.contract.labels)

    def _tiles(self, height: int, width: int) -> Iterator[tuple[tuple[int, int, int], tuple[int, int, int]]]:
        return ((rows, columns) for rows in self.tiling.spans(height) for columns in self.tiling.spans(width))

    def _maps(self, pixels: Pixel) -> NDArray[Any]:
        return self.positions.maps(self.model.raw(pixels)[self.contract.outputs[0].name])

    def _padded(self, side: int, axis: int | str) -> int:
        """The side as tiles need it: a tile and whole alignments, or, below a tile's size, the next size that the contract promises."""
        tile, alignment = self.tiling.tile_px, self.tiling.alignment_px
        if side >= tile:
            return tile + math.ceil((side - tile) / alignment) * alignment
        sizes = self.contract.axes[axis] if isinstance(axis, str) else Range(low=axis, high=axis)
        return sizes.low + max(0, math.ceil((side - sizes.low) / sizes.step)) * sizes.step
