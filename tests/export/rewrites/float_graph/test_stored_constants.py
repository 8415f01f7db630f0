"""Constants are stored with the values that onnxruntime would have computed, and nothing else changes."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeport_export.rewrites.float_graph import stored_constants as module
from edgeport_export.rewrites.float_graph.stored_constants import stored_constants
from edgeport_export.rewrites.graph import GraphEditor
from edgeport_runtime.outline import read_outline

WEIGHTS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "k": np.array([2], np.int64),
    "scale": np.array(0.5, np.float32),
    "q": np.arange(3, dtype=np.uint8),
}


def model(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    stored = [numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()]
    made = helper.make_model(helper.make_graph(nodes, "g", value[:1], value[1:], stored), opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return made


def answer(made: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": np.full((1, 3), 10.0, np.float32)})[0])


CHAIN = [
    helper.make_node("Transpose", ["w"], ["t"]),
    helper.make_node("MatMul", ["w", "t"], ["m"]),
    helper.make_node("ReduceSum", ["m"], ["r"], keepdims=0),
    helper.make_node("ConstantOfShape", ["k"], ["c"]),
    helper.make_node("ReduceMax", ["c"], ["z"], keepdims=0),
    helper.make_node("Add", ["r", "z"], ["s"]),
    helper.make_node("DequantizeLinear", ["q", "scale"], ["d"]),
    helper.make_node("Mul", ["x", "s"], ["xs"]),
    helper.make_node("Add", ["xs", "d"], ["y"]),
]


def test_values_are_stored_and_answers_stay() -> None:
    made = model(CHAIN)
    before = answer(made)
    assert read_outline(made.SerializeToString()).fault is not None
    editor = GraphEditor(made)
    assert stored_constants(editor).changed == 5
    assert {"DequantizeLinear", "Mul", "Add"} <= {node.op_type for node in editor.nodes} and "MatMul" not in {node.op_type for node in editor.nodes}
    assert read_outline(made.SerializeToString()).fault is None
    np.testing.assert_array_equal(answer(made), before)
    assert not stored_constants(GraphEditor(made))


def test_an_input_that_a_node_reads_keeps_it() -> None:
    made = model([helper.make_node("MatMul", ["x", "w2"], ["y"]), helper.make_node("Transpose", ["w"], ["w2"])][::-1])
    assert not stored_constants(GraphEditor(made)) and len(made.graph.node) == 2


def test_what_would_be_very_large_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_BYTES", 7)
    made = model([helper.make_node("ConstantOfShape", ["k"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])])
    assert (
        not stored_constants(GraphEditor(made))
        and read_outline(made.SerializeToString()).fault == "a node of the operator 'ConstantOfShape' that computes from constants alone"
    )
