"""The first convolution on four pixels at a time: held to PyTorch in float64 on images that are padded by hand."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeport_export.quantization.qdq import preprocess
from edgeport_export.rewrites.graph import PassResult
from edgeport_export.rewrites.int8_graph.column_quads import QuadStem, column_quads
from edgeport_export.rewrites.int8_graph.width_branches import width_branches
from edgeport_export.tracing.exporter import trace
from edgeport_runtime import Contract, Pixels, Range
from edgeport_runtime.contract import Output, pixel_input

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]
Run = Callable[[onnx.ModelProto, np.ndarray], np.ndarray]
Truth = Callable[[nn.Conv2d, Pixels, np.ndarray], np.ndarray]
COLOR = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
EVEN = {"mean": (0.4, 0.4, 0.4), "std": (0.2, 0.25, 0.3)}
GRAY = {"mode": "L", "mean": (0.2,), "std": (0.5,)}
FILTERS = 12


def contract(pixels: Pixels, step: int = 1) -> Contract:
    """Any height; widths from 16 to 64 by `step`, or one fixed width if it is 0."""
    output = Output(name="maps", dtype="float32", shape=("batch", FILTERS, "?", "?"), kind="tensor")
    axes = {"batch": Range(low=1, high=4), "height": Range(low=16, high=64), "width": Range(low=16, high=64, step=step)}
    image = pixel_input(pixels)
    if not step:
        axes, image = {"batch": axes["batch"]}, replace(image, shape=("batch", pixels.height, pixels.width, pixels.channels))
    return Contract(task="tensors", inputs=(image,), outputs=(output,), axes=axes)


def graph(network: nn.Module, described: Contract) -> onnx.ModelProto:
    return preprocess(trace(network.eval(), described).model)


@dataclass(frozen=True, kw_only=True)
class Case:
    options: dict[str, Any]
    normalization: dict[str, Any]
    weight: list[int]
    pads: list[int]
    concatenations: int = 0


CASES = {
    "7x7, padding 3": Case(options={"kernel_size": 7, "padding": 3}, normalization=COLOR, weight=[24, 12, 7, 3], pads=[0, 0, 0, 0], concatenations=2),
    "7x7, even means": Case(options={"kernel_size": 7, "padding": 3}, normalization=EVEN, weight=[24, 12, 7, 3], pads=[3, 1, 3, 1]),
    "5x5, padding 2": Case(options={"kernel_size": 5, "padding": 2}, normalization=COLOR, weight=[24, 12, 5, 3], pads=[0, 0, 0, 0], concatenations=2),
    "3x3, padding 1": Case(options={"kernel_size": 3, "padding": 1}, normalization=COLOR, weight=[24, 12, 3, 2], pads=[0, 0, 0, 0], concatenations=2),
    "5x3, even means": Case(options={"kernel_size": (5, 3), "padding": (0, 1)}, normalization=EVEN, weight=[24, 12, 5, 2], pads=[0, 1, 0, 0]),
    "only rows around": Case(
        options={"kernel_size": (3, 2), "padding": (1, 0)}, normalization=COLOR, weight=[24, 12, 3, 1], pads=[0, 0, 0, 0], concatenations=1
    ),
    "4x4, padding 1": Case(options={"kernel_size": 4, "padding": 1}, normalization=COLOR, weight=[24, 12, 4, 3], pads=[0, 0, 0, 0], concatenations=2),
    "one row down": Case(options={"kernel_size": 3, "padding": 1, "stride": (1, 2)}, normalization=EVEN, weight=[24, 12, 3, 2], pads=[1, 1, 1, 0]),
    "gray, no bias": Case(options={"kernel_size": 5, "padding": 2, "bias": False}, normalization=GRAY, weight=[24, 4, 5, 3], pads=[2, 1, 2, 1]),
}


@dataclass(frozen=True, kw_only=True)
class Made:
    pixels: Pixels
    network: nn.Conv2d
    contract: Contract
    model: onnx.ModelProto
    result: PassResult


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, apply: Apply) -> tuple[Case, Made]:
    """The graph for widths that are multiples of 4."""
    case = CASES[request.param]
    pixels = Pixels(height=16, width=16, **case.normalization)
    network, described = nn.Conv2d(pixels.channels, FILTERS, **{"stride": 2, **case.options}), contract(pixels, 4)
    model, result = apply(column_quads, graph(network, described), described)
    return case, Made(pixels=pixels, network=network, contract=described, model=model, result=result)


def test_pixels_are_read_in_fours_as_they_lie(made: tuple[Case, Made]) -> None:
    case, model = made[0], made[1].model
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    assert next(list(each.dims) for each in model.graph.initializer if each.name == convolution.input[1]) == case.weight
    assert next(list(each.ints) for each in convolution.attribute if each.name == "pads") == case.pads
    kinds = [node.op_type for node in model.graph.node]
    assert "Pad" not in kinds and "Slice" not in kinds
    assert sum(node.op_type == "Concat" and not node.output[0].endswith(".shape") for node in model.graph.node) == case.concatenations
    (stem,) = made[1].result.facts
    assert isinstance(stem, QuadStem) and stem.outputs == 2 and case.pads in (stem.pads, [0, 0, 0, 0])


@settings(max_examples=12)
@given(batch=st.integers(1, 3), height=st.integers(16, 30), fours=st.integers(4, 8), seed=st.integers(0, 9))
def test_fours_of_pixels_give_the_numbers_that_pixels_gave(
    run_maps: Run, padded_with_means: Truth, made: tuple[Case, Made], batch: int, height: int, fours: int, seed: int
) -> None:
    found = made[1]
    image = np.random.default_rng(seed).integers(0, 256, (batch, height, 4 * fours, found.pixels.channels), dtype=np.uint8)
    image[:, :, -1] = 255  # an error beyond the border would show
    expected = padded_with_means(found.network, found.pixels, image)
    np.testing.assert_allclose(run_maps(found.model, image), expected, atol=3e-6 * np.ptp(expected))


@pytest.mark.parametrize("width", [32, 33, 34, 35, 64])
@pytest.mark.parametrize("step", [4, 8, 16])
def test_patches_are_read_in_fours_too(run_maps: Run, padded_with_means: Truth, apply: Apply, step: int, width: int) -> None:
    pixels, network = Pixels(height=32, width=width, **COLOR), nn.Conv2d(3, 16, step, step)
    described = replace(contract(pixels, 0), outputs=(Output(name="maps", dtype="float32", shape=("batch", 16, "?", "?"), kind="tensor"),))
    model, result = apply(column_quads, graph(network, described), described)
    assert [stem.outputs for stem in result.facts] == [1]
    weight = next(list(each.dims) for each in model.graph.initializer if each.name.endswith(".quads"))
    assert weight == [16, 12, step, step // 4]
    image = np.random.default_rng(0).integers(0, 256, (2, 32, width, 3), dtype=np.uint8)
    expected = padded_with_means(network, pixels, image)
    np.testing.assert_allclose(run_maps(model, image), expected, atol=3e-6 * np.ptp(expected))


@pytest.mark.parametrize(("width", "step", "fills"), [(32, 0, 0), (33, 0, 1), (34, 0, 1), (35, 0, 1), (16, 4, 0), (16, 8, 0)])
def test_a_width_that_the_contract_knows_is_filled_up_or_not(run_maps: Run, padded_with_means: Truth, apply: Apply, width: int, step: int, fills: int) -> None:
    pixels, network = Pixels(height=17, width=width, **COLOR), nn.Conv2d(3, FILTERS, 3, 2, 1)
    described = contract(pixels, step)
    if step:
        described = replace(described, axes={**described.axes, "width": Range(low=width, high=width + 8 * step, step=step)})
    model, result = apply(column_quads, graph(network, described), described)
    assert result and not apply(width_branches, model, described, facts=result.facts)[1]  # there is one kind of width
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Slice") == fills == kinds.count("Neg")
    image = np.random.default_rng(0).integers(0, 256, (2, 17, width, 3), dtype=np.uint8)
    expected = padded_with_means(network, pixels, image)
    np.testing.assert_allclose(run_maps(model, image), expected, atol=3e-6 * np.ptp(expected))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": (2, 1), "padding": 1},
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": 4, "stride": 2, "padding": 2},
        {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "stride": 3},
        {"kernel_size": 8, "stride": 4, "padding": 2},
    ],
    ids=["by 1", "by 1 across", "an odd number", "an even kernel", "dilated", "by 3", "patches that overlap"],
)
def test_other_convolutions_stay(apply: Apply, options: dict[str, int]) -> None:
    described = contract(Pixels(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3))
    before = graph(nn.Conv2d(3, FILTERS, **options), described)
    model, result = apply(column_quads, before, described)
    assert not result and model == before


@pytest.mark.parametrize("filters", [4, 9])
def test_few_filters_and_odd_numbers_of_them_stay(apply: Apply, filters: int) -> None:
    described = contract(Pixels(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3))
    described = replace(described, outputs=(replace(described.outputs[0], shape=("batch", filters, "?", "?")),))
    assert not apply(column_quads, graph(nn.Conv2d(3, filters, 3, 2, 1), described), described)[1]


def test_means_that_are_no_pixels_stay(apply: Apply) -> None:
    described = contract(Pixels(height=16, width=16, mean=(-0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    assert not apply(column_quads, graph(nn.Conv2d(3, FILTERS, 3, 2, 1), described), described)[1]


def test_a_convolution_that_stays_float_stays(apply: Apply) -> None:
    described = contract(Pixels(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3))
    assert not apply(column_quads, graph(nn.Conv2d(3, FILTERS, 3, 2, 1), described), described, products=[])[1]
