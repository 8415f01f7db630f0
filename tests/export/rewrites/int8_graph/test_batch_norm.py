"""Batch normalization as a convolution: held to PyTorch in float64, and to what the integer kernels then run."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgeport_export.quantization.qdq import follower_products, preprocess
from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.int8_graph.batch_norm import batch_norm
from edgeport_export.tracing.exporter import trace
from edgeport_runtime import Contract, SessionOptions
from edgeport_runtime.device import open_session

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]
AXES: tuple[str | int, ...] = ("n", 4, "h", "w")
STATISTICS = {"scale": [0.5, -1.25, 2.0, 0.0], "bias": [0.0, 1.0, -3.0, 0.25], "mean": [10.0, -0.5, 0.0, 1.0], "variance": [4.0, 0.01, 1.0, 9.0]}


def graph(statistics: dict[str, list[float]], rank: int = 4, known: bool = True) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, AXES[:rank]) for name in ("x", "out")]
    stored = {name: np.array(each, np.float32) for name, each in statistics.items()}
    given = [] if known else [helper.make_tensor_value_info("variance", TensorProto.FLOAT, [4])]
    nodes = [
        helper.make_node("BatchNormalization", ["x", *stored], ["y"], name="norm", epsilon=1e-3),
        helper.make_node("Identity", ["y"], ["out"], name="end"),
    ]
    constants = [numpy_helper.from_array(each, name) for name, each in stored.items() if known or name != "variance"]
    shapes = [helper.make_tensor_value_info("y", TensorProto.FLOAT, AXES[:rank])]
    made = helper.make_graph(nodes, "g", [values[0], *given], values[1:], constants, value_info=shapes)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_the_convolution_gives_what_pytorch_gives_in_float64(apply: Apply, class_contract: Contract) -> None:
    model, result = apply(batch_norm, graph(STATISTICS), class_contract, followers=frozenset(["norm"]))
    assert result.changed == 1 and [(node.op_type, node.name) for node in model.graph.node] == [("Conv", "norm"), ("Identity", "end")]
    onnx.checker.check_model(model, full_check=True)
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 6)).astype(np.float32)
    scale, bias, mean, variance = (torch.tensor(each, dtype=torch.float64) for each in STATISTICS.values())
    expected = nn.functional.batch_norm(torch.from_numpy(x).double(), mean, variance, scale, bias, eps=1e-3).numpy()
    given = open_session(model.SerializeToString(), SessionOptions(threads=1)).run(None, {"x": x})[0]
    np.testing.assert_allclose(given, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("before", "followers"),
    [
        (graph(STATISTICS, rank=2), ["norm"]),
        (graph({**STATISTICS, "variance": [1, 1, np.nan, 1]}), ["norm"]),
        (graph({**STATISTICS, "variance": [1, 1, -1e-3, 1]}), ["norm"]),
        (graph(STATISTICS, known=False), ["norm"]),
        (graph(STATISTICS), []),
    ],
    ids=["no map", "statistics that are no number", "a factor without end", "statistics that are an input", "no follower"],
)
def test_others_stay(apply: Apply, class_contract: Contract, before: onnx.ModelProto, followers: list[str]) -> None:
    made, result = apply(batch_norm, before, class_contract, followers=frozenset(followers))
    assert not result and made == before


class PreActivation(nn.Module):
    """Residual blocks that normalize before they convolve; one channel was switched off by training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.classify = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(64, 32, 3), nn.Linear(32, 3)
        self.one, self.two = nn.BatchNorm2d(32), nn.BatchNorm2d(64)
        for each in (*self.one.parameters(), *self.two.parameters()):
            each.data.uniform_(-0.5, 1.5)
            each.data[0] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        start = self.stem(x)
        joined = torch.cat([start, start + self.first(self.one(start + start).relu())], 1)
        result: Tensor = self.classify(self.second(self.two(joined).relu()).mean((2, 3)))
        return result


def test_normalizations_behind_sums_and_joins_run_as_integers(integer_kernels: "Callable[[type[nn.Module]], Counter[str]]") -> None:
    kinds = integer_kernels(PreActivation)
    assert kinds["QLinearConv"] == 5, kinds
    assert not {"BatchNormalization", "Conv", "Mul", "QuantizeLinear", "DequantizeLinear"} & set(kinds), kinds


class BetweenLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.near, self.one, self.far, self.two, self.classify = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        near = self.near(x)
        far = self.far(self.one(near + near.relu()).mean((2, 3)))
        result: Tensor = self.classify(self.two(far + far.relu()))
        return result


def test_that_of_a_map_follows_and_that_between_linear_layers_does_not(class_contract: Contract) -> None:
    prepared = preprocess(trace(BetweenLinear().eval(), class_contract).model)
    followers = follower_products(GraphEditor(prepared))
    norms = {node.name: node.name in followers for node in prepared.graph.node if node.op_type == "BatchNormalization"}
    assert norms == {"one/BatchNormalization": True, "two/BatchNormalization": False}
