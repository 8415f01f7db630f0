from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from edgeport_export.quantization.recovery import product_sums
from edgeport_export.quantization.recovery.product_sums import ProductSums
from edgeport_export.rewrites.graph import GraphEditor

GENERATOR = np.random.default_rng(0)


def array(*shape: int) -> np.ndarray:
    return GENERATOR.normal(size=shape).astype(np.float32)


def graph(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> GraphEditor:
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, None)] for name in ("x", nodes[-1].output[0]))
    return GraphEditor(helper.make_model(helper.make_graph(nodes, "graph", inputs, outputs, initializer=initializers)))


Exact = Callable[[torch.Tensor], torch.Tensor]


def conv(weights: np.ndarray, bias: np.ndarray | None, **attributes: object) -> GraphEditor:
    constants = {"w": weights} | ({} if bias is None else {"b": bias})
    return graph([helper.make_node("Conv", ["x", *constants], ["y"], name="p", **attributes)], constants)


W2, B, WIDE, WG = array(6, 3, 3, 2), array(6), array(5, 4), array(6, 2, 3, 3)
W1, W3, B4 = array(4, 3, 5), array(4, 2, 2, 1, 3), array(4)
CASES: dict[str, tuple[GraphEditor, np.ndarray, Exact]] = {
    "strides and padding": (
        conv(W2, B, strides=[2, 1], pads=[1, 0, 2, 1]),
        array(2, 3, 7, 9),
        lambda x: F.conv2d(F.pad(x, (0, 1, 1, 2)), torch.tensor(W2).double(), torch.tensor(B).double(), (2, 1)),
    ),
    "dilated, no bias": (conv(W2, None, dilations=[2, 3]), array(2, 3, 8, 9), lambda x: F.conv2d(x, torch.tensor(W2).double(), dilation=(2, 3))),
    "groups": (
        conv(WG, B, group=3, pads=[1, 1, 1, 1]),
        array(2, 6, 5, 4),
        lambda x: F.conv2d(x, torch.tensor(WG).double(), torch.tensor(B).double(), padding=1, groups=3),
    ),
    "one axis": (conv(W1, B4, strides=[3]), array(2, 3, 17), lambda x: F.conv1d(x, torch.tensor(W1).double(), torch.tensor(B4).double(), 3)),
    "three axes": (conv(W3, B4), array(1, 2, 3, 4, 5), lambda x: F.conv3d(x, torch.tensor(W3).double(), torch.tensor(B4).double())),
    "linear": (
        graph([helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="p", transB=1)], {"w": WIDE, "b": array(5)[:1]}),
        array(9, 4),
        lambda x: x @ torch.tensor(WIDE).double().T,
    ),
    "linear, features last": (
        graph([helper.make_node("Gemm", ["x", "w"], ["y"], name="p")], {"w": WIDE}),
        array(9, 5),
        lambda x: x @ torch.tensor(WIDE).double(),
    ),
    "sequence": (
        graph([helper.make_node("MatMul", ["x", "w"], ["z"], name="p"), helper.make_node("Add", ["b", "z"], ["y"])], {"w": WIDE, "b": B4}),
        array(2, 7, 5),
        lambda x: x @ torch.tensor(WIDE).double() + torch.tensor(B4).double(),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_times_inputs_are_the_product(name: str) -> None:
    editor, given, exact = CASES[name]
    sums = ProductSums.of(editor, editor.nodes[0])
    assert sums is not None and sums.made == "y" and sums.added_by is not None
    made = exact(torch.from_numpy(given).double()).numpy()
    made = made + (sums.added(editor)[0] if name == "linear" else 0)
    inputs, outputs = sums.sampled(given, made, np.random.default_rng(0))
    assert inputs.shape[0] == outputs.shape[0] == sums.groups and inputs.shape[1] == made.size // sums.rows[..., 0].size
    added = sums.added(editor).reshape(sums.groups, 1, -1)
    np.testing.assert_allclose(inputs @ sums.rows.swapaxes(1, 2) + added, outputs, atol=1e-5)
    assert np.array_equal(sums.as_weights(sums.rows), sums.weights)


def test_of_many_positions_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_sums, "MOST_POSITIONS", 5)
    editor, given, exact = CASES["groups"]
    sums = ProductSums.of(editor, editor.nodes[0])
    assert sums is not None
    made = exact(torch.from_numpy(given).double()).numpy()
    inputs, outputs = sums.sampled(given, made, np.random.default_rng(0))
    assert inputs.shape == (3, 5, 18)
    np.testing.assert_allclose(inputs @ sums.rows.swapaxes(1, 2) + sums.added(editor).reshape(3, 1, -1), outputs, atol=1e-5)
    monkeypatch.setattr(product_sums, "MOST_VALUES", 2 * 3 * 18)
    assert sums.sampled(given, made, np.random.default_rng(0))[0].shape == (3, 2, 18)


@pytest.mark.parametrize(
    ("node", "constants"),
    [
        (helper.make_node("Conv", ["x", "w"], ["y"], name="p", auto_pad="SAME_UPPER"), {"w": W2}),
        (helper.make_node("Conv", ["x", "v"], ["y"], name="p"), {"w": W2}),
        (helper.make_node("Gemm", ["x", "w"], ["y"], name="p", alpha=0.5), {"w": WIDE}),
        (helper.make_node("Gemm", ["x", "w"], ["y"], name="p", transA=1), {"w": WIDE}),
        (helper.make_node("MatMul", ["x", "w"], ["y"], name="p"), {"w": array(2, 4, 5)}),
        (helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="p"), {"w": W2}),
    ],
)
def test_other_products_are_left(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> None:
    assert ProductSums.of(graph([node], constants), node) is None


@pytest.mark.parametrize("bias", [array(1, 4), array(7, 4)[0, :1]])
def test_what_is_not_one_number_for_each_feature_is_no_bias(bias: np.ndarray) -> None:
    editor = graph([helper.make_node("MatMul", ["x", "w"], ["z"], name="p"), helper.make_node("Add", ["z", "b"], ["y"])], {"w": WIDE, "b": bias})
    sums = ProductSums.of(editor, editor.nodes[0])
    assert sums is not None and sums.added_by is None and sums.made == "z"
