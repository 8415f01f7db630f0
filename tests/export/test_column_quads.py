"""The first convolution on four pixels at a time: held to PyTorch in float64 on pictures that are padded by hand, at widths of every kind."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from edgeport_export.calibration import calibrate
from edgeport_export.multiplications import integer_nodes
from edgeport_export.quantize import candidates, observed_values, preprocess, quantize
from edgeport_export.rewrites.column_quads import Rewritten, column_quads
from edgeport_export.rewrites.constants import drop_unread_values
from edgeport_export.rewrites.nodes import every_node
from edgeport_export.rewrites.width_branches import width_branches
from edgeport_export.targets import TARGETS
from edgeport_export.trace import finish, trace
from edgeport_runtime import Contract, Pixels, Range, SessionOptions
from edgeport_runtime.contract import Output, pixel_input
from edgeport_runtime.device import open_session
from edgeport_runtime.evaluate import Example

COLOUR = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
EVEN = {"mean": (0.4, 0.4, 0.4), "std": (0.2, 0.25, 0.3)}
GREY = {"mode": "L", "mean": (0.2,), "std": (0.5,)}
FILTERS = 12


def contract(pixels: Pixels, step: int = 1) -> Contract:
    """Any height; widths from 16 to 64 by `step`, or one fixed width where it is 0."""
    output = Output(name="maps", dtype="float32", shape=("batch", FILTERS, "?", "?"), kind="tensor")
    axes = {"batch": Range(low=1, high=4), "height": Range(low=16, high=64), "width": Range(low=16, high=64, step=step)}
    image = pixel_input(pixels)
    if not step:
        axes, image = {"batch": axes["batch"]}, replace(image, shape=("batch", pixels.height, pixels.width, pixels.channels))
    return Contract(task="tensors", inputs=(image,), outputs=(output,), axes=axes)


def rewritten(network: nn.Module, described: Contract) -> tuple[onnx.ModelProto, Rewritten | None]:
    model = preprocess(trace(network.eval(), described).model)
    return model, column_quads(model, described)


def run(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    return np.asarray(open_session(model.SerializeToString(), SessionOptions(threads=1)).run(["maps"], {"pixels": pixels})[0])


def truth(convolution: nn.Conv2d, pixels: Pixels, image: np.ndarray) -> np.ndarray:
    """The convolution without padding, of the picture with pixels around it that are the means in whole levels."""
    mean, std = (torch.tensor(each).double().reshape(-1, 1, 1) for each in (pixels.mean, pixels.std))
    x = torch.from_numpy(image).permute(0, 3, 1, 2).double() - (255 * mean).round()
    down, across = convolution.padding
    x = functional.pad(x, (int(across), int(across), int(down), int(down))) + (255 * mean).round()
    bias = None if convolution.bias is None else convolution.bias.double()
    return functional.conv2d((x / 255 - mean) / std, convolution.weight.double(), bias, convolution.stride).detach().numpy()


@dataclass(frozen=True, kw_only=True)
class Case:
    options: dict[str, Any]
    normalisation: dict[str, Any]
    weight: list[int]
    pads: list[int]
    concatenations: int = 0


CASES = {
    "7x7, padding 3": Case(options={"kernel_size": 7, "padding": 3}, normalisation=COLOUR, weight=[24, 12, 7, 3], pads=[0, 0, 0, 0], concatenations=2),
    "7x7, even means": Case(options={"kernel_size": 7, "padding": 3}, normalisation=EVEN, weight=[24, 12, 7, 3], pads=[3, 1, 3, 1]),
    "5x5, padding 2": Case(options={"kernel_size": 5, "padding": 2}, normalisation=COLOUR, weight=[24, 12, 5, 3], pads=[0, 0, 0, 0], concatenations=2),
    "3x3, padding 1": Case(options={"kernel_size": 3, "padding": 1}, normalisation=COLOUR, weight=[24, 12, 3, 2], pads=[0, 0, 0, 0], concatenations=2),
    "5x3, even means": Case(options={"kernel_size": (5, 3), "padding": (0, 1)}, normalisation=EVEN, weight=[24, 12, 5, 2], pads=[0, 1, 0, 0]),
    "only rows around": Case(
        options={"kernel_size": (3, 2), "padding": (1, 0)}, normalisation=COLOUR, weight=[24, 12, 3, 1], pads=[0, 0, 0, 0], concatenations=1
    ),
    "4x4, padding 1": Case(options={"kernel_size": 4, "padding": 1}, normalisation=COLOUR, weight=[24, 12, 4, 3], pads=[0, 0, 0, 0], concatenations=2),
    "one row down": Case(options={"kernel_size": 3, "padding": 1, "stride": (1, 2)}, normalisation=EVEN, weight=[24, 12, 3, 2], pads=[1, 1, 1, 0]),
    "grey, no bias": Case(options={"kernel_size": 5, "padding": 2, "bias": False}, normalisation=GREY, weight=[24, 4, 5, 3], pads=[2, 1, 2, 1]),
}


_MADE: dict[str, tuple[Pixels, onnx.ModelProto, onnx.ModelProto, nn.Conv2d]] = {}


def _made(name: str) -> tuple[Pixels, onnx.ModelProto, onnx.ModelProto, nn.Conv2d]:
    """The graph for multiples of 4, and the one for every width."""
    if name not in _MADE:
        case = CASES[name]
        pixels = Pixels(height=16, width=16, **case.normalisation)
        network = nn.Conv2d(pixels.channels, FILTERS, **{"stride": 2, **case.options})
        whole, _ = rewritten(network, contract(pixels, 4))
        model, found = rewritten(network, contract(pixels))
        assert found is not None
        width_branches(model, contract(pixels), found.geometry)
        _MADE[name] = pixels, whole, model, network
    return _MADE[name]


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_read_in_fours_as_they_lie(name: str) -> None:
    _, whole, either, _ = _made(name)
    case = CASES[name]
    convolution = next(node for node in whole.graph.node if node.op_type == "Conv")
    assert next(list(each.dims) for each in whole.graph.initializer if each.name == convolution.input[1]) == case.weight
    assert next(list(each.ints) for each in convolution.attribute if each.name == "pads") == case.pads
    kinds = [node.op_type for node in whole.graph.node]
    assert "If" not in kinds and "Pad" not in kinds and "Slice" not in kinds
    assert sum(node.op_type == "Concat" and not node.output[0].endswith(".shape") for node in whole.graph.node) == case.concatenations
    assert [node.op_type for node in either.graph.node].count("If") == 1 and [node.op_type for node in every_node(either.graph)].count("Conv") == 2


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=12)
@given(st.integers(1, 3), st.integers(16, 30), st.integers(16, 34), st.integers(0, 9))
def test_fours_of_pixels_give_what_pixels_gave(name: str, batch: int, height: int, width: int, seed: int) -> None:
    pixels, whole, either, network = _made(name)
    image = np.random.default_rng(seed).integers(0, 256, (batch, height, width, pixels.channels), dtype=np.uint8)
    image[:, :, -1] = 255  # what lies beyond the border would show
    expected = truth(network, pixels, image)
    for model in (either, *([whole] if width % 4 == 0 else [])):
        np.testing.assert_allclose(run(model, image), expected, atol=3e-6 * np.ptp(expected))


@pytest.mark.parametrize("width", [32, 33, 34, 35, 64])
@pytest.mark.parametrize("step", [4, 8, 16])
def test_patches_are_read_in_fours_too(step: int, width: int) -> None:
    pixels, network = Pixels(height=32, width=width, **COLOUR), nn.Conv2d(3, 16, step, step)
    described = replace(contract(pixels, 0), outputs=(Output(name="maps", dtype="float32", shape=("batch", 16, "?", "?"), kind="tensor"),))
    model, found = rewritten(network, described)
    assert found is not None and found.geometry.outputs == 1
    weight = next(list(each.dims) for each in model.graph.initializer if each.name.endswith(".quads"))
    assert weight == [16, 12, step, step // 4]
    image = np.random.default_rng(0).integers(0, 256, (2, 32, width, 3), dtype=np.uint8)
    expected = truth(network, pixels, image)
    np.testing.assert_allclose(run(model, image), expected, atol=3e-6 * np.ptp(expected))


@pytest.mark.parametrize(("width", "step", "fills"), [(32, 0, 0), (33, 0, 1), (34, 0, 1), (35, 0, 1), (16, 4, 0), (16, 8, 0)])
def test_where_the_contract_knows_the_width_there_are_no_branches(width: int, step: int, fills: int) -> None:
    pixels, network = Pixels(height=17, width=width, **COLOUR), nn.Conv2d(3, FILTERS, 3, 2, 1)
    described = contract(pixels, step)
    if step:
        described = replace(described, axes={**described.axes, "width": Range(low=width, high=width + 8 * step, step=step)})
    model, found = rewritten(network, described)
    assert found is not None
    width_branches(model, described, found.geometry)
    kinds = [node.op_type for node in model.graph.node]
    assert "If" not in kinds and kinds.count("Slice") == fills == kinds.count("Neg")
    image = np.random.default_rng(0).integers(0, 256, (2, 17, width, 3), dtype=np.uint8)
    expected = truth(network, pixels, image)
    np.testing.assert_allclose(run(model, image), expected, atol=3e-6 * np.ptp(expected))


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
def test_other_convolutions_stay(options: dict[str, int]) -> None:
    described = contract(Pixels(height=16, width=16))
    model = preprocess(trace(nn.Conv2d(3, FILTERS, **options).eval(), described).model)
    before = model.SerializeToString(deterministic=True)
    assert column_quads(model, described) is None and model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("filters", [4, 9])
def test_few_filters_and_odd_numbers_of_them_stay(filters: int) -> None:
    described = contract(Pixels(height=16, width=16))
    described = replace(described, outputs=(replace(described.outputs[0], shape=("batch", filters, "?", "?")),))
    assert rewritten(nn.Conv2d(3, filters, 3, 2, 1), described)[1] is None


def test_means_that_are_no_pixels_stay() -> None:
    assert rewritten(nn.Conv2d(3, FILTERS, 3, 2, 1), contract(Pixels(height=16, width=16, mean=(-0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))))[1] is None


class Stem(nn.Module):
    """Convolution, norm, activation, pool, convolution: what a network begins with."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 5, 2, 2), nn.BatchNorm2d(16), activation, nn.MaxPool2d(3, 2, 1), nn.Conv2d(16, FILTERS, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.body(x)
        return made


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Identity()], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("normalisation", [COLOUR, EVEN], ids=["surrounded", "padded"])
def test_integers_come_out_of_both_branches(activation: nn.Module, normalisation: dict[str, Any], tmp_path: Any) -> None:
    pixels = Pixels(height=32, width=32, **normalisation)
    described, target = contract(pixels), TARGETS["x86-vnni"]
    prepared = preprocess(trace(Stem(activation).eval(), described).model)
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    limits = calibrate(prepared, observed_values(prepared, target), described, [Example(source=each, truth=0) for each in images]).limits("minmax")
    possible = set(candidates(prepared, target)[0])
    file = finish(quantize(prepared, described, possible, limits, target), described)
    assert integer_nodes(file) == possible  # also the one in the branches
    exact, near = (open_session(each, SessionOptions(threads=1)) for each in (finish(prepared, described), file))
    for width in (32, 33, 34, 35):
        image = np.random.default_rng(width).integers(0, 256, (2, 29, width, 3), dtype=np.uint8)
        wanted, got = (np.asarray(each.run(None, {"pixels": image})[0]) for each in (exact, near))
        assert got.shape == wanted.shape and 20 * np.log10(np.linalg.norm(wanted) / np.linalg.norm(wanted - got)) > 28
        axes = {name: each for name, each in described.axes.items() if name != "width"}
        fixed = replace(described, inputs=(replace(described.inputs[0], shape=("batch", "height", width, 3)),), axes=axes)
        alone = finish(quantize(prepared, fixed, possible, limits, target), described)
        np.testing.assert_array_equal(open_session(alone, SessionOptions(threads=1)).run(None, {"pixels": image})[0], got)
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath, settings.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in every_node(onnx.load(tmp_path / "optimised.onnx").graph)]
    assert kinds.count("QLinearConv") == 3 and "Conv" not in kinds and "DequantizeLinear" not in kinds[: kinds.index("NhwcMaxPool")]


@pytest.mark.parametrize("name", ["3x3, padding 1", "5x3, even means"])
def test_each_branch_has_its_own_constants(name: str) -> None:
    """Where products saturate, onnxruntime changes the weights that it finds beside the convolution, and those alone."""
    _, _, model, _ = _made(name)
    branches = [each.g for node in model.graph.node for each in node.attribute if node.op_type == "If"]
    for branch in branches:
        own = {each.name for each in branch.initializer} | {out for node in branch.node for out in node.output}
        assert {each for node in branch.node for each in node.input if each} - own == {"pixels"}
    assert len(branches) == 2 and not any(each.name.endswith((".quads", ".bias")) for each in model.graph.initializer)


def test_constants_that_a_branch_reads_count_as_read() -> None:
    branch = helper.make_graph([helper.make_node("Add", ["x", "inner"], ["y"])], "b", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    node = helper.make_node("If", ["asked"], ["z"], then_branch=branch, else_branch=branch)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]), helper.make_tensor_value_info("asked", TensorProto.BOOL, [])]
    constants = [numpy_helper.from_array(np.ones(1, np.float32), name) for name in ("inner", "unread")]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)], constants)
    drop_unread_values(graph, "nothing")
    assert [each.name for each in graph.initializer] == ["inner"]
