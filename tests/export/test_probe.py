import onnx
from onnx import TensorProto, helper

from edgeport_runtime.probe import MODEL


def test_the_stored_bytes_are_the_graph_they_say_they_are() -> None:
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 64]), helper.make_tensor_value_info("w", TensorProto.INT8, [64, 16])]
    output = helper.make_tensor_value_info("y", TensorProto.INT32, [1, 16])
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["x", "w"], ["y"])], "probe", inputs, [output])
    assert onnx.load_from_string(MODEL) == helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
