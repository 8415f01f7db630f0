import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeport_export.quantization.recovery import frontier
from edgeport_export.quantization.recovery.frontier import Frontier, run_from
from edgeport_export.rewrites.graph import GraphEditor

BATCHES = [{"x": np.full((2, 3), value, np.float32)} for value in (1.0, 5.0)]


@pytest.fixture
def editor() -> GraphEditor:
    """double = 2 x; shifted = double + 1; again = 3 double, standing last; size = the shape of x; y = shifted + x; z = again * y; w = z + size."""
    constants = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("two", 2.0), ("one", 1.0), ("three", 3.0))]
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["double"], name="double"),
        helper.make_node("Shape", ["x"], ["size"], name="size"),
        helper.make_node("Add", ["double", "one"], ["shifted"], name="shifted"),
        helper.make_node("Add", ["shifted", "x"], ["y"], name="y"),
        helper.make_node("Mul", ["double", "three"], ["again"], name="again"),
        helper.make_node("Mul", ["again", "y"], ["z"], name="z"),
        helper.make_node("Expand", ["z", "size"], ["w"], name="w"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("w", TensorProto.FLOAT, None)],
        initializer=constants,
    )
    return GraphEditor(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def value(x: float) -> float:
    """w by hand."""
    return 6 * x * (3 * x + 1)


def test_a_network_is_run_piece_by_piece(editor: GraphEditor) -> None:
    made = Frontier(editor, BATCHES)
    for reached, kept in (
        (["double"], {"x", "double"}),
        (["shifted"], {"x", "double", "shifted"}),
        (["y"], {"x", "double", "y"}),  # x is still read by Shape, which stands before but was not needed yet
        (["again", "size"], {"again", "y", "size"}),
    ):
        made.move_to(reached)
        assert set(made.values[0]) == set(made.values[1]) == kept
    assert [float(each[0, 0]) for each in (made.values[0]["again"], made.values[1]["again"], made.values[1]["y"])] == [6, 30, 16]
    assert [float(found[0][1, 2]) for found in made.run(["w"])] == [value(1), value(5)]


def test_what_stands_behind_may_change_and_what_was_passed_is_not_run_again(editor: GraphEditor) -> None:
    made = Frontier(editor, BATCHES)
    made.move_to(["shifted"])
    editor.set_array("two", np.array(100, np.float32))  # passed
    editor.set_array("three", np.array(4, np.float32))
    assert float(made.run(["z"])[0][0][0, 0]) == 4 * 2 * (3 + 1)


def test_known_values_need_no_run(editor: GraphEditor) -> None:
    assert [found[0] is known["x"] for found, known in zip(run_from(editor, BATCHES, ["x"]), BATCHES, strict=True)] == [True, True]
    both = run_from(editor, BATCHES, ["x", "double", "x"])
    assert [float(each[0, 0]) for each in both[1]] == [5, 10, 5]


def test_of_batches_that_do_not_fit_the_last_are_dropped(editor: GraphEditor, monkeypatch: pytest.MonkeyPatch) -> None:
    size = BATCHES[0]["x"].nbytes
    made = Frontier(editor, BATCHES * 2)
    monkeypatch.setattr(frontier, "MOST_BYTES", 3 * 2 * size)
    made.move_to(["double"])  # two values each
    assert len(made.values) == 3
    monkeypatch.setattr(frontier, "MOST_BYTES", 1)
    made.move_to(["shifted"])
    assert len(made.values) == 1 and float(made.run(["w"])[0][0][0, 0]) == value(1)


def test_float_weights_between_pairs_are_not_rounded() -> None:
    """onnxruntime would round them with one step for all rows if it were let: the small row would become zero."""
    weights = np.array([[1e-4] * 4, [100.0] * 4], np.float32).reshape(2, 4, 1, 1)
    constants = {"scale": np.float32(0.1), "small": np.float32(2e-5), "zero": np.uint8(0), "w": weights, "b": np.zeros(2, np.float32)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["r"]),
        helper.make_node("Conv", ["r", "w", "b"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "small", "zero"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "small", "zero"], ["y"]),
    ]
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "graph", [given], [made], initializer=initializers)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x = np.full((1, 4, 3, 3), 10.0, np.float32)
    assert float(run_from(GraphEditor(model), [{"x": x}], ["y"])[0][0][0, 0, 0, 0]) == pytest.approx(4e-3, rel=1e-2)
