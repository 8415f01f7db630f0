"""A transposed convolution as an ordinary one that computes every phase of its output (sub-pixel convolution), and the phases put in place.

onnxruntime has no integer kernel for ConvTranspose, so decoders and generators that enlarge their maps by it would stay float. Output position
q is the sum over taps k of x[(q - k) / stride] w[k] for which that divides. So the positions of one remainder (a phase) all read the same few
neighbors, with weights of their own. One convolution with `stride` times as many filters on each axis gives all of them (Shi et al. 2016,
arXiv:1609.07009). Exact: the same products in another order, with zeros if the kernel is no multiple of the stride. In float it gains nothing.
Measured on onnxruntime 1.31.1, two threads, batch 16, with a 1x1 convolution before and after, against the float ConvTranspose:

    128 -> 64 channels from 32x32, kernel 4x4, stride 2     8.7 ms against 39.2.
    64 -> 64, kernel 2x2, stride 2                          4.2 ms against 8.8.
    512 -> 256 from 4x4, kernel 4x4, stride 2               2.7 ms against 7.0.

1. Applies to ConvTranspose over height and width, of one group, with constant weights (and bias, if it has one) and no dilation. Its output
   size follows from its padding. Its result is no output of the graph, because phases would round and clip it, while the result of other
   products stays as it is. `refusal` says which of these is missing.
2. On each axis T = ceil(kernel / stride) taps. Whole strides of padding are taken from the convolution's own, the rest is cut off at the end.
3. Filter c of the phase (row, column) is number (row * stride + column) * C + c. Channels last, phases move in pieces of `stride * C` values.
4. A Relu, LeakyRelu or Clip that alone reads the result is applied to the phases, so that the integer kernel includes it.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.nodes import attributes

from .context import Int8Context

PHASES = ".phases"  # suffix of a value before its phases are put in place
MERGED = ("Relu", "LeakyRelu", "Clip")  # activations of rule 4


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What rule 2 makes of one axis. `before`, `after`: padding of the convolution; `first`, `last`: positions of its result that are cut off."""

    stride: int
    taps: int
    before: int
    after: int
    first: int
    last: int

    @classmethod
    def of(cls, kernel: int, stride: int, begin: int, end: int, extra: int) -> "Axis":
        """`begin`, `end`, `extra`: what the transposed convolution cuts off on both sides, and adds at the end."""
        taps = -(-kernel // stride)
        too_many = taps * stride - kernel + end - extra
        return cls(
            stride=stride, taps=taps, before=taps - 1 - begin // stride, after=taps - 1 - too_many // stride, first=begin % stride, last=too_many % stride
        )


def refusal(editor: GraphEditor, node: onnx.NodeProto) -> str:
    """Why a ConvTranspose cannot be rewritten; empty if it can. Rule 1."""
    found = attributes(node)
    if not editor.are_constants(node.input[1:]):
        return "a transposed convolution whose weights are computed"
    if found.get("group", 1) != 1:
        return "a transposed convolution in groups"
    if any(each != 1 for each in found.get("dilations", [])):
        return "a dilated transposed convolution"
    if len(editor.constants[node.input[1]].dims) != 4:
        return "a transposed convolution over other than two axes"
    if "output_shape" in found or found.get("auto_pad", b"NOTSET") != b"NOTSET":
        return "a transposed convolution that is told its output's size"
    merged = [reader.output[0] for reader in editor.readers.get(node.output[0], []) if reader.op_type in MERGED]
    if {node.output[0], *merged} & editor.outputs:
        return "a transposed convolution that gives an output, which its integers would round"
    padding = [each for axis in _axes(editor, node) for each in (axis.before, axis.after)]
    return "a transposed convolution that cuts off more than it computes" if min(padding) < 0 else ""


def transposed_convolution(editor: GraphEditor, context: Int8Context) -> PassResult:
    """Rewrite the transposed convolutions that run as integers. `changed`: number of them."""
    ranges: dict[str, tuple[float, float]] = {}
    found = [each for each in editor.nodes if each.name in context.products and each.op_type == "ConvTranspose" and not refusal(editor, each)]
    for node in found:
        for value in _rewrite(editor, node):
            ranges[value] = context.ranges[value.removesuffix(PHASES)]
    editor.remove_unread()
    return PassResult(changed=len(found), ranges=ranges)


def _axes(editor: GraphEditor, node: onnx.NodeProto) -> tuple[Axis, Axis]:
    found, dims = attributes(node), editor.constants[node.input[1]].dims
    steps, cut, extra = found.get("strides", [1, 1]), found.get("pads", [0, 0, 0, 0]), found.get("output_padding", [0, 0])
    rows, columns = (Axis.of(dims[2 + each], steps[each], cut[each], cut[2 + each], extra[each]) for each in (0, 1))
    return rows, columns


def phased(weight: NDArray[np.float32], rows: Axis, columns: Axis) -> NDArray[np.float32]:
    """Weights (in, out, kernel height, kernel width) of a transposed convolution as those of a convolution: (phases * out, in, taps, taps). Rule 3."""
    whole = np.zeros((*weight.shape[:2], rows.taps * rows.stride, columns.taps * columns.stride), weight.dtype)
    whole[:, :, : weight.shape[2], : weight.shape[3]] = weight
    parts = whole.reshape(*weight.shape[:2], rows.taps, rows.stride, columns.taps, columns.stride)[:, :, ::-1, :, ::-1]
    filters = rows.stride * columns.stride * weight.shape[1]
    return np.ascontiguousarray(parts.transpose(3, 5, 1, 0, 2, 4)).reshape(filters, weight.shape[0], rows.taps, columns.taps)


def _rewrite(editor: GraphEditor, node: onnx.NodeProto) -> list[str]:
    """Put a convolution in the place of `node`. Returns the values in phases that may be quantized."""
    rows, columns = axes = _axes(editor, node)
    weight, output, phases = editor.array(node.input[1]), node.output[0], rows.stride * columns.stride
    made = editor.builder(f"{output}{PHASES}.")
    inputs = [node.input[0], made.constant("weight", phased(weight, *axes))]
    if len(node.input) > 2 and node.input[2]:
        inputs.append(made.constant("bias", np.tile(editor.array(node.input[2]), phases)))
    pads = [rows.before, columns.before, rows.after, columns.after]
    value = output + PHASES if phases > 1 else output
    made.add("Conv", inputs, into=value, name=node.name, kernel_shape=[rows.taps, columns.taps], strides=[1, 1], pads=pads)
    editor.replace(node, made.nodes)
    if phases == 1:
        return []
    activation, last, given = _activation(editor, output), made.nodes[0], [value]
    if activation is not None:
        editor.set_input(activation, 0, value)
        last, output = activation, activation.output[0]
        editor.set_output(activation, output + PHASES)
        given.append(output + PHASES)
    editor.insert_after(last, _in_place(editor, output, axes, weight.shape[1]))
    return given


def _activation(editor: GraphEditor, value: str) -> onnx.NodeProto | None:
    """Rule 4."""
    reader = editor.only_reader(value)
    return reader if reader is not None and reader.op_type in MERGED and editor.are_constants(reader.input[1:]) else None


def _in_place(editor: GraphEditor, output: str, axes: tuple[Axis, Axis], filters: int) -> list[onnx.NodeProto]:
    """Rules 2 and 3: from `output` in phases to `output`."""
    rows, columns = axes
    source, made = output + PHASES, editor.builder(f"{output}{PHASES}.")
    batch, pieces = made.constant("none", [0]), made.constant("pieces", [0, 0, 0, rows.stride, columns.stride * filters])
    steps, channels = made.constant("steps", [rows.stride, columns.stride]), made.constant("filters", [filters])
    first = made.constant("first", [each.first for each in axes])
    last = made.constant("last", [-each.last if each.last else 2**31 - 1 for each in axes])
    sides = made.constant("sides", [1, 2])
    nhwc = made.add("Transpose", [source], "nhwc", perm=[0, 2, 3, 1])
    shuffled = made.add("Transpose", [made.add("Reshape", [nhwc, pieces], "rows")], "shuffled", perm=[0, 1, 3, 2, 4])
    wanted = made.add("Mul", [made.add("Shape", [source], "given", start=2), steps], "wanted")
    value = made.add("Reshape", [shuffled, made.add("Concat", [batch, wanted, channels], "shape", axis=0)], "map")
    if any(each.first or each.last for each in axes):
        value = made.add("Slice", [value, first, last, sides], "cut")
    made.add("Transpose", [value], into=output, perm=[0, 3, 1, 2])
    return made.nodes
