from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeport_export.rewrites.graph import PassResult
from edgeport_export.rewrites.int8_graph.last_pairs import last_pairs
from edgeport_runtime import Contract, SessionOptions
from edgeport_runtime.device import open_session

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]


def pair(source: str, output: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [source, "scale", "zero"], [f"{output}.q"], f"{output}/quantize"),
        helper.make_node("DequantizeLinear", [f"{output}.q", "scale", "zero"], [output], f"{output}/dequantize"),
    ]


def model(nodes: list[onnx.NodeProto], outputs: list[str]) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", *outputs)]
    constants = [numpy_helper.from_array(np.array(0.5, np.float32), "scale"), numpy_helper.from_array(np.array(9, np.uint8), "zero")]
    return helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], constants), opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = open_session(model.SerializeToString(), SessionOptions(threads=1))
    return [np.asarray(each) for each in session.run(None, {"x": np.array([0.3, -0.1], np.float32)})]


def test_the_answer_is_not_rounded(apply: Apply, class_contract: Contract) -> None:
    made, result = apply(last_pairs, model([helper.make_node("Neg", ["x"], ["v"], "neg"), *pair("v", "y")], ["y"]), class_contract)
    assert result.changed == 1 and [node.name for node in made.graph.node] == ["neg"] and not made.graph.initializer
    assert run(made)[0].tolist() == pytest.approx([-0.3, 0.1])


def test_integers_that_something_else_reads_stay(apply: Apply, class_contract: Contract) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["v"], "neg"), *pair("v", "y"), helper.make_node("DequantizeLinear", ["y.q", "scale", "zero"], ["z"], "again")]
    made, result = apply(last_pairs, model(nodes, ["y", "z"]), class_contract)
    assert result.changed == 1
    first, second = run(made)
    assert first.tolist() == pytest.approx([-0.3, 0.1]) and second.tolist() == [-0.5, 0.0]  # one output is the value, the other its integers


def test_a_pair_whose_value_is_read_once_more_stays(apply: Apply, class_contract: Contract) -> None:
    before = model([helper.make_node("Neg", ["x"], ["v"], "neg"), *pair("v", "y"), helper.make_node("Abs", ["y"], ["z"], "abs")], ["y", "z"])
    made, result = apply(last_pairs, before, class_contract)
    assert not result and made == before


def test_a_network_without_pairs_is_left_as_it_is(apply: Apply, class_contract: Contract) -> None:
    before = model([helper.make_node("Neg", ["x"], ["y"], "neg")], ["y"])
    del before.graph.initializer[:]
    made, result = apply(last_pairs, before, class_contract)
    assert not result and made == before
