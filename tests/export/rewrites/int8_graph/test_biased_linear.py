"""Linear layers with their bias: held to float64, and to the kernel that runs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeport_export.rewrites.graph import PassResult
from edgeport_export.rewrites.int8_graph.biased_linear import biased_linear
from edgeport_runtime import Contract, SessionOptions
from edgeport_runtime.device import open_session

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]
STEP, ZERO = 0.02, 100
OPEN: tuple[str | int, ...] = ("n", 5, 6)


class Layer:
    """x of bytes (…, inputs), weights and their steps drawn at random, and the graph that multiplies them and adds a bias."""

    def __init__(self, *, inputs: int = 6, outputs: int = 4, seed: int = 0, step_for_each: bool = True) -> None:
        generator = np.random.default_rng(seed)
        self.weights = generator.integers(-127, 128, (inputs, outputs)).astype(np.int8)
        self.steps = generator.uniform(0.001, 0.01, outputs if step_for_each else ()).astype(np.float32)
        self.bias = (generator.standard_normal(outputs)).astype(np.float32)

    def graph(
        self, sizes: tuple[str | int, ...] = OPEN, *, bias_first: bool = False, bias: np.ndarray | None = None, read_twice: bool = False
    ) -> onnx.ModelProto:
        constants = {
            "s": np.float32(STEP),
            "z": np.uint8(ZERO),
            "w": self.weights,
            "ws": self.steps,
            "wz": np.zeros(self.steps.shape, np.int8),
            "b": self.bias if bias is None else bias,
        }
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x8"]),
            helper.make_node("DequantizeLinear", ["x8", "s", "z"], ["real"]),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["weights"], axis=1),
            helper.make_node("MatMul", ["real", "weights"], ["product"], name="layer"),
            helper.make_node("Add", ["b", "product"] if bias_first else ["product", "b"], ["sum"]),
            helper.make_node("Identity", ["sum"], ["out"]),
        ]
        values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)]
        out = [helper.make_tensor_value_info("out", TensorProto.FLOAT, [None] * len(sizes))]
        if read_twice:
            out.append(helper.make_tensor_value_info("product", TensorProto.FLOAT, [None] * len(sizes)))
        made = helper.make_graph(nodes, "g", values, out, [numpy_helper.from_array(np.array(array), name) for name, array in constants.items()])
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def expected(self, x: np.ndarray) -> np.ndarray:
        """In float64. `x`: on its steps."""
        return x.astype(np.float64) @ (self.weights * self.steps.astype(np.float64)) + self.bias


def on_steps(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    integers = np.random.default_rng(seed).integers(0, 256, shape)
    return ((integers - ZERO) * STEP).astype(np.float32)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return np.asarray(open_session(model.SerializeToString(), SessionOptions(threads=1)).run(["out"], {"x": x})[0])


@settings(max_examples=25, deadline=None)
@given(
    leading=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    inputs=st.integers(1, 20),
    outputs=st.integers(1, 20),
    bias_first=st.booleans(),
    step_for_each=st.booleans(),
)
def test_the_sums_are_those_of_float64(
    apply: Apply, class_contract: Contract, leading: list[int], inputs: int, outputs: int, bias_first: bool, step_for_each: bool
) -> None:
    layer = Layer(inputs=inputs, outputs=outputs, seed=inputs, step_for_each=step_for_each)
    model, result = apply(biased_linear, layer.graph(("n", *leading[1:], inputs), bias_first=bias_first), class_contract, products={"layer"})
    assert result.changed == 1 and not [node for node in model.graph.node if node.op_type == "MatMul"]
    onnx.checker.check_model(model, full_check=True)
    x = on_steps((*leading, inputs))
    np.testing.assert_allclose(run(model, x), layer.expected(x), rtol=1e-5, atol=1e-4)


def test_one_kernel_adds_the_bias(apply: Apply, class_contract: Contract, tmp_path: Path) -> None:
    import onnxruntime

    model, _ = apply(biased_linear, Layer().graph(), class_contract, products={"layer"})
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    made = [node for node in onnx.load(options.optimized_model_filepath).graph.node if node.op_type not in ("QuantizeLinear", "Shape", "Cast")]
    assert [(node.op_type, node.name) for node in made] == [("MatMulIntegerToFloat", "layer")] and len(made[0].input) == 7  # the last is the bias


@pytest.mark.parametrize(
    ("model", "products"),
    [
        (Layer().graph((3, 5, 6)), ["layer"]),
        (Layer().graph(bias=np.ones((5, 4), np.float32)), ["layer"]),
        (Layer().graph(("n", 4, 6), bias=np.ones((4, 1), np.float32)), ["layer"]),
        (Layer().graph(bias=np.ones(1, np.float32)), ["layer"]),
        (Layer().graph(read_twice=True), ["layer"]),
        (Layer().graph(), []),
    ],
    ids=["no open size", "a bias for each position", "as many positions as outputs", "one number", "sums that are read elsewhere", "no product"],
)
def test_others_stay(apply: Apply, class_contract: Contract, model: onnx.ModelProto, products: list[str]) -> None:
    made, result = apply(biased_linear, model, class_contract, products=set(products))
    assert not result and made == model
