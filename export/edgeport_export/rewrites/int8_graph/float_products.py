"""Products that stay float between integer ones, guarded from onnxruntime, which would round them.

Where a Conv, ConvTranspose or Gemm stands between a DequantizeLinear and a QuantizeLinear, onnxruntime rounds float weights by itself, all rows with one step.
It does so since pull request 22969 (1.21), and since 25673 also past Relu and Clip. What a plan leaves in float because rounding costs too much would
be rounded all the same, and worse. EfficientNet-Lite0 with one depthwise convolution in float stood at 6.6 dB from fp32 instead of 16.5.

1. onnxruntime leaves a product alone whose input has a scale for each channel. So the DequantizeLinear before a float convolution gets the one scale as
   often as there are channels. The numbers are the same. Integer products that read the same value keep the one scale.
2. Layout, a MaxPool or a Pad may stand in between, because onnxruntime moves a DequantizeLinear behind them or merges them. Then any axis of known size
   gets the scales. One scale alone counts as the scale of all, so where no axis has a known size above 1, a Flatten and its way back stand in between.
3. It leaves a Gemm alone whose bias has two axes. So the bias of a float linear layer becomes (1, features); one without a bias gets zeros. A MatMul
   with the Add of its bias becomes a Gemm in onnxruntime, so the same is done to that.
"""

from functools import cached_property

import numpy as np
import onnx

from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.nodes import attributes

from .context import Int8Context

CONVOLUTIONS = ("Conv", "ConvTranspose")
MOVING = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "MaxPool", "Pad", "Identity")
SUFFIX = ".kept_float"  # of values and constants


def float_products(editor: GraphEditor, context: Int8Context) -> PassResult:
    """Rules 1 to 3, on a graph with its Q/DQ pairs. `changed`: number of products."""
    sizes, changed = _Sizes(editor), 0
    for node in [each for each in editor.nodes if len(each.input) > 1 and each.input[1] in editor.constants]:
        if node.op_type in CONVOLUTIONS:
            changed += _scale_for_each_channel(editor, node, sizes)
        elif node.op_type in ("Gemm", "MatMul"):
            changed += _bias_of_two_axes(editor, node)
    return PassResult(changed=changed)


class _Sizes:
    """Sizes of values, inferred once and only if they are asked for: it takes a copy of all weights."""

    def __init__(self, editor: GraphEditor) -> None:
        self.editor = editor

    @cached_property
    def inferred(self) -> GraphEditor:
        return GraphEditor(onnx.shape_inference.infer_shapes(self.editor.model))

    def known_axis(self, value: str) -> tuple[int, int]:
        """An axis behind the first whose size is known and above 1, and the size; (0, 0) if there is none."""
        dims = self.editor.dims.get(value) or self.inferred.dims.get(value, ())
        return next(((axis, size) for axis, size in enumerate(dims) if axis and isinstance(size, int) and size > 1), (0, 0))


def _scale_for_each_channel(editor: GraphEditor, node: onnx.NodeProto, sizes: _Sizes) -> bool:
    """Rules 1 and 2."""
    weights = editor.constants[node.input[1]].dims
    channels = weights[0] if node.op_type == "ConvTranspose" else weights[1] * attributes(node).get("group", 1)
    reader = _first_moved(editor, node)
    given = editor.producer(reader.input[0], "DequantizeLinear")
    if given is None or not editor.are_constants(given.input[1:]) or editor.constants[given.input[1]].dims:
        return False
    axis, count = (1, channels) if reader is node and channels > 1 else sizes.known_axis(given.output[0])
    made = editor.builder(node.name)
    if not count:
        flat = made.add("Flatten", [given.output[0]], f"{SUFFIX}.flat", axis=1)
        shape = made.add("Shape", [given.output[0]], f"{SUFFIX}.shape")
        value = made.add("Reshape", [flat, shape], SUFFIX)
        editor.insert_after(given, made.nodes)
        editor.set_input(reader, 0, value)
        return True
    repeated = [made.constant(f".{index}{SUFFIX}", np.repeat(editor.array(name), count)) for index, name in enumerate(given.input[1:])]
    value = made.add("DequantizeLinear", [given.input[0], *repeated], SUFFIX, axis=axis)
    editor.insert_after(given, made.nodes)
    editor.set_input(reader, 0, value)
    editor.remove_unread([given.output[0]])
    return True


def _first_moved(editor: GraphEditor, node: onnx.NodeProto) -> onnx.NodeProto:
    """Rule 2: the first of the nodes before `node` that move values; itself if there are none."""
    while (before := editor.producer(node.input[0], *MOVING)) is not None:
        node = before
    return node


def _bias_of_two_axes(editor: GraphEditor, node: onnx.NodeProto) -> bool:
    """Rule 3."""
    weights = editor.constants[node.input[1]].dims
    if len(weights) < 2 or editor.producer(_first_moved(editor, node).input[0], "DequantizeLinear") is None:
        return False
    adding, place = node, 2
    if node.op_type == "MatMul":
        reader = editor.only_reader(node.output[0])
        if reader is None or reader.op_type != "Add":
            return False
        adding, place = reader, 1 if reader.input[0] == node.output[0] else 0
    name = adding.input[place] if len(adding.input) > place else ""
    if name and (name not in editor.constants or len(editor.constants[name].dims) != 1):
        return False
    features = weights[0 if attributes(node).get("transB", 0) else -1]
    bias = editor.array(name) if name else np.zeros(features, np.float32)
    if len(bias) not in (1, features):  # an Add that makes its result larger is no bias
        return False
    two_axes = editor.builder(node.name).constant(f".bias{SUFFIX}", np.broadcast_to(bias, (features,))[None].copy())
    editor.set_inputs(adding, [*adding.input[:place], two_axes, *adding.input[place + 1 :]])
    editor.remove_unread()
    return True
