import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

from edgeport_export.quantization.macs import count_macs, integer_nodes, session_with_outputs, share_of_macs, unfused_name


def model(nodes: list[onnx.NodeProto], weights: dict[str, tuple[int, ...]], out: str) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        [from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("op", "weight", "attributes", "x", "count"),
    [
        ("Conv", (8, 3, 3, 3), {"pads": [1, 1, 1, 1]}, (2, 3, 10, 12), 2 * 8 * 10 * 12 * 3 * 9),
        ("Conv", (8, 3, 3, 3), {"strides": [2, 2]}, (1, 3, 11, 11), 8 * 5 * 5 * 27),
        ("Conv", (6, 1, 5, 5), {"group": 6, "pads": [2, 2, 2, 2]}, (1, 6, 7, 7), 6 * 49 * 25),
        ("ConvTranspose", (4, 2, 2, 2), {"strides": [2, 2]}, (1, 4, 5, 5), 4 * 25 * 2 * 4),
        ("Gemm", (20, 7), {}, (3, 20), 3 * 7 * 20),
        ("Gemm", (20, 7), {"transA": 1}, (20, 3), 3 * 7 * 20),
        ("MatMul", (5, 9), {}, (2, 4, 5), 2 * 4 * 9 * 5),
        ("Einsum", (5, 9), {"equation": "bij,jk->bik"}, (2, 4, 5), 2 * 4 * 9 * 5),
        ("Einsum", (2, 9, 5), {"equation": "...ij, ...kj -> ...ik"}, (2, 4, 5), 2 * 4 * 9 * 5),
    ],
)
def test_counts_by_hand(op: str, weight: tuple[int, ...], attributes: dict[str, object], x: tuple[int, ...], count: int) -> None:
    built = model([helper.make_node(op, ["x", "w"], ["y"], "n", **attributes)], {"w": weight}, "y")
    assert count_macs(built, {"x": np.zeros(x, np.float32)}) == {"n": count}


def test_a_product_of_two_activations_and_a_chain() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], "t", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["m"], "a"),
        helper.make_node("MatMul", ["m", "w"], ["y"], "b"),
    ]
    assert count_macs(model(nodes, {"w": (4, 2)}, "y"), {"x": np.zeros((4, 6), np.float32)}) == {"a": 4 * 4 * 6, "b": 4 * 2 * 4}


@pytest.mark.parametrize(("op", "gates"), [("GRU", 3), ("LSTM", 4), ("RNN", 1)])
def test_a_recurrent_layer_multiplies_its_input_and_its_state_at_every_step(op: str, gates: int) -> None:
    steps, batch, size, hidden = 7, 2, 5, 6
    node = helper.make_node(op, ["x", "w", "r"], ["", "y"], "n", hidden_size=hidden)
    built = model([node], {"w": (1, gates * hidden, size), "r": (1, gates * hidden, hidden)}, "y")
    assert count_macs(built, {"x": np.zeros((steps, batch, size), np.float32)}) == {"n": steps * batch * gates * hidden * (size + hidden)}


def test_the_share_of_some_products() -> None:
    assert share_of_macs({"a": 30, "b": 70}, {"b"}) == 0.7
    assert share_of_macs({}, set()) == 0.0


def test_a_float_graph_has_no_integer_products() -> None:
    built = model([helper.make_node("Conv", ["x", "w"], ["y"], "n")], {"w": (8, 3, 3, 3)}, "y")
    assert integer_nodes(built.SerializeToString()) == set()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("layer1.0.conv1/Conv_token_4", "layer1.0.conv1/Conv"), ("layer1.0.conv1/Conv", "layer1.0.conv1/Conv"), ("Gemm_token_0_token_1", "Gemm")],
)
def test_a_fused_node_has_the_name_of_the_node_that_it_was(name: str, expected: str) -> None:
    assert unfused_name(name) == expected


def test_an_integer_product_is_found_by_its_name() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantize"),
        helper.make_node("MatMulInteger", ["q", "w8", "z"], ["i"], "layer/MatMul"),
        helper.make_node("Cast", ["i"], ["y"], "cast", to=TensorProto.FLOAT),
    ]
    built = model(nodes, {}, "y")
    stored = {"s": np.array(0.1, np.float32), "z": np.array(0, np.uint8), "w8": np.ones((4, 2), np.int8)}
    built.graph.initializer.extend(from_array(array, name) for name, array in stored.items())
    assert integer_nodes(built.SerializeToString()) == {"layer/MatMul"}


def test_values_inside_a_graph_are_given_as_outputs() -> None:
    built = model([helper.make_node("Neg", ["x"], ["n"], "a"), helper.make_node("Abs", ["n"], ["y"], "b")], {}, "y")
    before = built.SerializeToString()
    inner, last = session_with_outputs(built, ["n", "y"]).run(None, {"x": np.array([1.5, -2.0], np.float32)})
    assert inner.tolist() == [-1.5, 2.0] and last.tolist() == [1.5, 2.0] and built.SerializeToString() == before
