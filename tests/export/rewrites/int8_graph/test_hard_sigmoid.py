"""HardSigmoid in steps: held to PyTorch in float64, and to what the integer kernels then run."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from edgeport_export.quantization.qdq import follower_products, preprocess
from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.int8_graph.hard_sigmoid import drop_factors, hard_sigmoid
from edgeport_export.tracing.exporter import trace
from edgeport_runtime import Contract, SessionOptions
from edgeport_runtime.device import open_session

X = np.linspace(-8, 8, 2001, dtype=np.float32)
needs_parts = pytest.mark.skipif(
    tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 31), reason="onnxruntime before 1.31 leaves HardSwish whole, which then stays float"
)
WIDE = torch.from_numpy(X).double()
Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]


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
def test_the_steps_give_what_pytorch_gives_in_float64(apply: Apply, class_contract: Contract, attributes: dict[str, float], expected: Tensor) -> None:
    model, result = apply(hard_sigmoid, graph(**attributes), class_contract, followers=frozenset(["act"]))
    assert result.changed == 1 and result.followers == {"act.sum", "act.clipped"}
    assert {"Add", "Clip", "Mul", "Identity"} == {node.op_type for node in model.graph.node}
    assert all(low == 0 and high > 0 for low, high in result.ranges.values())
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run(model.SerializeToString(), x=X), expected.numpy(), atol=2e-6)


@pytest.mark.parametrize(("attributes", "followers"), [({"alpha": -0.2}, ["act"]), ({}, [])], ids=["a falling line", "no follower"])
def test_others_stay(apply: Apply, class_contract: Contract, attributes: dict[str, float], followers: list[str]) -> None:
    before = graph(**attributes)
    made, result = apply(hard_sigmoid, before, class_contract, followers=frozenset(followers))
    assert not result and made == before and not result.followers


def scaled(factor: float, second_scale: float, second_zero: int, scales: int = 1) -> onnx.ModelProto:
    """DequantizeLinear, times a factor, QuantizeLinear: bytes to bytes."""
    arrays = {
        "s1": np.full(scales, 0.02, np.float32) if scales > 1 else np.array(0.02, np.float32),
        "z1": np.full(scales, 3, np.uint8) if scales > 1 else np.array(3, np.uint8),
        "s2": np.array(second_scale, np.float32),
        "z2": np.array(second_zero, np.uint8),
        "factor": np.array(factor, np.float32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s1", "z1"], ["real"], axis=1),
        helper.make_node("Mul", ["real", "factor"], ["product"]),
        helper.make_node("QuantizeLinear", ["product", "s2", "z2"], ["bytes"]),
        helper.make_node("Identity", ["bytes"], ["out"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.UINT8, ["n", 4]) for name in ("x", "out")]
    made = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(array, name) for name, array in arrays.items()])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("factor", "second_scale", "second_zero", "scales", "drops"),
    [
        (0.25, 0.005, 3, 1, True),
        (0.25, 0.006, 3, 1, False),  # other integers
        (0.25, 0.005, 4, 1, False),
        (0.25, 0.005, 3, 4, False),  # a scale for each channel
    ],
)
def test_a_factor_between_two_pairs_of_the_same_integers_goes(
    apply: Apply, class_contract: Contract, factor: float, second_scale: float, second_zero: int, scales: int, drops: bool
) -> None:
    before = scaled(factor, second_scale, second_zero, scales)
    made, result = apply(drop_factors, before, class_contract)
    assert result.changed == drops and ("Mul" in {node.op_type for node in made.graph.node}) != drops
    x = np.arange(256, dtype=np.uint8).reshape(-1, 4)
    np.testing.assert_array_equal(run(made.SerializeToString(), x=x), run(before.SerializeToString(), x=x))


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


@needs_parts
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


@needs_parts
def test_the_parts_of_a_function_have_names(class_contract: Contract) -> None:
    """onnxruntime's preprocessing puts HardSwish's two parts in its place, without any."""
    prepared = preprocess(trace(Gated().eval(), class_contract).model)
    assert len({node.name for node in prepared.graph.node} - {""}) == len(prepared.graph.node)
    followers = follower_products(GraphEditor(prepared))
    assert Counter(node.op_type for node in prepared.graph.node if node.name in followers) >= Counter(HardSigmoid=3, Mul=3, Relu=1)
