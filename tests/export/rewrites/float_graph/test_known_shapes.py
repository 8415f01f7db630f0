"""Shapes that the graph knows: held bit for bit to onnxruntime on the graph as the exporter made it, and to shapes counted by hand."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgeport_export.rewrites.float_graph import FLOAT_PASSES
from edgeport_export.rewrites.float_graph.known_shapes import known_shapes
from edgeport_export.rewrites.graph import GraphEditor
from edgeport_export.tracing import exporter
from edgeport_export.tracing.exporter import trace
from edgeport_models import AttentionNet, network
from edgeport_runtime import Range, SessionOptions
from edgeport_runtime.device import open_session

BATCH, HEIGHT, WIDTH = 3, 5, 7
CONTRACT = network("cnn").contract(("a", "b"), 32)


def reshaped(given: list[str | int], wanted: list[str | int], *, readers: int = 1) -> onnx.ModelProto:
    """x (`given`), computed to `y`, which is reshaped to `wanted`, a shape that is concatenated from the input's sides; and z, shaped (n, 4, h, w)."""
    sizes = {"n": 0, "h": 2, "w": 3}
    names, nodes, values = [], [], {"minus": np.array([-1])}
    for index, each in enumerate(wanted):
        name = f"size{index}"
        if isinstance(each, int):
            values[name] = np.array([each])
        elif each in sizes:
            nodes.append(helper.make_node("Shape", ["z"], [name], start=sizes[each], end=sizes[each] + 1))
        else:  # a product of the sides
            nodes.append(helper.make_node("Shape", ["z"], [f"{name}.sides"], start=2))
            nodes.append(helper.make_node("ReduceProd", [f"{name}.sides"], [name], keepdims=1))
        names.append(name)
    nodes.append(helper.make_node("Relu", ["x"], ["y"]))
    nodes.append(helper.make_node("Relu", ["z"], ["r"]))
    nodes += [helper.make_node("Neg", ["r"], [f"out{index}"]) for index in range(readers)]
    nodes += [helper.make_node("Concat", names, ["asked"], axis=0), helper.make_node("Reshape", ["y", "asked"], ["view"], allowzero=1)]
    nodes.append(helper.make_node("Abs", ["view"], ["last"]))
    four = ["n", 4, "h", "w"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", given), ("z", four))]
    outputs = [helper.make_tensor_value_info("last", TensorProto.FLOAT, wanted)]
    outputs += [helper.make_tensor_value_info(f"out{index}", TensorProto.FLOAT, four) for index in range(readers)]
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("y", given), ("r", four), ("view", wanted))]
    constants = [numpy_helper.from_array(value, name) for name, value in values.items() if name != "minus"]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants, value_info=shapes)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, given: list[str | int]) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    sizes = {"n": BATCH, "h": HEIGHT, "w": WIDTH, "h*w": HEIGHT * WIDTH}
    generator = np.random.default_rng(0)
    shapes = {"x": given, "z": ["n", 4, "h", "w"]}
    feed = {
        name: generator.standard_normal([each if isinstance(each, int) else sizes[each] for each in shape]).astype(np.float32) for name, shape in shapes.items()
    }
    return [np.asarray(each) for each in open_session(model.SerializeToString(), SessionOptions(threads=1)).run(None, feed)]


@pytest.mark.parametrize(
    ("given", "wanted", "sizes"),
    [
        (["n", 8, "h", "w"], ["n", 8, "h*w"], [0, 8, -1]),
        (["n", 8, "h", "w"], ["n", "h", 8, "w"], [0, -1, 8, 0]),
        (["n", 8, "h", "w"], ["n", "w", 8, "h"], None),  # two sizes at other axes than before
        (["n", 8, "h", "w"], ["n", 2, 4, "h*w"], [0, 2, 4, -1]),
        (["n", 8, "h*w"], ["n", 2, 4, "h*w"], [0, 2, 4, -1]),
        (["n", "h*w", 8], ["n", "h*w", 2, 4], [0, 0, 2, 4]),
        (["n", "h*w", 8], ["n", "h", "w", 8], None),
    ],
)
def test_what_follows_from_the_input_is_a_constant(given: list[str | int], wanted: list[str | int], sizes: list[int] | None) -> None:
    model = reshaped(given, wanted)
    before = run(model, given)
    assert known_shapes(GraphEditor(model), CONTRACT).changed == (sizes is not None)
    for got, expected in zip(run(model, given), before, strict=True):
        np.testing.assert_array_equal(got, expected)
    found = [numpy_helper.to_array(each).tolist() for each in model.graph.initializer if each.name == "view.sizes"]
    assert found == ([sizes] if sizes else []) and (sizes is None) == any(node.op_type == "Shape" for node in model.graph.node)


@pytest.mark.parametrize(("readers", "asked"), [(1, "z"), (2, "r")])
def test_another_value_of_that_shape_is_asked_for_it(readers: int, asked: str) -> None:
    given: list[str | int] = ["n", 4, "h*w"]
    model = reshaped(given, ["n", 4, "h", "w"], readers=readers)
    before = run(model, given)
    assert known_shapes(GraphEditor(model), CONTRACT).changed == 1
    assert [list(node.input) for node in model.graph.node if node.op_type == "Shape"] == [[asked]]  # one that nobody merges with its only reader
    for got, expected in zip(run(model, given), before, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_shape_that_is_not_known_is_computed_as_before() -> None:
    model = reshaped(["n", "h*w", 8], ["n", "h", "w", 8])
    unknown = reshaped(["n", 8, "h", "w"], ["n", 8, "h*w"])
    next(each for each in unknown.graph.value_info if each.name == "view").type.tensor_type.shape.dim[2].Clear()
    for each in (model, unknown):
        before = each.SerializeToString(deterministic=True)
        assert not known_shapes(GraphEditor(each), CONTRACT) and each.SerializeToString(deterministic=True) == before


def test_attention_computes_no_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    contract = network("attention").contract(tuple("0123456789"), 32)
    net = AttentionNet(channels=32).eval()
    found = trace(net, contract).model
    kinds = [node.op_type for node in found.graph.node]
    assert kinds.count("Shape") == 1 and not {"Concat", "Squeeze", "Div"} & set(kinds)
    monkeypatch.setattr(exporter, "FLOAT_PASSES", [each for each in FLOAT_PASSES if each is not known_shapes])
    before = trace(net, contract).model
    assert len(found.graph.node) < len(before.graph.node) - 12
    for sides in ((8, 8), (33, 75), (64, 40)):
        pixels = np.random.default_rng(0).integers(0, 256, (2, *sides, 3), dtype=np.uint8)
        answers = [open_session(each.SerializeToString(), SessionOptions(threads=1)).run(["logits"], {"pixels": pixels})[0] for each in (before, found)]
        np.testing.assert_array_equal(answers[1], answers[0])


class Windows(nn.Module):
    """Parts of a map side by side, as Swin and PixelShuffle cut it up."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        cut = x.view(batch, channels, height // 4, 4, width // 4, 4).permute(0, 2, 4, 1, 3, 5)
        return cut.reshape(batch * (height // 4) * (width // 4), channels, 16).mean(-1).view(batch, -1, channels).mean(1)


def test_a_network_that_cuts_maps_up_gives_the_same_numbers() -> None:
    sides = {axis: Range(low=4, high=64, step=4) for axis in ("height", "width")}
    described = network("cnn").contract(("a", "b", "c"), 32)
    contract = replace(described, axes={**described.axes, **sides})
    net = Windows()
    model = trace(net, contract).model
    for sides in ((32, 32), (36, 64)):
        pixels = np.random.default_rng(0).integers(0, 256, (2, *sides, 3), dtype=np.uint8)
        with torch.no_grad():
            expected = net(((torch.from_numpy(pixels).double() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)).numpy()
        got = open_session(model.SerializeToString(), SessionOptions(threads=1)).run(["logits"], {"pixels": pixels})[0]
        np.testing.assert_allclose(got, expected, atol=1e-6)
