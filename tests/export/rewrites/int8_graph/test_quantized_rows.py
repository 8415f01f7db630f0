"""Attention's result, rounded row by row: the bytes that rounding after the product gives, and one kernel less."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeport_export.rewrites.graph import PassResult
from edgeport_export.rewrites.int8_graph.attention_product import attention_product
from edgeport_export.rewrites.int8_graph.quantized_rows import quantized_rows
from edgeport_models import network
from edgeport_runtime import Contract, SessionOptions
from edgeport_runtime.device import open_session

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]
CONTRACT: Contract = network("attention").contract(tuple("0123456789"), 32)
STEP, ZERO = np.array(0.03, np.float32), np.array(101, np.uint8)
HEADS_TO_CHANNELS = [("Transpose", {"perm": [0, 2, 1, 3]}), ("Reshape", {})]


def product(
    layout: list[tuple[str, dict[str, list[int]]]],
    *,
    turned: bool = False,
    step: np.ndarray = STEP,
    read_twice: bool = False,
    sizes: tuple[str | int | None, ...] = ("n", None, None, None),
) -> onnx.ModelProto:
    """QuantizeLinear(layout(softmax(scores) · values)) of (N, heads, L, L) and (N, heads, L, C); turned, values · softmax(scores)ᵀ."""
    nodes = [helper.make_node("Softmax", ["scores"], ["weights"], axis=-1)]
    if turned:
        nodes.append(helper.make_node("Transpose", ["weights"], ["columns"], perm=[0, 1, 3, 2]))
    nodes.append(helper.make_node("MatMul", ["values", "columns"] if turned else ["weights", "values"], ["result"], name="product"))
    value = "result"
    for index, (op_type, attributes) in enumerate(layout):
        nodes.append(helper.make_node(op_type, [value, "joined"][: 2 if op_type == "Reshape" else 1], [f"moved{index}"], **attributes))
        value = f"moved{index}"
    nodes.append(helper.make_node("QuantizeLinear", [value, "step", "zero"], ["bytes"], axis=1))
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in ("scores", "values")]
    out = [helper.make_tensor_value_info("bytes", TensorProto.UINT8, [None] * (3 if layout == HEADS_TO_CHANNELS else 4))]
    if read_twice:
        out.append(helper.make_tensor_value_info("result", TensorProto.FLOAT, [None] * 4))
    constants = {"step": step, "zero": np.broadcast_to(ZERO, step.shape), "joined": np.array([0, 0, -1])}
    graph = helper.make_graph(nodes, "g", given, out, [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def rewritten(apply: Apply, model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto, PassResult]:
    """The integer product alone, and with its result rounded row by row."""
    before, first = apply(attention_product, model, CONTRACT, products={"product"}, ranges={"values": (-4.0, 4.0)})
    after, result = apply(quantized_rows, before, CONTRACT, facts=first.facts)
    return before, after, result


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(open_session(model.SerializeToString(), SessionOptions(threads=1)).run(["bytes"], inputs)[0])


def kernels(model: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The operators that onnxruntime makes of it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path_factory.mktemp("optimized") / "model.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    positions=st.integers(1, 40),
    channels=st.integers(1, 20),
    sharpness=st.floats(0, 30),
    turned=st.booleans(),
    moved=st.booleans(),
)
def test_the_bytes_are_those_of_rounding_after_the_product(
    apply: Apply, batch: int, heads: int, positions: int, channels: int, sharpness: float, turned: bool, moved: bool
) -> None:
    generator = np.random.default_rng(positions)
    scores = (sharpness * generator.standard_normal((batch, heads, positions, positions))).astype(np.float32)
    values = generator.uniform(-4, 4, (batch, heads, positions, channels)).astype(np.float32)
    inputs = {"scores": scores, "values": np.swapaxes(values, 2, 3) if turned else values}
    before, after, result = rewritten(apply, product(HEADS_TO_CHANNELS if moved else [], turned=turned))
    assert result.changed == 1
    onnx.checker.check_model(after, full_check=True)
    one, other = run(before, inputs).astype(int), run(after, inputs).astype(int)
    assert one.shape == other.shape and np.abs(one - other).max() <= 1 and np.mean(one != other) < 0.01 + 1 / one.size  # a tie may fall either way


def test_the_bytes_are_near_float64(apply: Apply) -> None:
    generator = np.random.default_rng(7)
    scores, values = generator.standard_normal((2, 3, 64, 64)).astype(np.float32), generator.uniform(-4, 4, (2, 3, 64, 16)).astype(np.float32)
    shares = np.exp(scores.astype(np.float64))
    exact = np.einsum("nhij,nhjc->nihc", shares / shares.sum(axis=-1, keepdims=True), values.astype(np.float64)).reshape(2, 64, -1)
    _, after, _ = rewritten(apply, product(HEADS_TO_CHANNELS))
    got = (run(after, {"scores": scores, "values": values}).astype(np.float64) - float(ZERO)) * float(STEP)
    assert 10 * np.log10(np.sum(exact**2) / np.sum((exact - got) ** 2)) > 30  # a step of 0.03 alone leaves 33
    assert np.abs(exact - got).max() < 2 * float(STEP)


@pytest.mark.parametrize("turned", [False, True])
def test_the_scale_is_part_of_the_product_and_layout_moves_bytes(apply: Apply, turned: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    before, after, _ = rewritten(apply, product(HEADS_TO_CHANNELS, turned=turned))
    assert "MatMulIntegerToFloat" in kernels(before, tmp_path_factory)
    made = kernels(after, tmp_path_factory)
    assert "MatMulIntegerToFloat" in made and "MatMulInteger" not in made and made.count("Mul") <= 1  # of the maxima
    of_value = {out: node for node in after.graph.node for out in node.output}
    last = of_value["bytes"]
    while last.op_type in ("Transpose", "Reshape"):
        last = of_value[last.input[0]]
    assert last.op_type == "QuantizeLinear" and of_value[last.input[1]].op_type == "Reciprocal"


@pytest.mark.parametrize(
    "model",
    [
        product([("Relu", {})]),
        product([], step=np.full(3, 0.03, np.float32)),
        product(HEADS_TO_CHANNELS, read_twice=True),
        product(HEADS_TO_CHANNELS, sizes=(1, 2, 8, 8)),
    ],
    ids=["something between", "a step for each channel", "a result that is read elsewhere", "no open size"],
)
def test_what_is_left_as_it_is(apply: Apply, model: onnx.ModelProto) -> None:
    before, after, result = rewritten(apply, model)
    assert not result and after == before
