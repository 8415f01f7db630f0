"""Networks by hand, in numpy: a blur of a known radius, a halving, an upscaling, a global mean, scores for classes."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from edgeport_runtime import Contract, InputError, Pixels, Segmentation, load
from edgeport_runtime.axes import Range
from edgeport_runtime.contract import Output, image_to_image
from edgeport_runtime.image_limits import LIMITS
from edgeport_runtime.tiling import TiledModel, Tiling

Array = NDArray[Any]


def blur(radius: int) -> Callable[[Array], Array]:
    """The mean of (2 radius + 1) squared pixels, zeros around the image: what a convolution with padding does at its border."""

    def run(x: Array) -> Array:
        padded = np.pad(x.astype(np.float64), ((0, 0), (radius, radius), (radius, radius), (0, 0)))
        sides = [sum(padded[:, d : d + x.shape[1]] for d in range(2 * radius + 1))]
        rows = sides[0]
        made = sum(rows[:, :, d : d + x.shape[2]] for d in range(2 * radius + 1))
        return np.asarray(made) / (2 * radius + 1) ** 2

    return run


def brightness(added: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The image, and what its mean makes of all pixels."""
    return lambda x: levels(x + added(x.mean((1, 2, 3), keepdims=True)))


def levels(x: Array) -> Array:
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def blocks(x: Array) -> Array:
    """Means of 4x4 blocks, each written to all of its pixels: an image that is moved by one pixel gets another answer."""
    n, h, w, c = x.shape
    return np.asarray(x.reshape(n, h // 4, 4, w // 4, 4, c).mean((2, 4)).repeat(4, 1).repeat(4, 2))


class ByHand:
    """A model whose network is a function of uint8 (N, H, W, C)."""

    def __init__(self, contract: Contract, network: Callable[[Array], Array]) -> None:
        self.contract, self.network, self.largest, self.image_limits = contract, network, 0, LIMITS

    def raw(self, pixels: Any, /) -> dict[str, Array]:
        self.contract.require_arrays({"pixels": pixels})
        self.largest = max(self.largest, pixels.size)
        return {self.contract.outputs[0].name: self.network(pixels)}


def images(step: int = 1, high: int = 64) -> Contract:
    return image_to_image(
        Pixels(height=32, width=32, resize="keep"),
        {"batch": Range(low=1, high=4), "height": Range(low=4, high=high, step=step), "width": Range(low=4, high=high, step=step)},
    )


def scores(classes: int = 3) -> Contract:
    contract = images()
    output = Output(name="scores", kind="tensor", dtype="float32", shape=("batch", classes, "height", "width"))
    return replace(contract, task="segmentation", outputs=(output,), labels=("sky", "sea", "land"))


def photo(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("radius", [0, 1, 3, 6])
def test_the_reach_is_the_radius(radius: int) -> None:
    tiled = TiledModel(ByHand(images(), lambda x: levels(blur(radius)(x))), 32)
    assert (tiled.tiling.reach_px, tiled.tiling.alignment_px, tiled.tiling.scale) == (radius, 1, 1)


@pytest.mark.parametrize("size", [(100, 75), (32, 200), (5, 70), (33, 32), (64, 64), (4, 4)])
@pytest.mark.parametrize("radius", [0, 2, 5])
def test_tiles_give_what_the_whole_image_gives(size: tuple[int, int], radius: int) -> None:
    network = blur(radius)
    model = ByHand(images(), lambda x: levels(network(x)))
    image = photo(*size)
    answer = np.asarray(TiledModel(model, 32)(image))
    assert answer.shape == (*size, 3) and np.array_equal(answer, levels(network(image[None]))[0])
    assert model.largest == 32 * 32 * 3  # never more than a tile


def test_tiles_of_a_network_that_halves_its_maps_meet_its_grid() -> None:
    tiled = TiledModel(ByHand(images(step=4), lambda x: levels(blur(2)(blocks(x)))), 32)
    assert tiled.tiling.alignment_px == 4
    image = photo(96, 120)
    assert np.array_equal(np.asarray(tiled(image)), levels(blur(2)(blocks(image[None])))[0])


def test_tiles_of_a_network_of_stride_3() -> None:
    tiled = TiledModel(ByHand(images(), lambda x: x[:, ::3, ::3].repeat(3, 1).repeat(3, 2)[:, : x.shape[1], : x.shape[2]]), 30)
    image = photo(90, 99)
    assert tiled.tiling.alignment_px == 3
    assert np.array_equal(np.asarray(tiled(image)), image[::3, ::3].repeat(3, 0).repeat(3, 1))


def test_a_grid_that_the_contract_does_not_name_is_measured() -> None:
    tiled = TiledModel(ByHand(images(), lambda x: levels(blocks(x))), 32)
    assert tiled.tiling.alignment_px == 4
    image = photo(98, 121)  # no multiples of 4: the last rows and columns are continued by their edge
    answer = np.asarray(tiled(image))
    padded = np.pad(image, ((0, 2), (0, 3), (0, 0)), mode="edge")
    assert np.array_equal(answer, levels(blocks(padded[None]))[0, :98, :121])


@pytest.mark.parametrize(("scale", "network"), [(2, lambda x: x.repeat(2, 1).repeat(2, 2)), (Fraction(1, 4), lambda x: x[:, ::4, ::4])])
def test_outputs_of_another_size(scale: Fraction, network: Callable[[Array], Array]) -> None:
    tiled = TiledModel(ByHand(images(step=4), lambda x: levels(network(blur(1)(x)))), 32)
    image = photo(80, 132)
    answer = np.asarray(tiled(image))
    assert tiled.tiling.scale == scale and np.array_equal(answer, levels(network(blur(1)(image[None])))[0])


def test_segmentation() -> None:
    def network(x: Array) -> Array:
        return np.moveaxis(blur(2)(x), -1, 1).astype(np.float32)

    image = photo(70, 90)
    answer = TiledModel(ByHand(scores(), network), 32)(image)
    assert isinstance(answer, Segmentation) and answer.labels == ("sky", "sea", "land")
    assert np.array_equal(answer.classes, network(image[None])[0].argmax(0))


def with_a_class_that_never_comes(x: Array) -> Array:
    """Scores minus their mean over the whole image, and a class whose score is far below: its size must not hide the others' change."""
    two = blur(1)(x)[..., :2] / 255
    two = two - two.mean((1, 2), keepdims=True)
    return np.moveaxis(np.concatenate([two, np.full_like(two[..., :1], -1e4)], -1), -1, 1).astype(np.float32)


def test_a_class_that_never_comes_hides_nothing() -> None:
    with pytest.raises(InputError, match="depends on pixels 16 px away and more"):
        TiledModel(ByHand(scores(), with_a_class_that_never_comes), 32)


@pytest.mark.parametrize(
    ("network", "tile_px", "message"),
    [
        (lambda x: levels(x + x.mean((1, 2), keepdims=True) - 128), 32, "depends on pixels 16 px away and more"),
        (brightness(lambda mean: np.maximum(mean - 200, 0)), 32, "depends on pixels 16 px away and more"),
        (brightness(lambda mean: np.minimum(mean - 20, 0)), 32, "depends on pixels 16 px away and more"),
        (brightness(lambda mean: -9 * (mean == 255)), 32, "depends on pixels 16 px away and more"),
        (brightness(lambda mean: 9 * (mean == 0)), 32, "depends on pixels 16 px away and more"),
        (lambda x: levels(x + x.std((1, 2, 3), keepdims=True) / 8), 32, "depends on pixels 16 px away and more"),
        (brightness(lambda mean: 9 * ((mean > 120) & (mean < 135))), 32, "depends on pixels 16 px away and more"),
        (lambda x: levels(blur(14)(x)), 32, "tiles of 32 px are too small for this model: an answer depends on pixels up to 14 px away"),
        (lambda x: levels(x + 60 * np.sin(np.arange(x.shape[1]) / 7)[:, None, None]), 32, "another answer at another place"),
        (lambda x: levels(x / 2 + np.arange(x.shape[2])[:, None] / 8), 32, "another answer at another place"),  # 0.1 levels a pixel
        (lambda x: levels(x / 2 + np.arange(x.shape[1])[:, None, None] // 20 * 3), 32, "another answer at another place"),
        (lambda x: x[:, 1:-1, 1:-1], 30, None),
        (lambda x: x[:, 1:], 32, "its answer for 32x32 px is 31x32 positions"),
        (levels, 65, "tiles of 65 px: this model takes sides of 4..64 px"),
        (levels, 0, "a whole number above 0, got 0"),
        (levels, 8.5, "a whole number above 0, got 8.5"),
    ],
)
def test_tiles_that_would_show_seams_are_refused(network: Callable[[Array], Array], tile_px: int, message: str | None) -> None:
    if message is None:
        message = "this model cannot run in tiles"
    with pytest.raises(InputError) as caught:
        TiledModel(ByHand(images(), network), tile_px)
    assert message in str(caught.value)


def test_an_answer_that_changes_slowly_with_the_place_is_refused() -> None:
    with pytest.raises(InputError, match=r"tiles of 400 px: the same pixels get another answer .* at offsets of 1, 2, 3, 4, 6"):
        TiledModel(ByHand(images(high=512), lambda x: levels(x / 2 + np.arange(x.shape[2])[:, None] / 120)), 400)


def test_the_size_that_a_refusal_names_is_taken() -> None:
    model = ByHand(images(high=256), lambda x: levels(blur(14)(x)))
    with pytest.raises(InputError, match="take tiles of 40 px or more"):
        TiledModel(model, 32)
    TiledModel(model, 40)


@settings(max_examples=60, deadline=None)
@given(tile=st.integers(8, 64), reach=st.integers(0, 12), alignment=st.sampled_from([1, 2, 4]), more=st.integers(0, 60), denominator=st.sampled_from([1, 2, 4]))
def test_spans_cover_a_side_once_and_keep_the_reach(tile: int, reach: int, alignment: int, more: int, denominator: int) -> None:
    tile, alignment = 4 * tile, max(alignment, denominator)
    tiling = Tiling(tile_px=tile, reach_px=reach, alignment_px=alignment, scale=Fraction(1, denominator))
    side = tile + alignment * more
    spans = tiling.spans(side)
    assert [span[1] for span in spans] == [0, *(span[2] for span in spans[:-1])] and spans[-1][2] == side
    for offset, first, last in spans:
        assert offset % alignment == 0 and offset + tile <= side and first % denominator == 0
        assert first == 0 or first - offset >= reach - denominator + 1
        assert last == side or offset + tile - last >= reach


def test_a_stored_bundle(generator: Path) -> None:
    model = load(generator)
    image = Image.effect_noise((60, 50), 60).convert("RGB")
    whole = np.asarray(model(image)).astype(int)
    answer = model(image, tile_px=32)
    assert np.abs(np.asarray(answer).astype(int) - whole).max() <= 1
    assert model(Image.effect_noise((500, 90), 60).convert("RGB"), tile_px=32).size == (500, 90)  # type: ignore[union-attr]


def test_errors_keep_their_place(generator: Path) -> None:
    answers = load(generator).batch([photo(40, 40), b"no image", photo(300, 20)], tile_px=32, errors="return")
    assert [type(each).__name__ for each in answers] == ["Image", "ImageError", "Image"]
    with pytest.raises(InputError, match="leave size_px out, or tile_px"):
        load(generator).batch([photo(40, 40)], tile_px=32, size_px=(32, 32))
