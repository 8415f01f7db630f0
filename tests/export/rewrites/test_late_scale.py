"""A scale that is known while the network runs: its value, and that onnxruntime leaves it until then."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeport_export.rewrites.graph import GraphEditor
from edgeport_export.rewrites.late_scale import late_scale

SCALE = np.array([0.5, 0.003, 7.0], np.float32)


def product(*, late: bool, rows: str | int = "n") -> onnx.ModelProto:
    """x (rows, 4) of bytes times integers (4, 3), scaled."""
    arrays = {"w": np.arange(-6, 6, dtype=np.int8).reshape(4, 3), "scale": SCALE}
    nodes = [helper.make_node("MatMulInteger", ["x", "w"], ["sums"]), helper.make_node("Cast", ["sums"], ["real"], to=TensorProto.FLOAT)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [rows, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [rows, 3])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    editor = GraphEditor(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    made = editor.builder("late.")
    name = late_scale(made, SCALE, "x", size=4) if late else "scale"
    made.add("Mul", ["real", name], into="out")
    editor.append(made.nodes)
    editor.remove_unread()
    return editor.model


def kernels(model: onnx.ModelProto, folder: Path) -> set[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}


def test_the_scale_is_what_was_given() -> None:
    model = product(late=True)
    onnx.checker.check_model(model, full_check=True)
    x = np.random.default_rng(0).integers(0, 256, (5, 4), dtype=np.uint8)
    expected = (x.astype(np.float64) @ np.arange(-6.0, 6.0).reshape(4, 3)) * SCALE
    out = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    np.testing.assert_allclose(out, expected, rtol=1e-6)


@pytest.mark.parametrize(("late", "rows", "merged"), [(True, "n", True), (False, "n", False), (True, 5, False)], ids=["late", "a constant", "no open size"])
def test_one_kernel_multiplies_and_scales(tmp_path: Path, late: bool, rows: str | int, merged: bool) -> None:
    assert ("MatMulIntegerToFloat" in kernels(product(late=late, rows=rows), tmp_path)) == merged
