"""Attention's product as integers, held to float64."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeport_export.quantization.qdq import TWO_ACTIVATIONS, candidates, observed_values, preprocess, quantize
from edgeport_export.quantization.targets import TARGETS
from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.int8_graph.attention_product import TOP, ScaledRows, attention_parts, attention_product, keep_value_scales
from edgeport_export.rewrites.nodes import attributes
from edgeport_export.tracing.exporter import trace
from edgeport_models import AttentionNet, network
from edgeport_runtime import Contract, SessionOptions
from edgeport_runtime.device import open_session

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]
VALUES = (-4.0, 4.0)
CONTRACT: Contract = network("attention").contract(tuple("0123456789"), 32)
PRODUCT = "attention.attention/MatMul_2"


def product(turned: bool, axis: int = -1) -> onnx.ModelProto:
    """softmax(scores) · values; turned, (N, C, L) · (N, L, L) as the exporter's graph has it after `transposed_product`."""
    softmax = helper.make_node("Softmax", ["scores"], ["weights"], axis=axis)
    if turned:
        nodes = [softmax, helper.make_node("Transpose", ["weights"], ["columns"], perm=[0, 2, 1])]
        last = helper.make_node("MatMul", ["values", "columns"], ["out"], name="product")
    else:
        nodes, last = [softmax], helper.make_node("MatMul", ["weights", "values"], ["out"], name="product")
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None, None]) for name in ("scores", "values")]
    out = [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", None, None])]
    graph = helper.make_graph([*nodes, last], "g", given, out)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def expected(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    weights = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ values.astype(np.float64)


def attended(model: onnx.ModelProto, scores: np.ndarray, values: np.ndarray, turned: bool) -> np.ndarray:
    session = open_session(model.SerializeToString(), SessionOptions(threads=1))
    got = session.run(["out"], {"scores": scores, "values": np.swapaxes(values, 1, 2) if turned else values})[0]
    return np.swapaxes(got, 1, 2) if turned else got


def decibels(exact: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(exact**2) / np.sum((exact - got) ** 2)))


def drawn(batch: int, positions: int, channels: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(positions + batch)
    scores = sharpness * generator.standard_normal((batch, positions, positions))
    return scores.astype(np.float32), np.clip(generator.standard_normal((batch, positions, channels)), *VALUES).astype(np.float32)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("positions", "sharpness", "least_db"), [(16, 0.1, 39), (256, 1.0, 33), (1024, 0.1, 38), (1024, 1.0, 30), (1024, 12.0, 39)])
def test_rows_keep_their_precision_however_many_positions_share_them(apply: Apply, turned: bool, positions: int, sharpness: float, least_db: float) -> None:
    scores, values = drawn(2, positions, 24, sharpness)
    model = product(turned)
    model, _ = apply(attention_product, model, CONTRACT, products={"product"}, ranges={"values": VALUES})
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node if node.name == "product"] == ["MatMulInteger"]
    exact, got = expected(scores, values), attended(model, scores, values, turned)
    assert decibels(exact, got) > least_db
    one = np.exp(scores - scores.max(axis=-1, keepdims=True))
    one = np.round(255 * one / one.sum(axis=-1, keepdims=True)) / 255 @ values  # with one scale for all, as Q/DQ would have it
    assert positions < 1024 or sharpness > 1 or decibels(exact, one) < 10


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), positions=st.integers(1, 40), channels=st.integers(1, 40), sharpness=st.floats(0, 30), turned=st.booleans())
def test_no_weight_needs_more_than_seven_bits(apply: Apply, batch: int, positions: int, channels: int, sharpness: float, turned: bool) -> None:
    scores, values = drawn(batch, positions, channels, sharpness)
    model = product(turned)
    model, _ = apply(attention_product, model, CONTRACT, products={"product"}, ranges={"values": VALUES})
    integer = next(node for node in model.graph.node if node.op_type == "MatMulInteger")
    model.graph.output.append(helper.make_tensor_value_info(integer.input[0], TensorProto.UINT8, None))
    session = open_session(model.SerializeToString(), SessionOptions(threads=1))
    out, weights = session.run(None, {"scores": scores, "values": np.swapaxes(values, 1, 2) if turned else values})
    assert weights.max() == TOP and (weights.max(axis=-1) == TOP).all()  # so that two products stay in 16 bits: 2 * 127 * 128 < 32,768
    got = np.swapaxes(out, 1, 2) if turned else out
    # each of the weights is off by at most half a step of its row, each of the values by half a step of theirs
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True)).astype(np.float64)
    worst = (0.5 / TOP * np.abs(values).sum(axis=1).max() + 0.5 * 8 / 255 * positions) / shares.sum(axis=-1).min()
    assert np.abs(got - expected(scores, values)).max() <= 1.1 * worst


@pytest.mark.parametrize("turned", [False, True])
def test_masked_positions_count_for_nothing(apply: Apply, turned: bool) -> None:
    scores, values = drawn(2, 40, 8, 1.0)
    scores[:, :, 30:] = -np.inf
    model = product(turned)
    model, _ = apply(attention_product, model, CONTRACT, products={"product"}, ranges={"values": VALUES})
    assert decibels(expected(scores[:, :, :30], values[:, :30]), attended(model, scores, values, turned)) > 35


def after_integers(apply: Apply, turned: bool, zero: np.ndarray, step: np.ndarray) -> tuple[onnx.ModelProto, PassResult]:
    """`product` whose values are integers in (N, C, H, W), dequantized, flattened and, if the product is not turned, swapped."""
    model, result = apply(attention_product, product(turned), CONTRACT, products={"product"}, ranges={"values": VALUES})
    graph = model.graph
    graph.input[1].CopyFrom(helper.make_tensor_value_info("bytes", onnx.helper.np_dtype_to_tensor_dtype(zero.dtype), ["n", None, None, None]))
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in (("s", step), ("z", zero), ("flat", np.array([0, 0, -1]))))
    before = [helper.make_node("DequantizeLinear", ["bytes", "s", "z"], ["real"], axis=1), helper.make_node("Reshape", ["real", "flat"], ["sequence"])]
    before.append(helper.make_node("Transpose", ["sequence"], ["values"], perm=[0, 1, 2] if turned else [0, 2, 1]))
    for node in reversed(before):
        graph.node.insert(0, node)
    return model, result


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), height=st.integers(1, 6), width=st.integers(1, 6), channels=st.integers(1, 9), zero=st.integers(0, 255), turned=st.booleans())
def test_values_that_were_integers_are_not_rounded_again(apply: Apply, batch: int, height: int, width: int, channels: int, zero: int, turned: bool) -> None:
    generator = np.random.default_rng(zero)
    scores = generator.standard_normal((batch, height * width, height * width)).astype(np.float32)
    given_bytes = generator.integers(0, 256, (batch, channels, height, width), dtype=np.uint8)
    step = np.array(0.037, np.float32)
    before, first = after_integers(apply, turned, np.array(zero, np.uint8), step)
    model, result = apply(keep_value_scales, before, CONTRACT, facts=first.facts)
    assert result.changed == 1
    onnx.checker.check_model(model, full_check=True)
    out = open_session(model.SerializeToString(), SessionOptions(threads=1)).run(["out"], {"scores": scores, "bytes": given_bytes})[0]
    values = np.swapaxes((given_bytes.reshape(batch, channels, -1).astype(np.float64) - zero) * float(step), 1, 2)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True)).astype(np.float64)
    worst = 0.5 / TOP * np.abs(values).sum(axis=1).max() / shares.sum(axis=-1).min()  # of the weights alone
    assert np.abs((np.swapaxes(out, 1, 2) if turned else out) - expected(scores, values)).max() <= 1.01 * worst + 1e-5


def made_here(apply: Apply, turned: bool, zero: int, *, read_twice: bool = False) -> tuple[onnx.ModelProto, PassResult]:
    """As `after_integers`, with the bytes made in the graph from the float input `bytes`, in steps of 1/32. `read_twice`: an output reads them, too."""
    model, first = after_integers(apply, turned, np.array(zero, np.uint8), np.array(1 / 32, np.float32))
    model.graph.input[1].CopyFrom(helper.make_tensor_value_info("real values", TensorProto.FLOAT, ["n", None, None, None]))
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["real values", "s", "z"], ["bytes"]))
    if read_twice:
        model.graph.output.append(helper.make_tensor_value_info("sequence", TensorProto.FLOAT, ["n", None, None]))
    model, result = apply(keep_value_scales, model, CONTRACT, facts=first.facts)
    assert result.changed == 1
    onnx.checker.check_model(model, full_check=True)
    return model, result


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 6), channels=st.integers(1, 9), zero=st.integers(0, 255), turned=st.booleans())
def test_bytes_for_the_product_alone_have_seven_bits_and_end_where_the_range_ends(apply: Apply, height: int, channels: int, zero: int, turned: bool) -> None:
    generator = np.random.default_rng(zero)
    scores = generator.standard_normal((2, 5 * height, 5 * height)).astype(np.float32)
    low, high = -zero / 32, (255 - zero) / 32
    given_values = generator.uniform(low - 3, high + 3, (2, channels, height, 5)).astype(np.float32)  # some are outside what was calibrated
    model, _ = made_here(apply, turned, zero)
    assert not any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    out = open_session(model.SerializeToString(), SessionOptions(threads=1)).run(["out"], {"scores": scores, "real values": given_values})[0]
    values = np.swapaxes(np.clip(given_values, low, high).reshape(2, channels, -1).astype(np.float64), 1, 2)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True)).astype(np.float64)
    shares /= shares.sum(axis=-1, keepdims=True)
    step = 255 / 32 / TOP
    weights = 0.5 / TOP * shares.max(axis=-1).max() * (np.abs(values).sum(axis=1).max() + step * values.shape[1])  # half a step of each
    assert np.abs((np.swapaxes(out, 1, 2) if turned else out) - expected(scores, values)).max() <= 1.01 * (weights + step) + 1e-5  # zero is rounded, too


@pytest.mark.parametrize("turned", [False, True])
def test_bytes_that_something_else_reads_keep_their_eight_bits(apply: Apply, turned: bool) -> None:
    model, _ = made_here(apply, turned, 100, read_twice=True)
    assert numpy_helper.to_array(next(each for each in model.graph.initializer if each.name == "s")) == np.float32(1 / 32)
    scores, real = np.zeros((1, 6, 6), np.float32), np.arange(12, dtype=np.float32).reshape(1, 2, 3, 2) / 32
    out, sequence = open_session(model.SerializeToString(), SessionOptions(threads=1)).run(["out", "sequence"], {"scores": scores, "real values": real})
    assert sequence.ravel().tolist() == real.ravel().tolist()
    means = np.swapaxes(out, 1, 2)[0, :, 0] if not turned else out[0, :, 0]
    np.testing.assert_allclose(means, real.reshape(2, 6).mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("zero", "step"), [(np.zeros(3, np.uint8), np.full(3, 0.1, np.float32)), (np.array(0, np.int8), np.array(0.1, np.float32))], ids=["by channel", "signed"]
)
def test_values_of_another_format_are_rounded_on_their_own(apply: Apply, zero: np.ndarray, step: np.ndarray) -> None:
    before, first = after_integers(apply, False, zero, step)
    made, result = apply(keep_value_scales, before, CONTRACT, facts=first.facts)
    assert not result and made == before


@pytest.mark.parametrize("turned", [False, True])
def test_the_place_of_a_product_is_handed_on_and_nothing_of_it_is_left(apply: Apply, turned: bool) -> None:
    made, result = apply(attention_product, product(turned), CONTRACT, products={"product"}, ranges={"values": VALUES})
    (rows,) = result.facts
    assert isinstance(rows, ScaledRows) and {rows.scale, rows.zero_point, rows.product_scale} <= {each.name for each in made.graph.initializer}
    read = {name for node in made.graph.node for name in node.input}
    assert all(node.output[0] in read or node.output[0] == "out" for node in made.graph.node)  # the transposed weights are gone


def test_other_products_are_none_of_attention(apply: Apply) -> None:
    def parts(model: onnx.ModelProto) -> object:
        return attention_parts(GraphEditor(model), next(node for node in model.graph.node if node.name == "product"))

    for model in (product(False, axis=1), product(True, axis=1)):
        made, result = apply(attention_product, model, CONTRACT, products={"product"}, ranges={"values": VALUES})
        assert parts(model) is None and not result and made == model
    table = product(False)
    table.graph.initializer.append(numpy_helper.from_array(np.zeros((2, 9, 4), np.float32), "values"))
    assert parts(table) is None  # a table of constants
    made, result = apply(attention_product, product(False), CONTRACT, products=[], ranges={"values": VALUES})
    assert not result and made == product(False)


@pytest.fixture(scope="module")
def prepared() -> onnx.ModelProto:
    torch.manual_seed(0)
    return preprocess(trace(AttentionNet(channels=32).eval(), CONTRACT).model)


def test_what_can_run_as_integers_and_what_is_looked_at_for_it(prepared: onnx.ModelProto) -> None:
    editor = GraphEditor(prepared)
    quantizable, not_quantizable = candidates(editor, TARGETS["x86-vnni"])
    assert not_quantizable == {"attention.attention/MatMul": TWO_ACTIVATIONS} and PRODUCT in quantizable and len(quantizable) == 15
    parts = attention_parts(editor, next(node for node in prepared.graph.node if node.name == PRODUCT))
    assert parts is not None
    observed = observed_values(prepared, TARGETS["x86-vnni"])
    assert parts.values in observed and parts.weights not in observed  # a table of L * L values for each image
    quantizable, not_quantizable = candidates(editor, TARGETS["arm64"])
    assert PRODUCT not in quantizable and "not measured on this target" in not_quantizable[PRODUCT]


def test_the_product_reads_the_bytes_of_its_convolution(prepared: onnx.ModelProto) -> None:
    target = TARGETS["x86-vnni"]
    ranges = dict.fromkeys(observed_values(prepared, target), (-3.0, 3.0))
    made = quantize(prepared, CONTRACT, frozenset(candidates(GraphEditor(prepared), target)[0]), ranges, target)
    producers = {out: node for node in made.graph.node for out in node.output}
    value = next(node for node in made.graph.node if node.op_type == "MatMulInteger").input[1]
    assert next(each.version for each in made.opset_import if not each.domain) == 21
    rows = next(node for node in made.graph.node if node.op_type == "QuantizeLinear" and producers[node.input[0]].op_type == "Softmax")
    assert attributes(rows)["axis"] == -1 and producers[rows.input[1]].op_type == "Mul"  # one step for each row
    way = []
    while producers[value].op_type != "Conv":
        way.append(producers[value].op_type)
        value = producers[value].input[0]
    assert way == ["Cast", "Clip", "Reshape", "Transpose", "QuantizeLinear"]
