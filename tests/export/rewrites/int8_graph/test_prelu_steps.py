"""PReLU in steps: held to PyTorch in float64, and to what the integer kernels then run."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgeport_export.quantization.qdq import follower_products, preprocess
from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.int8_graph.prelu_steps import HALVES, integer_halves, prelu_steps
from edgeport_export.tracing.exporter import trace
from edgeport_runtime import Contract, SessionOptions
from edgeport_runtime.device import open_session

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]
AXES: tuple[str | int, ...] = ("n", 4, "h", "w")
SLOPES = np.array([0.25, -1.5, 0.0, 1.75], np.float32)


def graph(slopes: np.ndarray, rank: int = 4) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, AXES[:rank]) for name in ("x", "out")]
    nodes = [helper.make_node("PRelu", ["x", "slopes"], ["y"], name="act"), helper.make_node("Identity", ["y"], ["out"], name="end")]
    known = [helper.make_tensor_value_info("y", TensorProto.FLOAT, AXES[:rank])]
    made = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(slopes, "slopes")], value_info=known)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return np.asarray(open_session(model.SerializeToString(), SessionOptions(threads=1)).run(None, {"x": x})[0])


def test_the_steps_give_what_pytorch_gives_in_float64(apply: Apply, class_contract: Contract) -> None:
    ranges = {"x": (-3.0, 2.0), "y": (-2.0, 5.0)}
    model, result = apply(prelu_steps, graph(SLOPES.reshape(4, 1, 1)), class_contract, followers=frozenset(["act"]), ranges=ranges)
    assert result.changed == 1 and result.followers == {"act.positive", "act.negative", "act.sloped", "act"}
    sloped = (-3.0 * 1.75, 3.0 * 1.5)  # -3 times the largest slope, and the lowest
    assert result.ranges == {"y.positive": (-3.0, 2.0), "y.negative": (-3.0, 2.0), "y.sloped": sloped}
    onnx.checker.check_model(model, full_check=True)
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 6)).astype(np.float32)
    expected = torch.prelu(torch.from_numpy(x).double(), torch.from_numpy(SLOPES).double()).numpy()
    np.testing.assert_allclose(run(model, x), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("slopes", "rank", "followers"),
    [
        (SLOPES[:1].reshape(1, 1, 1), 4, ["act"]),
        (SLOPES, 2, ["act"]),
        (np.array([1, 2, np.inf, 3], np.float32).reshape(4, 1, 1), 4, ["act"]),
        (SLOPES.reshape(4, 1, 1), 4, []),
    ],
    ids=["one slope", "no map", "an infinite slope", "no follower"],
)
def test_others_stay(apply: Apply, class_contract: Contract, slopes: np.ndarray, rank: int, followers: list[str]) -> None:
    before = graph(slopes, rank)
    made, result = apply(prelu_steps, before, class_contract, followers=frozenset(followers))
    assert not result and made == before and not result.followers


def clipped(half: str, second_zero: int) -> onnx.ModelProto:
    """DequantizeLinear, what lies above or below zero, QuantizeLinear: bytes to bytes."""
    arrays = {"s": np.float32(0.02), "z": np.uint8(100), "z2": np.uint8(second_zero), "zero": np.float32(0)}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["real"]),
        helper.make_node("Clip", ["real", "zero"] if half == "positive" else ["real", "", "zero"], [f"y.{half}"]),
        helper.make_node("QuantizeLinear", [f"y.{half}", "s", "z2"], ["bytes"]),
        helper.make_node("Identity", ["bytes"], ["out"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.UINT8, ["n"]) for name in ("x", "out")]
    made = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(np.array(array), name) for name, array in arrays.items()])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(("second_zero", "integer"), [(100, True), (90, False)])
def test_a_half_of_integers_with_the_same_steps_is_taken_from_them(apply: Apply, class_contract: Contract, half: str, second_zero: int, integer: bool) -> None:
    x = np.arange(256, dtype=np.uint8)
    made, result = apply(integer_halves, clipped(half, second_zero), class_contract)
    assert result.changed == integer and next(node.op_type for node in made.graph.node) == (HALVES[half] if integer else "DequantizeLinear")
    expected = (np.maximum if half == "positive" else np.minimum)(x.astype(int), 100) - (100 - second_zero)
    np.testing.assert_array_equal(run(made, x), np.maximum(expected, 0))


class Sloped(nn.Module):
    """Convolutions with a slope for each channel between them, one of them around a shortcut."""

    activation: "Callable[[], nn.Module]" = partial(nn.PReLU, 32)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.classify = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3), nn.Linear(32, 3)
        self.last = nn.Conv2d(32, 32, 1)
        self.one, self.two = type(self).activation(), type(self).activation()
        for slopes in (*self.one.parameters(), *self.two.parameters()):
            slopes.data.uniform_(-0.5, 0.7)
            slopes.data[0] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        start = self.one(self.stem(x))
        result: Tensor = self.classify(self.last(self.two(self.second(start + self.first(start)))).mean((2, 3)))
        return result


class Plain(Sloped):
    activation = nn.ReLU


def test_convolutions_with_slopes_run_as_integers_throughout(integer_kernels: "Callable[[type[nn.Module]], Counter[str]]") -> None:
    kinds = integer_kernels(Sloped)
    assert [kinds[kind] for kind in ("QLinearConv", "Max", "Min", "QLinearAdd")] == [6, 2, 2, 3], kinds
    assert not {"PRelu", "Clip", "Mul", "QuantizeLinear", "DequantizeLinear"} & set(kinds), kinds
    assert kinds["Transpose"] == integer_kernels(Plain)["Transpose"]  # none around a Max or Min between convolutions


class BetweenLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.near, self.one, self.far, self.two, self.classify = nn.Conv2d(3, 16, 3), nn.PReLU(16), nn.Linear(16, 8), nn.PReLU(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.classify(self.two(self.far(self.one(self.near(x)).mean((2, 3)))))
        return result


def test_slopes_of_a_map_follow_and_those_between_linear_layers_do_not(class_contract: Contract) -> None:
    prepared = preprocess(trace(BetweenLinear().eval(), class_contract).model)
    followers = follower_products(GraphEditor(prepared))
    assert {node.name: node.name in followers for node in prepared.graph.node if node.op_type == "PRelu"} == {"one/PRelu": True, "two/PRelu": False}
