"""Queries, keys and values as three layers: the numbers of one, and nothing that is taken apart."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgeport_export.rewrites.graph import PassResult
from edgeport_export.rewrites.int8_graph.split_linear import split_linear
from edgeport_runtime import Contract, SessionOptions
from edgeport_runtime.device import open_session

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]
STEP, ZERO, POSITIONS, INPUTS = 0.02, 100, 5, 6
Taken = tuple[list[int], list[int], list[int], list[int]]  # starts, ends, axes, steps


def sliced(parts: list[Taken], shape: list[int], *, step_for_each: bool = True, activation: bool = False) -> onnx.ModelProto:
    """MatMul and Add of bytes (n, POSITIONS, INPUTS), reshaped to `shape`, of which `parts` are taken."""
    generator, outputs = np.random.default_rng(0), int(np.prod([size for size in shape[2:] if size > 0]))
    steps = generator.uniform(0.001, 0.01, outputs if step_for_each else ()).astype(np.float32)
    constants = {
        "s": np.float32(STEP),
        "z": np.uint8(ZERO),
        "w": generator.integers(-127, 128, (INPUTS, outputs)).astype(np.int8),
        "ws": steps,
        "wz": np.zeros(steps.shape, np.int8),
        "b": generator.standard_normal(outputs).astype(np.float32),
        "shape": np.array(shape),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "s", "z"], ["real"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["weights"], axis=1),
        helper.make_node("MatMul", ["real", "weights"], ["sums"], name="layer"),
        helper.make_node("Add", ["sums", "b"], ["sequence"]),
        *([helper.make_node("Relu", ["sequence"], ["active"])] if activation else []),
        helper.make_node("Reshape", ["active" if activation else "sequence", "shape"], ["heads"]),
    ]
    for index, taken in enumerate(parts):
        names = [f"{kind}{index}" for kind in ("starts", "ends", "axes", "steps")]
        constants |= {name: np.array(values) for name, values in zip(names, taken, strict=True)}
        nodes += [helper.make_node("Slice", ["heads", *names], [f"part{index}"]), helper.make_node("Identity", [f"part{index}"], [f"out{index}"])]
    outs = [helper.make_tensor_value_info(f"out{index}", TensorProto.FLOAT, [None] * len(shape)) for index in range(len(parts))]
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", POSITIONS, INPUTS])]
    stored = [numpy_helper.from_array(np.array(array), name) for name, array in constants.items()]
    made = helper.make_graph(nodes, "g", values, outs, stored)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, images: int) -> list[np.ndarray]:
    x = np.random.default_rng(1).uniform(-2, 3, (images, POSITIONS, INPUTS)).astype(np.float32)
    return [np.asarray(each) for each in open_session(model.SerializeToString(), SessionOptions(threads=1)).run(None, {"x": x})]


def part(first: int, end: int, axis: int = 2) -> Taken:
    return [first], [end], [axis], [1]


@settings(max_examples=25, deadline=None)
@given(images=st.integers(1, 3), heads=st.integers(1, 4), size=st.integers(1, 5), cuts=st.lists(st.integers(1, 3), min_size=1, max_size=4), each=st.booleans())
def test_the_parts_are_those_of_the_whole(apply: Apply, class_contract: Contract, images: int, heads: int, size: int, cuts: list[int], each: bool) -> None:
    ends = np.cumsum(cuts).tolist()
    before = sliced([part(end - cut, end) for cut, end in zip(cuts, ends, strict=True)], [-1, POSITIONS, ends[-1], heads, size], step_for_each=each)
    after, result = apply(split_linear, before, class_contract, products={"layer"})
    assert result.changed == 1 and not [node for node in after.graph.node if node.op_type == "Slice"]
    onnx.checker.check_model(after, full_check=True)
    names = ["layer", *(f"layer.{index}" for index in range(1, len(cuts)))]
    assert [node.name for node in after.graph.node if node.op_type == "MatMul"] == names and result.followers == set(names)
    for one, other in zip(run(before, images), run(after, images), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


def test_parts_may_overlap_count_from_the_end_and_leave_some_out(apply: Apply, class_contract: Contract) -> None:
    before = sliced([part(0, 2, -3), part(1, 3), part(-1, 2**62)], [-1, POSITIONS, 4, 2, 3])
    after, result = apply(split_linear, before, class_contract, products={"layer"})
    assert result.changed == 1
    for one, other in zip(run(before, 2), run(after, 2), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "products"),
    [
        (sliced([part(0, 2), part(0, 1, 3)], [-1, POSITIONS, 4, 2, 3]), ["layer"]),
        (sliced([part(0, 3, 1)], [-1, POSITIONS, 4, 2, 3]), ["layer"]),
        (sliced([part(0, 1, 3)], [-1, POSITIONS, 4, 2, 3]), ["layer"]),
        (sliced([([0], [4], [2], [2])], [-1, POSITIONS, 4, 2, 3]), ["layer"]),
        (sliced([([0, 0], [1, 1], [2, 3], [1, 1])], [-1, POSITIONS, 4, 2, 3]), ["layer"]),
        (sliced([part(0, 2)], [-1, POSITIONS, 4, 2, 3], activation=True), ["layer"]),
        (sliced([part(0, 2)], [-1, POSITIONS, 4, 2, 3]), []),
    ],
    ids=["two axes apart", "positions", "heads of each part", "every other", "a corner", "an activation between", "no product"],
)
def test_others_stay(apply: Apply, class_contract: Contract, model: onnx.ModelProto, products: list[str]) -> None:
    made, result = apply(split_linear, model, class_contract, products=set(products))
    assert not result and made == model


class Attention(nn.Module):
    """Patches, and attention with two heads as timm has it."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm, self.qkv, self.project, self.classify = (
            nn.Conv2d(3, 32, 4, 4),
            nn.LayerNorm(32),
            nn.Linear(32, 96),
            nn.Linear(32, 32),
            nn.Linear(32, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        sequence = self.patches(x).flatten(2).transpose(1, 2)
        batch, positions, channels = sequence.shape
        q, k, v = self.qkv(self.norm(sequence)).reshape(batch, positions, 3, 2, channels // 2).permute(2, 0, 3, 1, 4).unbind(0)
        found = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, positions, channels)
        result: Tensor = self.classify((sequence + self.project(found)).mean(1))
        return result


def test_queries_keys_and_values_are_three_layers(integer_kernels: "Callable[[type[nn.Module]], Counter[str]]") -> None:
    kinds = integer_kernels(Attention)
    assert not {"Slice", "Split", "MatMulInteger"} & set(kinds), kinds
    assert kinds["MatMulIntegerToFloat"] == 4, kinds  # three, and attention's product
