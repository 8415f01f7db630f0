from collections.abc import Callable

import onnx
from onnx import TensorProto, helper

from edgeport_export.rewrites.graph import PassResult
from edgeport_export.rewrites.int8_graph.integer_shapes import integer_shapes
from edgeport_runtime import Contract

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]


def test_the_shape_is_that_of_the_integers(apply: Apply, class_contract: Contract) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["bytes", "s", "z"], ["real"]),
        helper.make_node("Shape", ["real"], ["sizes"], start=1),
        helper.make_node("Shape", ["other"], ["more"]),
        helper.make_node("Relu", ["real"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("sizes", "more", "y")]
    made, result = apply(integer_shapes, helper.make_model(helper.make_graph(nodes, "g", [], values)), class_contract)
    assert result.changed == 1
    assert [list(node.input) for node in made.graph.node] == [["bytes", "s", "z"], ["bytes"], ["other"], ["real"]]
