from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeport_export.rewrites.nodes import NodeBuilder, attributes, every_node, swaps_last_axes, transpose_order


def test_attributes_by_name() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 2, 3, 4], group=2, auto_pad="NOTSET")
    assert attributes(node) == {"pads": [1, 2, 3, 4], "group": 2, "auto_pad": b"NOTSET"}
    assert attributes(helper.make_node("Relu", ["x"], ["y"])) == {}


@pytest.mark.parametrize(
    ("op_type", "perm", "swaps"),
    [
        ("Transpose", [1, 0], True),
        ("Transpose", [0, 2, 1], True),
        ("Transpose", [0, 1, 3, 2], True),
        ("Transpose", [0, 2, 3, 1], False),
        ("Transpose", [2, 1, 0], False),
        ("Transpose", [0], False),
        ("Transpose", None, False),
        ("Relu", [1, 0], False),
    ],
)
def test_a_transposition_of_the_last_two_axes(op_type: str, perm: list[int] | None, swaps: bool) -> None:
    node = helper.make_node(op_type, ["x"], ["y"], **({} if perm is None else {"perm": perm}))
    assert swaps_last_axes(node) == swaps and transpose_order(node) == (perm or [])


def test_nodes_of_branches_are_found_at_any_depth() -> None:
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    inner = helper.make_graph([helper.make_node("Abs", ["x"], ["y"], "inner")], "inner", [], [value])
    outer = helper.make_graph([helper.make_node("If", ["c"], ["y"], "outer", then_branch=inner, else_branch=inner)], "outer", [], [value])
    graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], "top", then_branch=outer, else_branch=inner)], "g", [], [value])
    assert Counter(node.name for node in every_node(graph)) == {"top": 1, "outer": 1, "inner": 3}


def test_values_and_nodes_are_named_after_the_prefix() -> None:
    graph = onnx.GraphProto()
    made = NodeBuilder(graph, "stem.")
    assert made.constant("axes", [2, 3]) == "stem.axes"
    assert made.add("ReduceMean", ["x", "stem.axes"], "mean", keepdims=0) == "stem.mean"
    assert made.add("Relu", ["stem.mean"], into="y", name="conv1/Relu") == "y"
    assert numpy_helper.to_array(graph.initializer[0]).dtype == np.int64
    assert [(node.name, list(node.output)) for node in made.nodes] == [("edgeport/stem.mean", ["stem.mean"]), ("conv1/Relu", ["y"])]
    assert attributes(made.nodes[0]) == {"keepdims": 0}


def test_a_node_is_repeated_on_another_value() -> None:
    made, node = NodeBuilder(onnx.GraphProto(), "p."), helper.make_node("Reshape", ["x", "shape"], ["y"], "view", allowzero=1)
    assert made.repeat(node, "bytes", "moved") == "p.moved"
    copy = made.nodes[0]
    assert (copy.name, list(copy.input), list(copy.output), attributes(copy)) == ("edgeport/p.moved", ["bytes", "shape"], ["p.moved"], {"allowzero": 1})
    assert list(node.input) == ["x", "shape"] and node.name == "view"


def test_a_part_of_a_graph_becomes_a_branch_with_constants_of_its_own() -> None:
    nodes = [helper.make_node("Add", ["x", "c"], ["s"], "add"), helper.make_node("Mul", ["s", "c"], ["m"], "mul")]
    graph = helper.make_graph(nodes, "g", [], [], [numpy_helper.from_array(np.ones(2, np.float32), name) for name in ("c", "other")])
    made = NodeBuilder(onnx.GraphProto(), "then.")
    names = made.copy(graph, nodes, {"x": "filled"})
    assert names == {"x": "filled", "s": "then.s", "m": "then.m", "c": "then.c"}
    branch = made.as_branch("then", TensorProto.FLOAT, 1)
    assert [(node.name, list(node.input)) for node in branch.node] == [("add", ["filled", "then.c"]), ("mul", ["then.s", "then.c"])]
    assert [each.name for each in branch.initializer] == ["then.c"] and [each.name for each in branch.output] == ["then.m"]
    assert list(nodes[0].input) == ["x", "c"]
