from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from edgeport_export.diagnosis.graph_changes import graph_changes, told

SOURCE = """<ir_version: 8, opset_import: ["" : 18]>
g (float[1,2,4,4] x) => (float[1,2,4,4] y)
<float[2,2,1,1] w = {1, 2, 3, 4}>
{
  a = Conv <pads = [0, 0, 0, 0]> (x, w)
  y = Relu (a)
}"""


def model() -> onnx.ModelProto:
    made = parser.parse_model(SOURCE)
    for node, name in zip(made.graph.node, ("block.conv/Conv", "block.relu/Relu"), strict=True):
        node.name = name
    made.graph.initializer[0].name = made.graph.node[0].input[1] = "network.block.conv.weight"  # the text form knows no dots
    return made


def weight(value: float) -> Callable[[onnx.ModelProto], None]:
    def change(made: onnx.ModelProto) -> None:
        values = numpy_helper.to_array(made.graph.initializer[0]).copy()
        values[1, 0] = value
        made.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, made.graph.initializer[0].name))

    return change


def operator(made: onnx.ModelProto) -> None:
    made.graph.node[1].op_type = "Elu"


def attribute(made: onnx.ModelProto) -> None:
    made.graph.node[0].attribute[0].ints[0] = 1


def wiring(made: onnx.ModelProto) -> None:
    made.graph.node[1].input[0] = "x"


def missing(made: onnx.ModelProto) -> None:
    made.graph.node[0].output[0] = "y"
    del made.graph.node[1]


def added(made: onnx.ModelProto) -> None:
    made.graph.node.append(onnx.helper.make_node("Neg", ["y"], ["z"], name="tail/Neg"))


def end(made: onnx.ModelProto) -> None:
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7


def shape(made: onnx.ModelProto) -> None:
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((2, 2), np.float32), made.graph.initializer[0].name))


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (weight(3.1), "values", "block.conv: block.conv.weight[1, 0, 0, 0] is 3.1 instead of 3"),
        (weight(float("nan")), "values", "block.conv.weight[1, 0, 0, 0] is nan instead of 3"),
        (operator, "operator", "block.relu: block.relu/Relu is Elu instead of Relu"),
        (attribute, "attribute", "block.conv: pads of block.conv/Conv is [1, 0, 0, 0] instead of [0, 0, 0, 0]"),
        (wiring, "wiring", "block.relu: block.relu/Relu reads x instead of a"),
        (missing, "missing", "block.relu: the node block.relu/Relu (Relu) is missing"),
        (added, "added", "tail: the node tail/Neg (Neg) was added"),
        (end, "end", "x: the input x is float[7, 2, 4, 4] instead of float[1, 2, 4, 4]"),
        (shape, "stored", "block.conv: network.block.conv.weight is float32 of shape (2, 2) instead of float32 (2, 2, 1, 1)"),
    ],
)
def test_every_kind_of_change_is_named_by_its_module(change: Callable[[onnx.ModelProto], None], kind: str, words: str) -> None:
    shipped = model()
    change(shipped)
    found = graph_changes(model(), shipped)
    assert kind in [each.kind for each in found] and any(words in str(each) for each in found), [str(each) for each in found]


def test_rounding_is_no_change() -> None:
    """Four units in the last place of the largest value, which is 4."""
    near, far = model(), model()
    weight(3 + 4 * 3 * 2.0**-23)(near)
    weight(3 + 4 * 5 * 2.0**-23)(far)
    assert not graph_changes(model(), model()) and not graph_changes(model(), near) and graph_changes(model(), far)


def test_integers_are_held_to_the_unit_and_named_by_the_product_that_reads_them() -> None:
    source = """<ir_version: 8, opset_import: ["" : 18]> g (float[2,2] x) => (float[2,2] y)
    <int8[2,2] w = {1, 2, 3, 4}, float s = {0.5}> { d = DequantizeLinear (w, s) y = MatMul (x, d) }"""
    made = [parser.parse_model(source) for _ in range(2)]
    for each in made:
        each.graph.node[0].name, each.graph.node[1].name = "w_DequantizeLinear", "head/MatMul"
    made[1].graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([[1, 2], [3, 5]], np.int8), "w"))
    assert list(map(str, graph_changes(*made))) == ["head: w[1, 1] is 5 instead of 4"]


def test_a_line_names_the_first_few() -> None:
    shipped = model()
    weight(9)(shipped)
    changes = graph_changes(model(), shipped) * 5
    assert told(changes).endswith("; and 2 more") and told(changes).count("block.conv.weight[") == 3
