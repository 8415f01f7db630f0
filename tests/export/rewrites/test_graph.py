from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeport_export.rewrites.graph import GraphEditor, PassResult


def model() -> onnx.ModelProto:
    """x + c -> s; s -> a (Relu), s -> b (Neg); a * b -> out; and `unread`, a constant."""
    nodes = [
        helper.make_node("Add", ["x", "c"], ["s"], "add"),
        helper.make_node("Relu", ["s"], ["a"], "relu"),
        helper.make_node("Neg", ["s"], ["b"], "neg"),
        helper.make_node("Mul", ["a", "b"], ["out"], "mul"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "out")]
    constants = [numpy_helper.from_array(np.array([1, 2, 3], np.float32), name) for name in ("c", "unread")]
    between = [helper.make_tensor_value_info("s", TensorProto.FLOAT, ["n", None])]
    return helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], constants, value_info=between), ir_version=10)


@pytest.fixture
def editor() -> GraphEditor:
    return GraphEditor(model())


def order(editor: GraphEditor) -> list[str]:
    return [node.name for node in editor.nodes]


def named(editor: GraphEditor, name: str) -> onnx.NodeProto:
    return next(node for node in editor.nodes if node.name == name)


def test_what_a_graph_holds(editor: GraphEditor) -> None:
    assert editor.producers["s"].name == "add" and [node.name for node in editor.readers["s"]] == ["relu", "neg"]
    assert editor.outputs == {"out"} and set(editor.constants) == {"c", "unread"} and editor.array("c").tolist() == [1, 2, 3]
    assert editor.dims == {"x": ("n", 3), "out": ("n", 3), "s": ("n", "")}
    assert [node.name for node in editor.ancestors("a")] == ["add", "relu"] and editor.first("Mul") == named(editor, "mul")
    assert editor.first("Conv") is None


@pytest.mark.parametrize(("sizes", "expected"), [(["n", 3], True), ([2, None], True), (None, True), ([2, 3], False), ([], False)])
def test_sizes_that_are_known_only_while_the_network_runs(sizes: list[str | int | None] | None, expected: bool) -> None:
    made = model()
    made.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes))
    assert GraphEditor(made).has_open_sizes == expected


def test_a_node_is_asked_for_by_its_operator(editor: GraphEditor) -> None:
    assert editor.producer("a", "Relu", "Clip") == named(editor, "relu")
    assert editor.producer("a", "Neg") is None and editor.producer("x", "Relu") is None
    assert editor.only_reader("a") == named(editor, "mul")
    assert editor.only_reader("s") is None and editor.only_reader("out") is None


@pytest.mark.parametrize(("names", "expected"), [(["c"], True), (["c", ""], True), (["c", "x"], False), ([], True)])
def test_names_of_constants(editor: GraphEditor, names: list[str], expected: bool) -> None:
    assert editor.are_constants(names) == expected


def test_a_copy_leaves_the_model_as_it_is() -> None:
    first = model()
    editor = GraphEditor.of_copy(first)
    editor.remove([named(editor, "neg")])
    assert first == model() and len(editor.nodes) == 3


def replace(editor: GraphEditor, made: list[onnx.NodeProto]) -> None:
    editor.replace(named(editor, "relu"), made)


def before(editor: GraphEditor, made: list[onnx.NodeProto]) -> None:
    editor.insert_before(named(editor, "relu"), made)


def after(editor: GraphEditor, made: list[onnx.NodeProto]) -> None:
    editor.insert_after(named(editor, "relu"), made)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (replace, ["add", "p", "q", "neg", "mul"]),
        (before, ["add", "p", "q", "relu", "neg", "mul"]),
        (after, ["add", "relu", "p", "q", "neg", "mul"]),
    ],
)
def test_nodes_come_in_their_order_and_place(editor: GraphEditor, change: Callable[..., None], expected: list[str]) -> None:
    change(editor, [helper.make_node("Abs", ["s"], ["p1"], "p"), helper.make_node("Exp", ["p1"], ["q1"], "q")])
    assert order(editor) == expected and editor.producers["q1"].name == "q" and [node.name for node in editor.readers["p1"]] == ["q"]


def test_appended_nodes_stand_after_what_they_read(editor: GraphEditor) -> None:
    editor.set_input(named(editor, "mul"), 1, "late")
    editor.append([helper.make_node("Abs", ["b"], ["late"], "abs")])
    assert order(editor).index("neg") < order(editor).index("abs") < order(editor).index("mul")


def test_inputs_and_outputs_change(editor: GraphEditor) -> None:
    editor.set_inputs(named(editor, "mul"), ["a", "a"])
    assert [node.name for node in editor.readers["a"]] == ["mul"] and "b" not in editor.readers
    editor.set_output(named(editor, "neg"), "c2")
    assert editor.producers["c2"].name == "neg" and "b" not in editor.producers
    editor.read_instead("s", "x")
    assert "s" not in editor.readers and {node.name for node in editor.readers["x"]} == {"add", "relu", "neg"}


def test_a_value_gets_another_name_everywhere(editor: GraphEditor) -> None:
    editor.rename("s", "sum")
    assert editor.producers["sum"].name == "add" and [node.name for node in editor.readers["sum"]] == ["relu", "neg"]
    assert "s" not in editor.producers and "s" not in editor.readers


def test_nodes_that_nobody_reads_go_with_all_that_only_they_read(editor: GraphEditor) -> None:
    editor.set_inputs(named(editor, "mul"), ["a", "a"])
    editor.remove_unread(["b"])
    assert order(editor) == ["add", "relu", "mul"] and set(editor.constants) == {"c"}
    editor.remove_unread(["a"])  # which is read
    assert order(editor) == ["add", "relu", "mul"]


def test_an_output_goes_with_the_nodes_that_only_it_needed(editor: GraphEditor) -> None:
    editor.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, None))
    editor.remove_output("out")
    assert order(editor) == ["add", "neg"] and editor.outputs == {"b"}


def test_constants_that_a_branch_reads_are_kept() -> None:
    branch = helper.make_graph([helper.make_node("Add", ["x", "inner"], ["y"])], "b", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    node = helper.make_node("If", ["asked"], ["z"], then_branch=branch, else_branch=branch)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]), helper.make_tensor_value_info("asked", TensorProto.BOOL, [])]
    constants = [numpy_helper.from_array(np.ones(1, np.float32), name) for name in ("inner", "unread")]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)], constants)
    editor = GraphEditor(helper.make_model(graph))
    editor.remove_unread()
    assert [each.name for each in graph.initializer] == ["inner", "unread"]  # `make_model` has copied the graph
    assert set(editor.constants) == {"inner"}


def test_constants_and_attributes_change(editor: GraphEditor) -> None:
    editor.set_array("c", np.array([4.0], np.float32))
    assert editor.array("c").tolist() == [4.0]
    node = named(editor, "mul")
    editor.set_attributes(node, {"axis": 2})
    editor.set_attributes(node, {"perm": [1, 0]})
    assert [(each.name, list(each.ints)) for each in node.attribute] == [("perm", [1, 0])]


def test_an_opset_is_raised_and_never_lowered(editor: GraphEditor) -> None:
    del editor.model.opset_import[:]
    editor.model.opset_import.extend([helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)])
    for asked, version in ((19, 20), (21, 21), (20, 21)):
        editor.require_opset(asked)
        assert [(each.domain, each.version) for each in editor.model.opset_import] == [("", version), ("com.microsoft", 1)]


def test_sizes_that_changed_are_forgotten(editor: GraphEditor) -> None:
    editor.forget_dims(["s", "nothing"])
    assert "s" not in editor.dims and "x" in editor.dims


def test_a_builder_adds_to_the_graph_and_it_still_runs(editor: GraphEditor) -> None:
    made = editor.builder("new.")
    two = made.constant("two", np.array(2, np.float32))
    made.add("Mul", ["s", two], into="a", name="twice")
    editor.replace(named(editor, "relu"), made.nodes)
    editor.remove_unread()
    onnx.checker.check_model(editor.model, full_check=True)
    assert editor.array("new.two") == 2 and named(editor, "twice").output[0] == "a"


@pytest.mark.parametrize(("changed", "expected"), [(0, False), (1, True), (7, True)])
def test_a_result_is_true_if_anything_changed(changed: int, expected: bool) -> None:
    assert bool(PassResult(changed=changed)) is expected
