"""From anything that holds an image to the uint8 pixels of a contract.

The only preprocessing there is: training, calibration, parity and the device all call `prepare`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .contract import Contract
from .decoding import ImageSource, convert, decode, describe, in_rgb
from .errors import ImageError, InputError
from .framing import Framing
from .image_limits import LIMITS, ImageLimits
from .pixels import Pixels
from .regular_files import what_is
from .threads import usable_threads

Pixel = NDArray[np.uint8]
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LARGEST_RESIZED_PX = 12_000_000  # 48 MB in Pillow
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def fit(image: Image.Image, pixels: Pixels, height: int, width: int) -> Image.Image:
    """Resize, crop or pad to height x width as the contract's rule says; "keep" leaves the image alone."""
    resample = FILTERS[pixels.interpolation]
    if pixels.resize == "keep":
        return image
    framing = Framing.of((image.height, image.width), pixels, (height, width))
    scaled = _resized(image, framing.scaled_px[::-1], resample)
    if pixels.resize == "crop":  # black where the image is too small, as torchvision's CenterCrop
        return scaled.crop((-framing.left, -framing.top, width - framing.left, height - framing.top))
    if pixels.resize == "letterbox":
        page = Image.new(image.mode, (width, height), (pixels.fill,) * pixels.channels if pixels.channels > 1 else pixels.fill)
        page.paste(scaled, (framing.left, framing.top))
        return page
    return scaled


def _resized(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """`image.resize(size)`, unless a strip would take memory out of all proportion: 60000x2 pixels with a shorter side of 256 are 7.7 million by 256.

    Pillow changes the width first, so what lies in between has the new width and the old height. Raises ImageError.
    """
    width, height = size
    largest = max(width * height, width * image.height)
    if largest > max(LARGEST_RESIZED_PX, 2 * image.width * image.height):
        raise ImageError(
            f"an image of {image.width}x{image.height} pixels (WxH) would be {largest:,} pixels on the way to the network's size, more than "
            f"{LARGEST_RESIZED_PX:,}; cut it into pieces that are less narrow"
        )
    return image.resize(size, resample)


def are_several(sources: Any) -> bool:
    """Whether these are images in a row: no single file, and no array of one image, whose rows would be taken for gray images of their own."""
    if isinstance(sources, np.ndarray) or (hasattr(sources, "__array__") and hasattr(sources, "shape")):  # a tensor, too
        return len(sources.shape) not in (0, 2) and not (len(sources.shape) == 3 and sources.shape[2] in (1, 3, 4))
    return isinstance(sources, Iterable) and not isinstance(sources, str | bytes | bytearray | Path)


def kind_of(sources: Any) -> str:
    """What to call something else than several images in a message."""
    return f"an array of shape {tuple(sources.shape)}" if hasattr(sources, "shape") else f"one {type(sources).__name__}"


def prepare(source: ImageSource, pixels: Pixels, size_px: tuple[int, int] | None = None, limits: ImageLimits = LIMITS) -> Pixel:
    """Decode, convert and fit one image: uint8 (height, width, channels), values in 0..255.

    `size_px`: (height, width) instead of the contract's. Raises ImageError.
    """
    return prepared(source, pixels, size_px, limits).pixels


class Prepared(NamedTuple):
    """`pixels`: uint8 (height, width, channels). `source_px`: (height, width) of the source image, upright."""

    pixels: Pixel
    source_px: tuple[int, int]


def prepared(source: ImageSource, pixels: Pixels, size_px: tuple[int, int] | None = None, limits: ImageLimits = LIMITS) -> Prepared:
    """As `prepare`, with the source's size, which leads back from the network's input to the image. Raises ImageError."""
    if size_px is not None and (pixels.resize == "keep" or min(size_px) < 1):
        reason = "keeps every image's own size" if pixels.resize == "keep" else "takes sizes from 1 pixel up"
        raise InputError(f"size_px is {size_px}, but this model {reason}: leave size_px out")
    height, width = size_px or (pixels.height, pixels.width)
    if isinstance(source, np.ndarray) and is_prepared(source, replace(pixels, height=height, width=width)):
        return Prepared(source.copy(), source.shape[:2])
    image = decode(source, limits)
    if not image.width or not image.height:
        raise ImageError(f"{describe(source)}: the image has no pixels")
    try:
        array = np.array(fit(convert(image, pixels.mode), pixels, height, width), dtype=np.uint8)
    except ImageError as error:
        raise ImageError(f"{describe(source)}: {error}") from error
    except MemoryError as error:
        raise ImageError(f"{describe(source)}: there is not enough memory to bring it to {height}x{width} pixels (HxW)") from error
    return Prepared(array if array.ndim == 3 else array[:, :, np.newaxis], (image.height, image.width))


def is_prepared(array: NDArray[Any], pixels: Pixels) -> bool:
    """Whether an array is pixels of the contract's own size and mode, so that every step would leave it as it is."""
    same_size = pixels.resize == "keep" or (pixels.resize in ("stretch", "letterbox") and array.shape[:2] == (pixels.height, pixels.width))
    return array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == pixels.channels and 0 not in array.shape and same_size


def prepare_target(source: ImageSource, pixels: Pixels, shape: tuple[int, int, int], limits: ImageLimits = LIMITS) -> Pixel:
    """The image that an output of `shape` (H, W, C) should be, fitted by the contract's rule to that size: uint8. "keep" leaves its size alone."""
    height, width, channels = shape
    mode: Literal["L", "RGB"] = "L" if channels == 1 else "RGB"
    fitted = fit(convert(decode(source, limits), mode), replace(pixels, mode=mode, mean=(0.0,) * channels, std=(1.0,) * channels), height, width)
    array = np.array(fitted, dtype=np.uint8)
    return array if array.ndim == 3 else array[:, :, np.newaxis]


def prepare_mask(source: ImageSource, pixels: Pixels, size_px: tuple[int, int], limits: ImageLimits = LIMITS) -> NDArray[np.int64]:
    """The classes of positions, (H, W), from a palette or gray image or an integer array (H, W), fitted by the contract's rule with nearest.

    A palette image holds its indices. Where letterbox pads, the class is 255, which counts for nothing. Raises ImageError for an image in color.
    """
    if isinstance(source, np.ndarray) and source.ndim == 2 and source.dtype.kind in "iu":
        source = source.astype(np.uint8) if source.size and 0 <= source.min() <= source.max() <= 255 else source
    image = decode(source, limits)
    if image.mode not in ("L", "P", "1"):
        raise ImageError(f"{describe(source)}: expected a mask, a gray or palette image whose values are classes, got an image of mode {image.mode}")
    indices = Image.fromarray(np.array(image, dtype=np.uint8))
    rule = replace(pixels, mode="L", mean=(0.0,), std=(1.0,), interpolation="nearest", fill=255)
    return np.array(fit(indices, rule, *size_px)).astype(np.int64)


def require_size(size_px: tuple[int, ...], contract: Contract, name: str) -> None:
    """Refuse a (height, width) outside what the contract promises. Raises ImageError naming the image."""
    sides = contract.inputs[0].shape[1:3]
    for axis, size in zip(sides, size_px[:2], strict=True):
        if isinstance(axis, int) and size != axis:
            raise ImageError(f"{name}: this model takes images of {sides[0]}x{sides[1]} (HxW), got {size_px[0]}x{size_px[1]}; resize the image first")
        if isinstance(axis, str) and size not in contract.axes[axis]:
            sizes = contract.axes[axis]
            fault = "too small" if size < sizes.low else "too large" if size > sizes.high else "not a step"
            raise ImageError(f"{name}: {size} px is {fault} for the {axis} of this model ({sizes} px); resize the image first")


def stack(arrays: Sequence[Pixel]) -> Pixel:
    """Images of one size as one batch: uint8 (N, H, W, C). Raises ImageError if sizes differ."""
    if len({array.shape for array in arrays}) > 1:
        raise ImageError(f"one batch holds images of one size, got {sorted({array.shape for array in arrays})}")
    return np.stack(arrays)


class PixelBatch(NamedTuple):
    """Images of one size: `indices` of the images, `pixels` uint8 (N, H, W, C), and `sources_px`, (height, width) of each before it was fitted."""

    indices: list[int]
    pixels: Pixel
    sources_px: list[tuple[int, int]]


def pixel_batches(
    sources: Sequence[ImageSource],
    contract: Contract,
    *,
    size_px: tuple[int, int] | None = None,
    prepared_at_once: int | None = None,
    most: Callable[[int, int], int] | None = None,
    faults: dict[int, ImageError] | None = None,
    channels: str = "rgb",
    limits: ImageLimits = LIMITS,
) -> Iterator[PixelBatch]:
    """Images prepared for a contract, in batches of one size.

    `size_px`: (height, width) instead of the contract's. `prepared_at_once`: how many images are in memory; all of them if left out.
    A batch is at most as large as the contract allows, and as `most` says for (height, width). An image that cannot be read raises ImageError
    naming it, or is left out and its error put into `faults` by its index. `channels`: see `in_rgb`.
    """
    at_once = prepared_at_once or max(1, len(sources))

    def prepared_or_error(source: ImageSource) -> Prepared | ImageError:
        try:
            made = prepared(in_rgb(source, channels), contract.pixels, size_px, limits)
            require_size(made.pixels.shape, contract, describe(source))
            return made
        except ImageError as error:
            if faults is None:
                raise
            return error

    windows = [sources[start : start + at_once] for start in range(0, len(sources), at_once)]
    for number, window in enumerate(in_parallel(prepared_or_error, windows, contract.pixels)):
        made = dict(enumerate(window, number * at_once))
        arrays = {index: each for index, each in made.items() if not isinstance(each, ImageError)}
        if faults is not None:
            faults |= {index: each for index, each in made.items() if isinstance(each, ImageError)}
        indices = list(arrays)
        for same in groups_of_one_shape([arrays[index].pixels.shape for index in indices], len(sources)):
            height, width = arrays[indices[same[0]]].pixels.shape[:2]
            largest = min(contract.largest_batch, most(height, width) if most is not None else contract.largest_batch)
            for first in range(0, len(same), largest):
                group = [indices[each] for each in same[first : first + largest]]
                yield PixelBatch(group, stack([arrays[index].pixels for index in group]), [arrays[index].source_px for index in group])


def in_parallel(
    prepare_one: Callable[[ImageSource], Prepared | ImageError], windows: Sequence[Sequence[ImageSource]], pixels: Pixels
) -> Iterator[list[Prepared | ImageError]]:
    """Windows of images prepared in order; files and bytes by several threads, and the next window while a model runs on this one.

    Arrays and PIL images cost little, and images that keep their own size may be too large for two windows.
    """
    files = all(isinstance(each, str | Path | bytes) for window in windows for each in window)
    if not files or pixels.resize == "keep" or sum(map(len, windows)) < 2:
        for window in windows:
            yield [prepare_one(source) for source in window]
        return
    from concurrent.futures import ThreadPoolExecutor  # takes 10 ms, and is needed by nobody who predicts one image

    pool = ThreadPoolExecutor(usable_threads(), "edgeport-decode")
    try:
        ahead: list[Any] = []
        for window in windows:
            ahead.append([pool.submit(prepare_one, source) for source in window])
            if len(ahead) > 1:
                yield [each.result() for each in ahead.pop(0)]
        for futures in ahead:
            yield [each.result() for each in futures]
    finally:
        pool.shutdown(cancel_futures=True)


def groups_of_one_shape(shapes: Sequence[tuple[int, ...]], largest: int) -> list[list[int]]:
    """Indices of equal shapes in lists of at most `largest`, in order of first appearance."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(index)
    return [group[start : start + largest] for group in groups.values() for start in range(0, len(group), largest)]


def image_files(folder: Path, *, nested: bool = False) -> list[Path]:
    """The image files in a folder, sorted by name. `nested`: those in its folders, too. Raises InputError if there are none."""
    paths = folder.rglob("*") if nested else folder.iterdir()
    found = sorted(path for path in paths if path.suffix.lower() in SUFFIXES and not path.is_dir()) if what_is(folder) == "a folder" else []
    if not found:
        there = what_is(folder)
        came = "there are none in it" if there == "a folder" else f"this is {there}" if there else "there is no such folder"
        raise InputError(f"{folder}: expected a folder of images ({', '.join(SUFFIXES)}), but {came}")
    return found
