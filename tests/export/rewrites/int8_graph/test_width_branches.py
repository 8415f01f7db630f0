"""One first convolution for widths of both kinds: held to PyTorch in float64, and to graphs for one kind of width."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeport_export.quantization.calibration import calibrate
from edgeport_export.quantization.macs import integer_nodes
from edgeport_export.quantization.qdq import candidates, observed_values, preprocess, quantize
from edgeport_export.quantization.targets import TARGETS
from edgeport_export.rewrites.finalize import finalize
from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.int8_graph.column_quads import column_quads
from edgeport_export.rewrites.int8_graph.width_branches import width_branches
from edgeport_export.rewrites.nodes import every_node
from edgeport_export.tracing.exporter import trace
from edgeport_runtime import Contract, Example, Pixels, Range, SessionOptions
from edgeport_runtime.contract import Output, pixel_input
from edgeport_runtime.device import open_session

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]
Run = Callable[[onnx.ModelProto, np.ndarray], np.ndarray]
Truth = Callable[[nn.Conv2d, Pixels, np.ndarray], np.ndarray]
COLOR = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
EVEN = {"mean": (0.4, 0.4, 0.4), "std": (0.2, 0.25, 0.3)}
GRAY = {"mode": "L", "mean": (0.2,), "std": (0.5,)}
FILTERS = 12


def contract(pixels: Pixels) -> Contract:
    """Any height and width from 16 to 64."""
    output = Output(name="maps", dtype="float32", shape=("batch", FILTERS, "?", "?"), kind="tensor")
    axes = {"batch": Range(low=1, high=4), "height": Range(low=16, high=64), "width": Range(low=16, high=64)}
    image = pixel_input(pixels)
    return Contract(task="tensors", inputs=(image,), outputs=(output,), axes=axes)


def graph(network: nn.Module, described: Contract) -> onnx.ModelProto:
    return preprocess(trace(network.eval(), described).model)


STEMS = {
    "7x7, color": ({"kernel_size": 7, "padding": 3}, COLOR),
    "3x3, color": ({"kernel_size": 3, "padding": 1}, COLOR),
    "5x3, even means": ({"kernel_size": (5, 3), "padding": (0, 1)}, EVEN),
    "only rows around": ({"kernel_size": (3, 2), "padding": (1, 0)}, COLOR),
    "4x4, color": ({"kernel_size": 4, "padding": 1}, COLOR),
    "gray, no bias": ({"kernel_size": 5, "padding": 2, "bias": False}, GRAY),
}


@pytest.fixture(scope="module", params=STEMS)
def stem(request: pytest.FixtureRequest, apply: Apply) -> tuple[Pixels, nn.Conv2d, onnx.ModelProto]:
    """The graph for every width, with its If."""
    options, normalization = STEMS[request.param]
    pixels = Pixels(height=16, width=16, **normalization)
    network, described = nn.Conv2d(pixels.channels, FILTERS, **{"stride": 2, **options}), contract(pixels)
    model, result = apply(column_quads, graph(network, described), described)
    model, branched = apply(width_branches, model, described, facts=result.facts)
    assert branched.changed == 1
    return pixels, network, model


@settings(max_examples=12)
@given(batch=st.integers(1, 3), height=st.integers(16, 30), width=st.integers(16, 34), seed=st.integers(0, 9))
def test_every_width_gives_the_numbers_that_pixels_gave(
    run_maps: Run, padded_with_means: Truth, stem: tuple[Pixels, nn.Conv2d, onnx.ModelProto], batch: int, height: int, width: int, seed: int
) -> None:
    pixels, network, model = stem
    image = np.random.default_rng(seed).integers(0, 256, (batch, height, width, pixels.channels), dtype=np.uint8)
    image[:, :, -1] = 255  # an error beyond the border would show
    expected = padded_with_means(network, pixels, image)
    np.testing.assert_allclose(run_maps(model, image), expected, atol=3e-6 * np.ptp(expected))


def test_the_convolution_stands_in_both_branches(stem: tuple[Pixels, nn.Conv2d, onnx.ModelProto]) -> None:
    kinds = [node.op_type for node in stem[2].graph.node]
    assert kinds.count("If") == 1 and "Conv" not in kinds and [node.op_type for node in every_node(stem[2].graph)].count("Conv") == 2


def test_each_branch_has_its_own_constants(stem: tuple[Pixels, nn.Conv2d, onnx.ModelProto]) -> None:
    """If products saturate, onnxruntime changes the weights that it finds beside the convolution, and those alone."""
    model = stem[2]
    branches = [each.g for node in model.graph.node for each in node.attribute if node.op_type == "If"]
    for branch in branches:
        own = {each.name for each in branch.initializer} | {out for node in branch.node for out in node.output}
        assert {each for node in branch.node for each in node.input if each} - own == {"pixels"}
    assert len(branches) == 2 and not any(each.name.endswith((".quads", ".bias")) for each in model.graph.initializer)


def test_a_graph_without_such_a_stem_is_left_as_it_is(apply: Apply) -> None:
    described = contract(Pixels(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3))
    before = graph(nn.Conv2d(3, FILTERS, 3), described)
    model, result = apply(width_branches, before, described)
    assert not result and model == before


class Stem(nn.Module):
    """Convolution, norm, activation, pool, convolution: the beginning of a network."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 5, 2, 2), nn.BatchNorm2d(16), activation, nn.MaxPool2d(3, 2, 1), nn.Conv2d(16, FILTERS, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.body(x)
        return made


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Identity()], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("normalization", [COLOR, EVEN], ids=["surrounded", "padded"])
def test_integers_come_out_of_both_branches(activation: nn.Module, normalization: dict[str, Any], tmp_path: Path) -> None:
    pixels = Pixels(height=32, width=32, **normalization)
    described, target = contract(pixels), TARGETS["x86-vnni"]
    prepared = graph(Stem(activation), described)
    photos = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    examples = [Example(source=each, truth=0) for each in photos]
    ranges = calibrate(prepared, observed_values(prepared, target), described, examples).ranges("minmax")
    products = frozenset(candidates(GraphEditor(prepared), target)[0])
    file = finalize(quantize(prepared, described, products, ranges, target), described)
    assert integer_nodes(file) == products  # also the one in the branches
    exact, near = (open_session(each, SessionOptions(threads=1)) for each in (finalize(prepared, described), file))
    for width in (32, 33, 34, 35):
        image = np.random.default_rng(width).integers(0, 256, (2, 29, width, 3), dtype=np.uint8)
        wanted, got = (np.asarray(each.run(None, {"pixels": image})[0]) for each in (exact, near))
        assert got.shape == wanted.shape and 20 * np.log10(np.linalg.norm(wanted) / np.linalg.norm(wanted - got)) > 28
        axes = {name: each for name, each in described.axes.items() if name != "width"}
        fixed = replace(described, inputs=(replace(described.inputs[0], shape=("batch", "height", width, 3)),), axes=axes)
        alone = finalize(quantize(prepared, fixed, products, ranges, target), described)
        np.testing.assert_array_equal(open_session(alone, SessionOptions(threads=1)).run(None, {"pixels": image})[0], got)
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath, settings.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in every_node(onnx.load(tmp_path / "optimized.onnx").graph)]
    assert kinds.count("QLinearConv") == 3 and "Conv" not in kinds and "DequantizeLinear" not in kinds[: kinds.index("NhwcMaxPool")]
