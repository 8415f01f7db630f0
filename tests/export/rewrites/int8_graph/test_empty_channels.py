"""The biases of channels whose weights are all zero, as the integer kernels add them."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgeport_export.quantization.variants import QuantizableGraph
from edgeport_export.rewrites.finalize import finalize
from edgeport_export.rewrites.graph import PassResult
from edgeport_export.rewrites.int8_graph.empty_channels import empty_channels
from edgeport_runtime import Contract

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]


def product(op_type: str, weights: np.ndarray, bias: np.ndarray, **given: int) -> onnx.ModelProto:
    axes = {"Conv": ["n", "c", "h", "w"], "Gemm": ["n", "c"]}[op_type]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in ("x", "y")]
    constants = [numpy_helper.from_array(weights.astype(np.float32), "w"), numpy_helper.from_array(bias.astype(np.float32), "b")]
    made = helper.make_graph([helper.make_node(op_type, ["x", "w", "b"], ["y"], name="product", **given)], "g", values[:1], values[1:], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


FILTERS, BIAS = np.array([[[[1, 2]], [[3, 4]]], [[[0, 0]], [[0, 0]]], [[[0, 0]], [[0, 0]]]]), np.array([0.0, -0.5, 0.0])  # (3, 2, 1, 2)
ROWS = FILTERS.reshape(3, 4)
WEIGHT = 127 * 0.5 / (2**26 * 2.0)  # 2 is the step of an input between -10 and 500


@pytest.mark.parametrize(
    ("before", "at"),
    [
        (product("Conv", FILTERS, BIAS), (1, 0, 0, 0)),
        (product("Gemm", ROWS, BIAS, transB=1), (1, 0)),
        (product("Gemm", ROWS.T, BIAS), (0, 1)),
    ],
    ids=["convolution", "linear layer, features first", "linear layer, features last"],
)
def test_the_one_weight_and_no_other(apply: Apply, class_contract: Contract, before: onnx.ModelProto, at: tuple[int, ...]) -> None:
    model, result = apply(empty_channels, before, class_contract, products=frozenset(["product"]), ranges={"x": (-10.0, 500.0)})
    (name,) = [each for each in model.graph.node[0].input if each.endswith(".filled")]
    made = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    expected = numpy_helper.to_array(before.graph.initializer[0]).copy()
    expected[at] = WEIGHT
    assert result.changed == 1
    np.testing.assert_allclose(made[name], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("before", "products"),
    [
        (product("Conv", FILTERS, BIAS), []),
        (product("Conv", FILTERS, np.array([1.0, 0.0, 0.0])), ["product"]),
        (product("Conv", FILTERS + 1, BIAS), ["product"]),
    ],
    ids=["a float product", "no bias", "no empty channel"],
)
def test_others_stay(apply: Apply, class_contract: Contract, before: onnx.ModelProto, products: list[str]) -> None:
    made, result = apply(empty_channels, before, class_contract, products=frozenset(products), ranges={"x": (-10.0, 500.0)})
    assert not result and made == before


class Pruned(nn.Module):
    """Half of the filters are empty; the map that they read spans a hundred times their biases."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pruned, self.classify = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 3)
        with torch.no_grad():
            self.stem.weight *= 50
            self.pruned.weight /= 100
            self.pruned.weight[::2] = 0
            self.pruned.bias.uniform_(0.1, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.classify(self.pruned(self.stem(x).relu()).mean((2, 3)))
        return result


def test_a_pruned_network_stays_near_float64(
    tiny: ModuleType,
    quantizable: Callable[..., QuantizableGraph],
    all_integer: Callable[..., onnx.ModelProto],
    run_first: Callable[..., np.ndarray],
    class_contract: Contract,
) -> None:
    network = Pruned().eval()
    int8 = all_integer(quantizable(network, class_contract), tiny.brightness_examples(24, seed=5))
    pixels = np.stack([each.source for each in tiny.brightness_examples(6, seed=6)])
    expected = network.double()(torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 127.5 - 1).detach().numpy()
    error = np.abs(run_first(finalize(int8, class_contract), pixels) - expected).max()
    assert error < 0.02 * np.ptp(expected)
