"""Transposed convolutions as ordinary ones: held to PyTorch in float64, and to what the integer kernels then run."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from edgeport_export.quantization.qdq import candidates, follower_products
from edgeport_export.quantization.targets import TARGETS
from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.int8_graph.transposed_convolution import Axis, phased, refusal, transposed_convolution
from edgeport_runtime import Contract, SessionOptions
from edgeport_runtime.device import open_session

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]
CHANNELS, FILTERS = 3, 2
UP = ["up/ConvTranspose"]


def graph(weight: np.ndarray, bias: np.ndarray | None, activation: tuple[str, dict[str, Any]] | None = None, **attributes: Any) -> onnx.ModelProto:
    """x -> ConvTranspose -> [activation] -> y, which is read once more; every axis of the map dynamic."""
    arrays = {"w": weight, **({"b": bias} if bias is not None else {})}
    nodes = [helper.make_node("ConvTranspose", ["x", *arrays], ["up" if activation else "y"], name="up/ConvTranspose", **attributes)]
    if activation:
        nodes.append(helper.make_node(activation[0], ["up"], ["y"], name="act", **activation[1]))
    nodes.append(helper.make_node("Identity", ["y"], ["out"], name="end"))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", count, None, None]) for name, count in (("x", weight.shape[0]), ("out", None))]
    made = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(array, name) for name, array in arrays.items()])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    return np.asarray(open_session(model.SerializeToString(), SessionOptions(threads=1)).run(["out"], {"x": x})[0])


axis = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(0, 4), st.integers(0, 3)).filter(lambda each: each[2] < each[0] and each[3] < each[1])


@settings(max_examples=120, deadline=None)
@given(rows=axis, columns=axis, height=st.integers(1, 6), width=st.integers(1, 6), biased=st.booleans())
@example(rows=(4, 2, 1, 0), columns=(4, 2, 1, 0), height=5, width=4, biased=True)  # DCGAN
@example(rows=(2, 2, 0, 0), columns=(2, 2, 0, 0), height=3, width=6, biased=True)  # U-Net
@example(rows=(3, 2, 1, 1), columns=(3, 2, 1, 1), height=4, width=4, biased=False)  # CycleGAN, and ResNet generators
@example(rows=(4, 1, 0, 0), columns=(4, 1, 0, 0), height=1, width=1, biased=False)  # DCGAN's first, from one position
@example(rows=(1, 3, 0, 2), columns=(5, 2, 4, 1), height=3, width=3, biased=True)
def test_it_gives_what_pytorch_gives_in_float64(
    apply: Apply, class_contract: Contract, rows: tuple[int, int, int, int], columns: tuple[int, int, int, int], height: int, width: int, biased: bool
) -> None:
    kernel, step, cut, extra = zip(rows, columns, strict=True)
    generator = np.random.default_rng(sum(rows) * 31 + sum(columns))
    weight = generator.standard_normal((CHANNELS, FILTERS, *kernel)).astype(np.float32)
    bias = generator.standard_normal(FILTERS).astype(np.float32) if biased else None
    x = generator.standard_normal((2, CHANNELS, height, width)).astype(np.float32)
    given_bias = torch.from_numpy(bias).double() if bias is not None else None
    shape = [(size - 1) * s + k - 2 * p + o for size, s, k, p, o in zip((height, width), step, kernel, cut, extra, strict=True)]
    if min(shape) < 1:
        return
    expected = functional.conv_transpose2d(torch.from_numpy(x).double(), torch.from_numpy(weight).double(), given_bias, step, cut, extra).numpy()
    model = graph(weight, bias, strides=step, pads=[*cut, *cut], output_padding=extra)
    if refusal(GraphEditor(model), model.graph.node[0]):
        assert any(c >= -(-k // s) * s or c + o > k + s for k, s, c, o in (rows, columns)), "one that cuts off more than it computes"
        return
    model, _ = apply(transposed_convolution, model, class_contract, products=UP)
    assert model.graph.node[0].op_type == "Conv" and "ConvTranspose" not in {node.op_type for node in model.graph.node}
    np.testing.assert_allclose(run(model, x), expected, atol=1e-5)


def test_the_filters_of_a_phase_hold_the_taps_of_its_remainder() -> None:
    """A kernel of 4 by 2 on one axis, by hand: phase 0 reads taps 0 and 2, phase 1 taps 1 and 3; the later tap meets the earlier position."""
    rows, columns = Axis.of(4, 2, 1, 1, 0), Axis.of(1, 1, 0, 0, 0)
    weight = np.array([10.0, 11.0, 12.0, 13.0], np.float32).reshape(1, 1, 4, 1)
    assert phased(weight, rows, columns).reshape(2, 2).tolist() == [[12.0, 10.0], [13.0, 11.0]]
    assert (rows.taps, rows.before, rows.after, rows.first, rows.last) == (2, 1, 1, 1, 1)


@pytest.mark.parametrize("activation", [("Relu", {}), ("LeakyRelu", {"alpha": 0.2})], ids=["Relu", "LeakyRelu"])
def test_an_activation_is_applied_to_the_phases(apply: Apply, class_contract: Contract, activation: tuple[str, dict[str, Any]]) -> None:
    weight = np.random.default_rng(0).standard_normal((CHANNELS, FILTERS, 4, 4)).astype(np.float32)
    model = graph(weight, None, activation, strides=[2, 2], pads=[1, 1, 1, 1])
    x = np.random.default_rng(1).standard_normal((1, CHANNELS, 3, 5)).astype(np.float32)
    before = run(model, x)
    model, result = apply(transposed_convolution, model, class_contract, products=UP, ranges={"up": (-1.0, 2.0), "y": (0.0, 2.0)})
    assert [node.op_type for node in model.graph.node][:3] == ["Conv", activation[0], "Transpose"]
    assert result.ranges == {"up.phases": (-1.0, 2.0), "y.phases": (0.0, 2.0)}
    np.testing.assert_allclose(run(model, x), before, atol=1e-5)
    assert follower_products(GraphEditor(model)) == {"act": frozenset({"up/ConvTranspose"})}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"group": 2}, "a transposed convolution in groups"),
        ({"dilations": [2, 2]}, "a dilated transposed convolution"),
        ({"auto_pad": "SAME_UPPER"}, "a transposed convolution that is told its output's size"),
        ({"pads": [5, 0, 0, 0]}, "a transposed convolution that cuts off more than it computes"),
    ],
)
def test_others_stay_as_they_are_and_the_reason_is_known(apply: Apply, class_contract: Contract, options: dict[str, Any], reason: str) -> None:
    before = graph(np.ones((4, 2, 4, 4), np.float32), None, **{"strides": [2, 2], **options})
    made, result = apply(transposed_convolution, before, class_contract, products=UP)
    assert not result and made == before
    assert candidates(GraphEditor(before), TARGETS["x86-vnni"]) == ([], {"up/ConvTranspose": f"onnxruntime has no integer kernel for {reason}"})


@pytest.mark.parametrize("activation", [None, ("Relu", {})], ids=["itself", "after a Relu"])
def test_an_answer_is_not_rounded(activation: tuple[str, dict[str, Any]] | None) -> None:
    model = graph(np.ones((4, 2, 2, 2), np.float32), None, activation, strides=[2, 2])
    assert not refusal(GraphEditor(model), model.graph.node[0])
    model.graph.node.pop()
    model.graph.output[0].name = "y"
    assert refusal(GraphEditor(model), model.graph.node[0]) == "a transposed convolution that gives an output, which its integers would round"


def test_only_integer_products_are_rewritten_and_only_for_targets_on_which_it_was_measured(apply: Apply, class_contract: Contract) -> None:
    model = graph(np.ones((4, 2, 2, 2), np.float32), None, strides=[2, 2])
    made, result = apply(transposed_convolution, model, class_contract, products=[])
    assert not result and made == model
    editor = GraphEditor(model)
    assert candidates(editor, TARGETS["x86-vnni"])[0] == candidates(editor, TARGETS["x86"])[0] == ["up/ConvTranspose"]
    assert candidates(editor, TARGETS["arm64"]) == ([], {"up/ConvTranspose": "a transposed convolution was not measured on this target"})


class Decoder(nn.Module):
    """Down and up again, twice, with earlier maps beside them: 4x4 by 2 as pix2pix grows its maps, 2x2 by 2 as U-Net does."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 16, 4, 2, 1), nn.Conv2d(16, 32, 4, 2, 1)
        self.up1, self.up2 = nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ConvTranspose2d(32, 16, 2, 2)
        self.head = nn.Conv2d(16, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near = torch.relu(self.down1(x))
        grown = torch.relu(self.up1(torch.relu(self.down2(near))))
        return self.head(self.up2(torch.cat([grown, near], 1))).mean((2, 3))


@pytest.mark.skipif(
    tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 31), reason="onnxruntime before 1.31 leaves one more step between integer kernels"
)
def test_a_decoder_runs_as_integers_throughout(integer_kernels: "Callable[[type[nn.Module]], Counter[str]]") -> None:
    kinds = integer_kernels(Decoder)
    assert (kinds["QLinearConv"], kinds["QLinearConcat"]) == (5, 1) and not {"Conv", "ConvTranspose"} & set(kinds)
    assert kinds["DequantizeLinear"] <= 1, "maps stay integers while their phases are put in place"
