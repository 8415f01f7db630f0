"""HardSigmoid in steps: held to PyTorch in float64, and to what the integer kernels then run."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional

from edgeport_export.quantize import preprocess, sources
from edgeport_export.rewrites.hard_sigmoid import hard_sigmoid
from edgeport_export.trace import trace
from edgeport_runtime import Contract, SessionOptions
from edgeport_runtime.device import open_session

X = np.linspace(-8, 8, 2001, dtype=np.float32)
WIDE = torch.from_numpy(X).double()


def graph(**attributes: float) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in ("x", "out")]
    nodes = [helper.make_node("HardSigmoid", ["x"], ["y"], name="act", **attributes), helper.make_node("Identity", ["y"], ["out"], name="end")]
    made = helper.make_graph(nodes, "g", values[:1], values[1:])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: bytes, **inputs: np.ndarray) -> np.ndarray:
    return np.asarray(open_session(model, SessionOptions(threads=1)).run(None, inputs)[0])


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"alpha": 1 / 6, "beta": 0.5}, functional.hardsigmoid(WIDE)),
        ({}, (0.2 * WIDE + 0.5).clamp(0, 1)),  # ONNX's own defaults
        ({"alpha": 2.0, "beta": -1.0}, (2 * WIDE - 1).clamp(0, 1)),
    ],
)
def test_the_steps_give_what_pytorch_gives_in_float64(attributes: dict[str, float], expected: Tensor) -> None:
    model, names = graph(**attributes), {"act"}
    ranges = hard_sigmoid(model, names)
    assert {"Add", "Clip", "Mul", "Identity"} == {node.op_type for node in model.graph.node} and names >= {"act.sum", "act.clipped"}
    assert all(low == 0 and high > 0 for low, high in ranges.values())
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run(model.SerializeToString(), x=X), expected.numpy(), atol=2e-6)


def test_a_falling_line_and_those_that_are_not_named_stay() -> None:
    falling, other = graph(alpha=-0.2), graph()
    for model, names in ((falling, {"act"}), (other, set[str]())):
        before = model.SerializeToString(deterministic=True)
        assert hard_sigmoid(model, names) == {} and model.SerializeToString(deterministic=True) == before


class Gated(nn.Module):
    """MobileNetV3's block: an expansion with HardSwish, a gate of its mean with HardSigmoid, and a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze, self.excite, self.head = nn.Conv2d(3, 32, 3, 2), nn.Conv2d(32, 16, 1), nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)
        self.classify = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        wide = functional.hardswish(self.stem(x))
        gate = functional.hardsigmoid(self.excite(torch.relu(self.squeeze(wide.mean((2, 3), keepdim=True)))))
        return self.classify(functional.hardswish(self.head(gate * wide)).mean((2, 3)))


def test_a_gated_block_runs_as_integers_throughout(integer_kernels: "Callable[[type[nn.Module]], Counter[str]]") -> None:
    kinds = integer_kernels(Gated)
    assert (kinds["QLinearConv"], kinds["QLinearAdd"], kinds["QLinearMul"]) == (4, 3, 3)
    assert not {"HardSwish", "HardSigmoid", "Mul", "Clip", "QuantizeLinear", "DequantizeLinear"} & set(kinds), kinds


class Gates(nn.Module):
    """Answers with the gate itself."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.hardsigmoid(functional.adaptive_avg_pool2d(self.far(torch.relu(self.near(x))), 1).flatten(1))


class LastGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.near, self.classify = nn.Conv2d(3, 16, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.hardsigmoid(self.classify(torch.relu(self.near(x)).mean((2, 3))))


@pytest.mark.parametrize("network", [Gates, LastGate])
def test_a_gate_that_is_the_answer_stays_the_answer(network: type[nn.Module], integer_kernels: "Callable[[type[nn.Module]], Counter[str]]") -> None:
    assert integer_kernels(network)["HardSigmoid"] == 1


def test_the_parts_of_a_function_have_names(class_contract: Contract) -> None:
    """onnxruntime's preprocessing puts HardSwish's two parts in its place, without any."""
    prepared = preprocess(trace(Gated().eval(), class_contract).model)
    assert len({node.name for node in prepared.graph.node} - {""}) == len(prepared.graph.node)
    assert Counter(node.op_type for node in prepared.graph.node if node.name in sources(prepared)) >= Counter(HardSigmoid=3, Mul=3, Relu=1)
