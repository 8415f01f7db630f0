"""Outliers moved into weights. The right answers are PyTorch's, in float64."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgeport_export.quantization.calibration import calibrate, pixel_arrays
from edgeport_export.quantization.qdq import observed_values, quantize
from edgeport_export.quantization.recovery.smoothing import channel_exponents, smoothable, smoothed
from edgeport_export.quantization.variants import QuantizableGraph
from edgeport_export.rewrites.graph import GraphEditor
from edgeport_runtime import Contract, Example, SessionOptions
from edgeport_runtime.device import open_session

OUTLIER = 64.0
Quantizable = Callable[..., QuantizableGraph]


class Normalized(nn.Module):
    """Patches, a layer normalization and two linear layers that read it. `outlier`: what two of its channels are multiplied by; their weights are divided."""

    def __init__(self, outlier: float = 1.0) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 32, 4, 4), nn.LayerNorm(32)
        self.left, self.right, self.head = nn.Linear(32, 48), nn.Linear(32, 48, bias=False), nn.Linear(48, 3)
        with torch.no_grad():
            self.norm.bias.normal_()
            self.norm.weight[3:5] *= outlier
            self.norm.bias[3:5] *= outlier
            for each in (self.left, self.right):
                each.weight[:, 3:5] /= outlier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        return self.head((torch.relu(self.left(tokens)) * torch.sigmoid(self.right(tokens))).mean(1))


def images(count: int, seed: int) -> list[Example]:
    generator = np.random.default_rng(seed)
    return [Example(source=generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(count)]


def outputs(model: onnx.ModelProto, contract: Contract, examples: list[Example]) -> np.ndarray:
    session = open_session(model.SerializeToString(), SessionOptions())
    return np.concatenate([np.asarray(session.run(["logits"], arrays)[0]) for arrays in pixel_arrays(contract, examples)])


@pytest.mark.parametrize(("outlier", "gains"), [(OUTLIER, True), (1.0, False)])
def test_it_helps_where_there_are_outliers_and_nowhere_else(outlier: float, gains: bool, quantizable: Quantizable, class_contract: Contract) -> None:
    module = Normalized(outlier)
    graph = quantizable(module, class_contract)
    exponents = channel_exponents(graph.model, pixel_arrays(class_contract, images(16, seed=0)))
    after = graph.smoothed(exponents)
    fresh = images(32, seed=1)
    pixels = torch.from_numpy(np.stack([each.source for each in fresh])).permute(0, 3, 1, 2).double() / 255
    exact = module.double()((pixels - 0.5) / 0.5).detach().numpy()

    def error(which: QuantizableGraph) -> float:
        ranges = calibrate(which.model, observed_values(which.model, which.target), class_contract, images(16, seed=0)).ranges("minmax")
        made = quantize(which.model, class_contract, frozenset(which.quantizable), ranges, which.target)
        return float(np.square(outputs(made, class_contract, fresh) - exact).mean())

    before_db, after_db = (10 * np.log10(exact.var() / error(which)) for which in (graph, after))
    assert after_db > before_db + 10 if gains else abs(after_db - before_db) < 3, (before_db, after_db)


def test_the_float_network_gives_the_very_same_bits(quantizable: Quantizable, class_contract: Contract) -> None:
    graph, examples = quantizable(Normalized(OUTLIER), class_contract), images(8, seed=2)
    exponents = channel_exponents(graph.model, pixel_arrays(class_contract, examples))
    ((name, powers),) = exponents.items()
    assert len(powers) == 32 and min(powers[3:5]) >= max(each for index, each in enumerate(powers) if index not in (3, 4)) + 4  # 64 is two to the sixth
    after = smoothed(graph.model, exponents)
    assert np.array_equal(outputs(graph.model, class_contract, examples), outputs(after, class_contract, examples))
    before_editor, editor = GraphEditor(graph.model), GraphEditor(after)
    norms = [next(node for node in each.nodes if node.name == name) for each in (before_editor, editor)]
    for place in (1, 2):
        scales = [each.array(node.input[place]) for each, node in zip((before_editor, editor), norms, strict=True)]
        assert np.array_equal(scales[0], scales[1] * np.exp2(np.array(powers)))
    assert graph.smoothed({}) is graph and smoothed(graph.model, {"no such node": (1,)}) == graph.model


def normalization(readers: list[onnx.NodeProto], **arrays: np.ndarray) -> onnx.ModelProto:
    constants = {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32), "w": np.ones((4, 5), np.float32), **arrays}
    nodes = [helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["n"], "norm"), *readers]
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]), helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(array, name) for name, array in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("readers", "expected"),
    [
        ([("MatMul", ["n", "w"], "y", {})], True),
        ([("Gemm", ["n", "w"], "y", {})], True),
        ([("Gemm", ["n", "v"], "y", {"transB": 1})], True),
        ([("Gemm", ["n", "w"], "y", {"transB": 1})], False),  # four channels, and weights for five
        ([("MatMul", ["n", "w"], "a", {}), ("MatMul", ["n", "w"], "b", {}), ("Add", ["a", "b"], "y", {})], True),
        ([("MatMul", ["n", "w"], "a", {}), ("Relu", ["n"], "r", {}), ("Concat", ["a", "r"], "y", {"axis": 1})], False),  # something else reads it
        ([("MatMul", ["v", "n"], "y", {})], False),  # as the second factor
        ([("Relu", ["n"], "y", {})], False),
        ([("Identity", ["n"], "y", {})], False),
    ],
)
def test_only_linear_layers_with_constant_weights_may_read_it(readers: list[tuple[str, list[str], str, dict[str, int]]], expected: bool) -> None:
    nodes = [helper.make_node(kind, inputs, [output], f"{output}/{kind}", **more) for kind, inputs, output, more in readers]
    assert [node.name for node in smoothable(GraphEditor(normalization(nodes, v=np.ones((5, 4), np.float32))))] == (["norm"] if expected else [])


def test_channels_that_are_all_alike_or_never_used_are_left_out(class_contract: Contract) -> None:
    model = normalization([helper.make_node("MatMul", ["n", "w"], ["y"], "y/MatMul")], scale=np.zeros(4, np.float32))
    assert channel_exponents(model, [{"x": np.ones((2, 4), np.float32)}]) == {}
    uneven = normalization(
        [helper.make_node("MatMul", ["n", "w"], ["y"], "y/MatMul")], bias=np.array([256, 1, 1, 1], np.float32), scale=np.zeros(4, np.float32)
    )
    assert channel_exponents(uneven, [{"x": np.ones((2, 4), np.float32)}]) == {"norm": (4, 0, 0, 0)}  # the root of 256, by hand
