"""Float products between Q/DQ pairs. What is right comes from ONNX's own reference evaluator, which rounds nothing that the graph does not round."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from edgeport_export.quantization.calibration import calibrate
from edgeport_export.quantization.qdq import observed_values, quantize
from edgeport_export.quantization.variants import QuantizableGraph
from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.int8_graph.float_products import float_products
from edgeport_runtime import Contract, SessionOptions
from edgeport_runtime.device import open_session

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]
STEP = 1 / 16  # of every pair
SMALL = 2e-3  # of the largest weight: with one step for all rows, such a row becomes zero


def constants(**arrays: np.ndarray) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(array, name) for name, array in {"scale": np.float32(STEP), "zero": np.uint8(128), **arrays}.items()]


def between_pairs(nodes: list[onnx.NodeProto], given: list[int | str], made: list[int | str], **arrays: np.ndarray) -> onnx.ModelProto:
    """Nodes from `a` to `b`, with a pair before them and one behind."""
    pairs = [
        helper.make_node(kind, [source, "scale", "zero"], [result], f"{result}/{kind}")
        for kind, source, result in (
            ("QuantizeLinear", "x", "x.q"),
            ("DequantizeLinear", "x.q", "a"),
            ("QuantizeLinear", "b", "y.q"),
            ("DequantizeLinear", "y.q", "y"),
        )
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", given), ("y", made))]
    graph = helper.make_graph([*pairs[:2], *nodes, *pairs[2:]], "g", values[:1], values[1:], constants(**arrays))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def weights(*dims: int) -> np.ndarray:
    """Rows of which every second one is small."""
    found = np.random.default_rng(0).standard_normal(dims).astype(np.float32)
    found[::2] *= SMALL
    return found


def row(dims: list[int | str], more: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(1).standard_normal([dim if isinstance(dim, int) else 2 for dim in dims]) * more).astype(np.float32)


MAPS = ["n", 4, "h", "w"]
FILTERS, LINEAR = 300 * weights(6, 4, 1, 1), 300 * weights(6, 4)
BIAS = np.full(6, 0.3, np.float32)
PADS = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
AS_MAPS, FLAT = np.array([0, 4, 3, 3], np.int64), np.array([0, 4], np.int64)
CASES = {
    "convolution": ([("Conv", ["a", "w"], ["b"], {})], MAPS, {"w": FILTERS}),
    "with a bias": ([("Conv", ["a", "w", "c"], ["b"], {})], MAPS, {"w": FILTERS, "c": BIAS}),
    "depthwise": ([("Conv", ["a", "w"], ["b"], {"group": 4})], MAPS, {"w": weights(4, 1, 1, 1) * 300}),
    "before a ReLU": ([("Conv", ["a", "w"], ["r"], {}), ("Relu", ["r"], ["b"], {})], MAPS, {"w": FILTERS}),
    "before a Clip": (
        [("Conv", ["a", "w"], ["r"], {}), ("Clip", ["r", "low", "high"], ["b"], {})],
        MAPS,
        {"w": FILTERS, "low": np.float32(0), "high": np.float32(6)},
    ),
    "transposed": ([("ConvTranspose", ["a", "w"], ["b"], {})], MAPS, {"w": np.ascontiguousarray(FILTERS.transpose(1, 0, 2, 3))}),
    "behind a Transpose": ([("Transpose", ["a"], ["t"], {"perm": [0, 3, 1, 2]}), ("Conv", ["t", "w"], ["b"], {})], [2, 3, 3, 4], {"w": FILTERS}),
    "behind a MaxPool": ([("MaxPool", ["a"], ["t"], {"kernel_shape": [2, 2]}), ("Conv", ["t", "w"], ["b"], {})], MAPS, {"w": FILTERS}),
    "behind a Reshape": ([("Reshape", ["a", "s"], ["t"], {}), ("Conv", ["t", "w"], ["b"], {})], ["n", 36], {"w": FILTERS, "s": AS_MAPS}),
    "one channel": ([("Conv", ["a", "w"], ["b"], {})], ["n", 1, "h", "w"], {"w": 300 * weights(6, 1, 1, 1)}),
    "one channel transposed": ([("ConvTranspose", ["a", "w"], ["b"], {})], ["n", 1, "h", "w"], {"w": 300 * weights(6, 1).reshape(1, 6, 1, 1)}),
    "an axis of one": ([("Reshape", ["a", "s"], ["t"], {}), ("Conv", ["t", "w"], ["b"], {})], ["n", 1, 36], {"w": FILTERS, "s": AS_MAPS}),
    "no axis known": ([("Reshape", ["a", "s"], ["t"], {}), ("Conv", ["t", "w"], ["b"], {})], ["n", "k"], {"w": FILTERS, "s": AS_MAPS}),
    "behind a Pad": ([("Pad", ["a", "s"], ["t"], {}), ("Conv", ["t", "w"], ["b"], {})], MAPS, {"w": FILTERS, "s": PADS}),
    "behind an Identity": ([("Identity", ["a"], ["t"], {}), ("Conv", ["t", "w"], ["b"], {})], MAPS, {"w": FILTERS}),
    "linear": ([("Gemm", ["a", "w", "c"], ["b"], {"transB": 1})], ["n", 4], {"w": LINEAR, "c": BIAS}),
    "linear without a bias": ([("Gemm", ["a", "w"], ["b"], {})], ["n", 4], {"w": np.ascontiguousarray(LINEAR.T)}),
    "a product and an Add": (
        [("MatMul", ["a", "w"], ["p"], {}), ("Add", ["c", "p"], ["b"], {})],
        ["n", 4],
        {"w": np.ascontiguousarray(LINEAR.T), "c": BIAS},
    ),
    "behind a flat Reshape": (
        [("Reshape", ["a", "s"], ["t"], {}), ("Gemm", ["t", "w"], ["b"], {})],
        ["n", 4, 1, 1],
        {"w": np.ascontiguousarray(LINEAR.T), "s": FLAT},
    ),
}


def built(case: str) -> tuple[onnx.ModelProto, np.ndarray]:
    parts, dims, arrays = CASES[case]
    nodes = [helper.make_node(kind, inputs, outputs, f"{outputs[0]}/{kind}", **more) for kind, inputs, outputs, more in parts]
    given = [{"h": 3, "w": 3, "k": 36}.get(dim, dim) for dim in dims]
    return between_pairs(nodes, dims, ["?"] * (4 if "Conv" in str(parts) else 2), **arrays), row(given, 0.1)


@pytest.mark.parametrize("case", CASES)
def test_onnxruntime_gives_what_the_graph_says(case: str, apply: Apply, class_contract: Contract) -> None:
    before, x = built(case)
    exact = ReferenceEvaluator(before).run(None, {"x": x})[0]
    made, result = apply(float_products, before, class_contract)
    assert result.changed == 1
    onnx.checker.check_model(made, full_check=True)
    got = np.asarray(open_session(made.SerializeToString(), SessionOptions(threads=1)).run(None, {"x": x})[0])
    small = np.moveaxis(exact, 1, 0)[::2]
    assert len(np.unique(small.round(4))) > 1  # the small rows say something
    assert np.abs(got - exact).max() <= STEP * 1.01  # a value between two steps may go to either
    assert np.mean(np.abs(got - exact) > STEP / 2) < 0.05


def test_an_integer_product_keeps_its_one_scale(apply: Apply, class_contract: Contract) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w8", "ws", "wz"], ["w"], "w/DequantizeLinear"),
        helper.make_node("Conv", ["a", "w"], ["i"], "integer/Conv"),
        helper.make_node("Conv", ["a", "f"], ["g"], "float/Conv"),
        helper.make_node("Add", ["i", "g"], ["b"], "sum/Add"),
    ]
    arrays = {"w8": np.ones((6, 4, 1, 1), np.int8), "ws": np.full(6, 0.1, np.float32), "wz": np.zeros(6, np.int8), "f": weights(6, 4, 1, 1)}
    made, result = apply(float_products, between_pairs(nodes, MAPS, ["?"] * 4, **arrays), class_contract)
    editor = GraphEditor(made)
    inputs = {node.name: editor.producers[node.input[0]] for node in editor.nodes if node.op_type == "Conv"}
    scales = {name: editor.array(each.input[1]).shape for name, each in inputs.items()}
    assert result.changed == 1 and scales == {"integer/Conv": (), "float/Conv": (4,)}
    assert not apply(float_products, made, class_contract)[1]  # done once


def test_what_reads_floats_is_left_as_it_is(apply: Apply, class_contract: Contract) -> None:
    nodes = [helper.make_node("Neg", ["a"], ["n"], "n/Neg"), helper.make_node("Conv", ["n", "w"], ["b"], "b/Conv")]
    before = between_pairs(nodes, MAPS, ["?"] * 4, w=weights(6, 4, 1, 1))
    made, result = apply(float_products, before, class_contract)
    assert not result and made == before


class Uneven(nn.Module):
    """Three convolutions; the filters of the one in the middle differ by a factor of 500."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 3)
        with torch.no_grad():
            self.middle.weight[::2] *= SMALL
            self.last.weight[:, ::2] /= SMALL

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.last(torch.relu(self.middle(torch.relu(self.first(x)))))).mean((2, 3)))


def test_a_product_that_a_plan_leaves_in_float_is_no_worse_than_an_integer_one(
    quantizable: Callable[..., QuantizableGraph], tiny: ModuleType, class_contract: Contract, run_first: Callable[..., np.ndarray]
) -> None:
    graph, examples = quantizable(Uneven(), class_contract), tiny.brightness_examples(16, seed=0)
    ranges = calibrate(graph.model, observed_values(graph.model, graph.target), class_contract, examples).ranges("minmax")
    pixels = np.stack([each.source for each in examples])
    exact = run_first(graph.model.SerializeToString(), pixels)

    def error(names: frozenset[str]) -> float:
        made = quantize(graph.model, class_contract, names, ranges, graph.target)
        return float(np.square(run_first(made.SerializeToString(), pixels) - exact).mean())

    everything = frozenset(graph.quantizable)
    assert "middle/Conv" in everything and error(everything - {"middle/Conv"}) < 1.1 * error(everything)


@pytest.mark.parametrize(("rows", "bias"), [((4,), 1), ((4, 1), 5)])
def test_a_sum_that_is_no_bias_is_left_as_it_is(rows: tuple[int, ...], bias: int, apply: Apply, class_contract: Contract) -> None:
    nodes = [helper.make_node("MatMul", ["a", "w"], ["p"], "p/MatMul"), helper.make_node("Add", ["p", "c"], ["b"], "b/Add")]
    before = between_pairs(nodes, ["n", 4], ["?"] * len(rows), w=np.ones(rows, np.float32), c=np.ones(bias, np.float32))
    made, result = apply(float_products, before, class_contract)
    assert not result and made == before
