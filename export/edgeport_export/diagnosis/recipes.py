"""The recipe of a pipeline that is only known as a function, and where it differs from a contract.

Images of one color tell the normalization to the last digit: what black and white become gives mean and std of each channel, and a red image tells the order
of the channels. The way of resizing is found by trying: of all candidates the one whose pixels come nearest to the pipeline's, in levels of 0..255.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from edgeport_export.errors import ExportError
from edgeport_export.network.size_sweep import random_image
from edgeport_runtime import Pixels
from edgeport_runtime.images import fit
from edgeport_runtime.pixels import Interpolation

from .pipelines import Pipeline

Levels = NDArray[np.float64]
MOST_CUT = 1.35  # times the network's size that the shorter side may have before the crop; recipes go up to 1.14
INTERPOLATIONS: tuple[Interpolation, ...] = ("bilinear", "bicubic", "lanczos", "nearest")
ALIASED = ("bilinear", "bicubic")  # of these torch has a form that skips pixels when it shrinks an image
LEAST_LEVELS = 0.7  # root mean square: what two ways of rounding explain
UNEXPLAINED = 2.0  # root mean square from the recipe that fits best: it does something else
CLEARLY_BETTER = 0.6  # of the contract's own distance, for another way of resizing to be named
SAME = 1e-3  # of a std, and of the range 0..1 for a mean


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a pipeline does. `pixels`: as a contract describes it. `antialias`: whether pixels are averaged when an image shrinks. `bgr`: whether the first
    channel is blue. `levels_apart`: root mean square of the distance from the pipeline's own pixels, in levels of 0..255."""

    pixels: Pixels
    antialias: bool = True
    bgr: bool = False
    levels_apart: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RecipeComparison:
    """A contract beside a pipeline. `differences`: in words; True if there are none. `fitted`: the recipe that fits best. `levels_apart`: of the contract's
    own pixels from the pipeline's."""

    pipeline: str
    differences: tuple[str, ...]
    fitted: Recipe
    levels_apart: float

    def __bool__(self) -> bool:
        return not self.differences

    def __str__(self) -> str:
        apart = f"{self.levels_apart:.2f} levels from the contract's" if np.isfinite(self.levels_apart) else "of another size than the contract's"
        head = f"{self.pipeline}: its pixels are {apart}"
        if self:
            return f"{head}; nothing in the recipe differs"
        return "\n".join([f"FAILED {head}; the recipes differ", *(f"  {each}" for each in self.differences)])


def probe_images(pixels: Pixels) -> list[Image.Image]:
    """Images of waves and grain, upright and lying, some three times as large as the network's: smooth or small ones cannot tell one filter from another."""
    generator = np.random.default_rng(0)
    sizes = [(round(a * pixels.height), round(b * pixels.width)) for a, b in ((2.6, 3.7), (3.4, 2.3))]
    return [Image.fromarray(random_image((1, height, width, 3), generator)[0]) for height, width in sizes]


def compare_recipe(pipeline: Pipeline, pixels: Pixels, images: Sequence[Image.Image] | None = None) -> RecipeComparison:
    """`images`: in color, at sizes of their own, larger than the network's; `probe_images` if left out.

    Raises ExportError if the pipeline fails, or gives two answers for one image.
    """
    images = probe_images(pixels) if images is None else images
    if not np.array_equal(pipeline(images[0]), pipeline(images[0])):
        raise ExportError(f"the pipeline {pipeline.name} gives two answers for one image: name that of evaluation, without random crops or flips")
    mean, std, bgr = normalization(pipeline, pixels)
    found = [pipeline(image) for image in images]
    targets = [_levels(each, mean, std, bgr=bgr) for each in found]
    height, width = targets[0].shape[:2]
    named: dict[str, Any] = {"height": height, "width": width, "mean": mean, "std": std}
    own = _distance(Recipe(pixels=pixels), images, targets)
    if pixels.resize == "keep" and np.isfinite(own):  # every image has its own size on both sides
        named = {"mean": mean, "std": std}
    contracts_way = _distance(Recipe(pixels=replace(pixels, **named)), images, targets)
    fitted = Recipe(pixels=replace(pixels, **named), bgr=bgr, levels_apart=contracts_way)
    if contracts_way > LEAST_LEVELS:
        best = min(_candidates(fitted.pixels, images, targets), key=lambda recipe: recipe.levels_apart)
        fitted = replace(best, bgr=bgr) if best.levels_apart < CLEARLY_BETTER * contracts_way else fitted
    differences = [*_differences(pixels, fitted)]
    if not fitted.levels_apart <= UNEXPLAINED:
        differences.append(
            f"the pixels lie {fitted.levels_apart:.1f} levels apart, and no rule, filter or size that is known explains it: something else is done to an image"
        )
    return RecipeComparison(pipeline=pipeline.name, differences=tuple(differences), fitted=fitted, levels_apart=own)


def normalization(pipeline: Pipeline, pixels: Pixels) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Mean and std for pixels in 0..1, in the contract's own order of channels, and whether the pipeline has the order turned.

    Raises ExportError if what becomes of a level is no straight line."""
    size = (2 * pixels.width, 2 * pixels.height)

    def center(color: tuple[int, int, int]) -> NDArray[np.float64]:
        made = pipeline(Image.new("RGB", size, color))
        return made[:, made.shape[1] // 2, made.shape[2] // 2].astype(np.float64)

    black, gray, white = (center((level,) * 3) for level in (0, 102, 255))
    slope = (white - black) / 255
    if not (slope > 0).all() or not np.allclose(gray, black + 102 * slope, atol=0.02 * float(np.abs(white - black).max())):
        raise ExportError(f"the pipeline {pipeline.name} does not normalize with a mean and a std, so its recipe cannot be told")
    red = (center((255, 0, 0)) - black) / slope
    bgr = len(red) == 3 and int(red.argmax()) == 2
    std, mean = 1 / (255 * slope), -black / slope / 255
    order = slice(None, None, -1 if bgr else 1)
    return tuple(_rounded(each) for each in mean[order]), tuple(_rounded(each) for each in std[order]), bgr


def _rounded(value: float) -> float:
    return round(float(value), 5) + 0.0  # no -0.0


def _levels(made: NDArray[np.float32], mean: Sequence[float], std: Sequence[float], *, bgr: bool) -> Levels:
    """The pipeline's tensor back in levels, (H, W, C), in RGB."""
    ordered = made[::-1] if bgr else made
    levels: Levels = 255 * (ordered.astype(np.float64).transpose(1, 2, 0) * np.array(std) + np.array(mean))
    return levels


def _distance(recipe: Recipe, images: Sequence[Image.Image], targets: Sequence[Levels]) -> float:
    """Root mean square in levels; infinite if the sizes differ."""
    squares, count = 0.0, 0
    for image, target in zip(images, targets, strict=True):
        made = _made(recipe, image)
        if made.shape != target.shape:
            return float("inf")
        squares += float(np.square(made - target).sum())
        count += made.size
    return float(np.sqrt(squares / count))


def _made(recipe: Recipe, image: Image.Image) -> Levels:
    pixels = recipe.pixels
    image = image.convert(pixels.mode)
    if recipe.antialias:
        array = np.array(fit(image, pixels, pixels.height, pixels.width)).astype(np.float64)
        return array if array.ndim == 3 else array[:, :, None]
    return _aliased(image, pixels)


def _aliased(image: Image.Image, pixels: Pixels) -> Levels:
    """What torch's interpolation makes without antialias: it looks at two (or four) pixels on each axis, however much the image shrinks."""
    height, width = pixels.height, pixels.width
    size = (height, width)
    if pixels.resize == "crop":
        shorter = pixels.resize_shorter_px or min(size)
        longer = int(shorter * max(image.size) / min(image.size))
        size = (longer, shorter) if image.width <= image.height else (shorter, longer)
    array = np.array(image).astype(np.float32)
    tensor = torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)[None]
    made: NDArray[np.float32] = F.interpolate(tensor, size, mode=pixels.interpolation, align_corners=False)[0].permute(1, 2, 0).numpy()
    top, left = max(0, round((made.shape[0] - height) / 2)), max(0, round((made.shape[1] - width) / 2))
    return np.clip(made[top : top + height, left : left + width], 0, 255).astype(np.float64)


def _candidates(pixels: Pixels, images: Sequence[Image.Image], targets: Sequence[Levels]) -> Iterator[Recipe]:
    """The rule is looked for first, on one image, then the filter with that rule, so that not every pair has to be tried."""
    rules = [replace(pixels, resize="stretch", resize_shorter_px=None), replace(pixels, resize="letterbox", resize_shorter_px=None)]
    side = min(pixels.height, pixels.width)
    shorter = {pixels.resize_shorter_px or side, *range(side, int(MOST_CUT * side) + 1)}
    rules += [replace(pixels, resize="crop", resize_shorter_px=size) for size in sorted(shorter)]
    rule = min(rules, key=lambda each: _distance(Recipe(pixels=each), images[:1], targets[:1]))
    for interpolation in INTERPOLATIONS:
        for antialias in (True, False):
            if antialias or (interpolation in ALIASED and rule.resize != "letterbox"):
                yield _measured(Recipe(pixels=replace(rule, interpolation=interpolation), antialias=antialias), images, targets)


def _measured(recipe: Recipe, images: Sequence[Image.Image], targets: Sequence[Levels]) -> Recipe:
    return replace(recipe, levels_apart=_distance(recipe, images, targets))


def _differences(pixels: Pixels, fitted: Recipe) -> Iterator[str]:
    other = fitted.pixels
    for name, scale in (("mean", 1.0), ("std", min(pixels.std))):
        ours, theirs = getattr(pixels, name), getattr(other, name)
        if len(ours) != len(theirs) or any(abs(a - b) > SAME * scale for a, b in zip(ours, theirs, strict=True)):
            yield _told(name, ours, theirs) + _range_told(name, ours, theirs)
    if fitted.bgr:
        order = "the channel order is red, green, blue in the contract, blue, green, red in the pipeline, as OpenCV has it"
        yield f"{order}: turn the first layer's channels"
    if (pixels.height, pixels.width) != (other.height, other.width):
        yield _told("size", f"{pixels.height}x{pixels.width}", f"{other.height}x{other.width}")
    if (pixels.resize, pixels.resize_shorter_px) != (other.resize, other.resize_shorter_px):
        yield _told("resize", _rule(pixels), _rule(other))
    if pixels.interpolation != other.interpolation:
        yield _told("interpolation", pixels.interpolation, other.interpolation)
    if not fitted.antialias:
        yield "antialias: the contract averages pixels when an image shrinks, the pipeline skips them; pass antialias=True there, or train again with it"


def _told(name: str, ours: Any, theirs: Any) -> str:
    return f"{name} is {ours} in the contract, {theirs} in the pipeline"


def _range_told(name: str, ours: Sequence[float], theirs: Sequence[float]) -> str:
    if name == "std" and any(b > 0 and (a / b > 20 or b / a > 20) for a, b in zip(ours, theirs, strict=False)):
        return "; the value range differs: one of them is for levels of 0..255, the other for 0..1"
    return ""


def _rule(pixels: Pixels) -> str:
    return f"crop:{pixels.resize_shorter_px}" if pixels.resize == "crop" else pixels.resize
