"""Convolutions with very few filters, computed for a square of neighboring positions at a time (sub-pixel convolution, pixel shuffle).

onnxruntime's int8 convolution works in blocks of 16 filters, so that 3 filters leave most of it idle, and with 16 it waits for its own sums. A
square of 4x4 positions of 3 filters is 48, and one larger kernel, moved on by 4, covers it. Measured on onnxruntime 1.31.1, two threads,
16x128x128, 64 -> 3 of 3x3: 6.5 ms padded to 16 filters, and 1.1 to cut them off again. In squares of 2x2, padded to 16, it is 3.1 and 0.9; in
squares of 4x4, 2.9 and 0.4. Exact: the larger kernels hold the same weights at other places, and zeros.

1. Applies to a convolution of one group with constant weights (and bias, if it has one), stride 1, no dilation, explicit padding, at most
   4 filters, and a kernel of at least 2x2. Up to 3 filters take squares of 4x4, 4 take 2x2: whole blocks, nothing to cut off.
2. Filter m at row dy and column dx of a square with side s is number (s dy + dx) F + m. The output (N, s s F, ceil(H/s), ceil(W/s)) is shuffled
   channels last, in pieces of s F values. Rows and columns beyond H and W are cut off. The old value keeps its name.
"""

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.nodes import attributes

from .context import Int8Context

MOST = 4  # filters
BLOCKS = ".blocks"  # suffix of a value before its positions are put in place


def position_blocks(editor: GraphEditor, context: Int8Context) -> PassResult:
    """Rewrite the convolutions that run as integers. `changed`: number of convolutions."""
    ranges = {}
    for node in [each for each in editor.nodes if each.name in context.products and _applies(editor, each)]:
        ranges[node.output[0] + BLOCKS] = context.ranges[node.output[0]]
        editor.replace(node, _in_blocks(editor, node))
    if ranges:
        editor.remove_unread()
    return PassResult(changed=len(ranges), ranges=ranges)


def _applies(editor: GraphEditor, node: onnx.NodeProto) -> bool:
    """Rule 1."""
    if node.op_type != "Conv" or not editor.are_constants(node.input[1:]) or len(editor.constants[node.input[1]].dims) != 4:
        return False
    found, (filters, _, height, width) = attributes(node), editor.constants[node.input[1]].dims
    plain = found.get("group", 1) == 1 and found.get("auto_pad", b"NOTSET") == b"NOTSET"
    still = all(each == 1 for name in ("strides", "dilations") for each in found.get(name, [1, 1]))
    return bool(plain and still and filters <= MOST and min(height, width) > 1)


def _in_blocks(editor: GraphEditor, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Rule 2: the convolution, and its positions put in place."""
    weight, output, made = editor.array(node.input[1]), node.output[0], editor.builder("")
    filters, _, height, width = weight.shape
    side = 2 if filters == MOST else 4  # of the square of positions that are computed together
    inputs = [node.input[0], made.constant(node.input[1] + BLOCKS, _spread(weight, side))]
    if len(node.input) > 2 and node.input[2]:
        inputs.append(made.constant(node.input[2] + BLOCKS, np.tile(editor.array(node.input[2]), side * side)))
    top, left, bottom, right = attributes(node).get("pads", [0, 0, 0, 0])
    pads, kernel = [top, left, bottom + side - 1, right + side - 1], [height + side - 1, width + side - 1]
    made.add("Conv", inputs, into=output + BLOCKS, name=node.name, kernel_shape=kernel, strides=[side, side], pads=pads)
    growth = [top + bottom - height + 1, left + right - width + 1]
    return [*made.nodes, *_in_place(editor, output, node.input[0], filters, side, growth)]


def _spread(weight: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """The weights (filters, channels, height, width) at every place of a square."""
    filters, channels, height, width = weight.shape
    wide = np.zeros((side * side * filters, channels, height + side - 1, width + side - 1), weight.dtype)
    for row, column in np.ndindex(side, side):
        first = (side * row + column) * filters
        wide[first : first + filters, :, row : row + height, column : column + width] = weight
    return wide


def _in_place(editor: GraphEditor, output: str, source: str, filters: int, side: int, growth: list[int]) -> list[onnx.NodeProto]:
    """From blocks to `output`. `growth`: how much higher and wider the output is than the convolution's input, which is `source`."""
    made = editor.builder(f"{output}{BLOCKS}.")
    batch, pieces = made.constant("batch", [0]), made.constant("pieces", [0, 0, 0, side, side * filters])
    more, rest = made.constant("shrinks", growth), made.constant("rest", [side - 1])
    sides, channels = made.constant("side", [side]), made.constant("filters", [filters])
    corner, axes = made.constant("corner", [0, 0]), made.constant("sides", [1, 2])
    nhwc = made.add("Transpose", [output + BLOCKS], "nhwc", perm=[0, 2, 3, 1])
    shuffled = made.add("Transpose", [made.add("Reshape", [nhwc, pieces], "rows")], "shuffled", perm=[0, 1, 3, 2, 4])
    wanted = made.add("Add", [made.add("Shape", [source], "given", start=2), more], "wanted")
    blocks = made.add("Div", [made.add("Add", [wanted, rest], "more"), sides], "blocks")
    shape = made.add("Concat", [batch, made.add("Mul", [blocks, sides], "whole"), channels], "shape", axis=0)
    cropped = made.add("Slice", [made.add("Reshape", [shuffled, shape], "map"), corner, wanted, axes], "cropped")
    made.add("Transpose", [cropped], into=output, perm=[0, 3, 1, 2])
    return made.nodes
