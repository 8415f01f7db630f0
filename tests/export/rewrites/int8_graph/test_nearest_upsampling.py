"""Nearest upsampling as copies: held to PyTorch, and to what the integer kernels then run."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.int8_graph.nearest_upsampling import nearest_upsampling, repeats
from edgeport_runtime import Contract, SessionOptions
from edgeport_runtime.device import open_session

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]
NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def graph(factors: list[float], **attributes: Any) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in ("x", "y")]
    node = helper.make_node("Resize", ["x", "", "factors"], ["y"], name="grow", **{**NEAREST, **attributes})
    made = helper.make_graph([node], "g", values[:1], values[1:], [numpy_helper.from_array(np.array(factors, np.float32), "factors")])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: bytes, **inputs: np.ndarray) -> np.ndarray:
    return np.asarray(open_session(model, SessionOptions(threads=1)).run(None, inputs)[0])


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), height=st.integers(1, 6), width=st.integers(1, 6), batch=st.integers(1, 3))
def test_it_repeats_what_pytorch_repeats(apply: Apply, class_contract: Contract, rows: int, columns: int, height: int, width: int, batch: int) -> None:
    x = np.random.default_rng(height * 7 + width).standard_normal((batch, 3, height, width)).astype(np.float32)
    before = graph([1, 1, rows, columns])
    assert repeats(GraphEditor(before), before.graph.node[0]) == (rows, columns)
    model, result = apply(nearest_upsampling, before, class_contract, followers=frozenset(["grow"]), ranges={"x": (-3.0, 2.0)})
    assert result.ranges == {"y": (-3.0, 2.0)} and "Resize" not in {node.op_type for node in model.graph.node}
    onnx.checker.check_model(model, full_check=True)
    expected = functional.interpolate(torch.from_numpy(x), scale_factor=(rows, columns), mode="nearest").numpy()
    np.testing.assert_array_equal(run(model.SerializeToString(), x=x), expected)


@pytest.mark.parametrize(
    ("factors", "options"),
    [
        ([1, 1, 1.5, 2], {}),
        ([1, 1, 0.5, 0.5], {}),
        ([1, 2, 2, 2], {}),
        ([1, 1, 2, 2], {"mode": "linear"}),
        ([1, 1, 2, 2], {"coordinate_transformation_mode": "align_corners"}),
        ([1, 1, 2, 2], {"nearest_mode": "ceil"}),
    ],
    ids=["a fraction", "smaller", "channels too", "bilinear", "corners aligned", "rounded up"],
)
def test_others_stay_as_they_are(apply: Apply, class_contract: Contract, factors: list[float], options: dict[str, str]) -> None:
    before = graph(factors, **options)
    made, result = apply(nearest_upsampling, before, class_contract, followers=frozenset(["grow"]))
    assert not result and made == before


def test_a_resize_that_is_no_follower_stays(apply: Apply, class_contract: Contract) -> None:
    made, result = apply(nearest_upsampling, graph([1, 1, 2, 2]), class_contract)
    assert not result and made == graph([1, 1, 2, 2])


class Grown(nn.Module):
    """A decoder's step: down, up again by nearest, beside what was passed by."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.down, self.up, self.classify = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, 2, 1), nn.Conv2d(48, 16, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        near = torch.relu(self.near(x))
        grown = functional.interpolate(torch.relu(self.down(near)), scale_factor=2.0, mode="nearest")
        return self.classify(torch.relu(self.up(torch.cat([grown, near], 1))).mean((2, 3)))


def test_a_decoder_runs_as_integers_throughout(integer_kernels: "Callable[[type[nn.Module]], Counter[str]]") -> None:
    kinds = integer_kernels(Grown)
    assert (kinds["QLinearConv"], kinds["QLinearConcat"], kinds["Expand"]) == (3, 1, 1)
    assert not {"Resize", "Conv", "DequantizeLinear", "QuantizeLinear"} & set(kinds), kinds
