import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeport_export.quantization.recovery.recovered_weights import RecoveredWeights, put_in_place, recovered_sha256
from edgeport_export.rewrites.graph import GraphEditor

BEFORE, AFTER, ADDED = (np.full(shape, value, np.float32) for shape, value in (((2, 3, 1, 1), 1.0), ((2, 3, 1, 1), 2.0), ((2,), 5.0)))


def model(*constants: str) -> onnx.ModelProto:
    """Two convolutions that share their weights."""
    nodes = [helper.make_node("Conv", ["x", *constants], ["y"], name="first"), helper.make_node("Conv", ["x", *constants], ["z"], name="second")]
    initializers = [numpy_helper.from_array(BEFORE if name == "w" else np.zeros(2, np.float32), name) for name in constants]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z")]
    return helper.make_model(helper.make_graph(nodes, "graph", inputs, outputs, initializer=initializers))


@pytest.mark.parametrize("constants", [("w", "b"), ("w",)])
@pytest.mark.parametrize("added", [ADDED, None])
def test_a_product_gets_its_own(constants: tuple[str, ...], added: np.ndarray | None) -> None:
    editor = GraphEditor(model(*constants))
    put_in_place(editor, {"first": RecoveredWeights(before=BEFORE, weights=AFTER, added=added)}, frozenset({"first", "second"}))
    first, second = editor.nodes
    assert (editor.array(first.input[1]) == 2).all() and (editor.array(second.input[1]) == 1).all()
    biases = [editor.array(node.input[2])[0] if len(node.input) > 2 else 0 for node in (first, second)]
    assert biases == [0 if added is None else 5, 0] and len(second.input) == 1 + len(constants)


@pytest.mark.parametrize(
    ("name", "before", "products"),
    [("first", BEFORE[:1], {"first"}), ("first", BEFORE + 1, {"first"}), ("third", BEFORE, {"first", "third"}), ("first", BEFORE, {"second"})],
)
def test_one_that_is_laid_out_otherwise_or_stays_float_keeps_its_own(name: str, before: np.ndarray, products: set[str]) -> None:
    editor = GraphEditor(model("w", "b"))
    put_in_place(editor, {name: RecoveredWeights(before=before, weights=AFTER, added=ADDED)}, frozenset(products))
    assert all((editor.array(node.input[1]) == 1).all() and not editor.array(node.input[2]).any() for node in editor.nodes)


def test_the_hash_is_over_everything_that_was_recovered() -> None:
    one = RecoveredWeights(before=BEFORE, weights=AFTER, added=ADDED)
    given = [{}, {"a": one}, {"b": one}, {"a": one, "b": one}]
    given += [{"a": RecoveredWeights(before=BEFORE, weights=AFTER, added=each)} for each in (None, ADDED + 1)]
    given += [{"a": RecoveredWeights(before=BEFORE, weights=AFTER + 1, added=ADDED)}]
    assert len({recovered_sha256(each) for each in given}) == len(given)
    assert recovered_sha256({"b": one, "a": one}) == recovered_sha256({"a": one, "b": one})
