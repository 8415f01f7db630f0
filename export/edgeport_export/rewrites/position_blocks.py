"""Convolutions with very few filters, computed for a square of neighbouring positions at a time.

onnxruntime's int8 convolution works in blocks of 16 filters, so that 3 filters leave most of it idle, and with 16 it waits for its own sums. A
square of 4x4 positions of 3 filters is 48, and one larger kernel, moved on by 4, covers it. Measured on onnxruntime 1.31.1, two threads,
16x128x128, 64 -> 3 of 3x3: 6.5 ms padded to 16 filters and 1.1 to cut them off again; 3.1 and 0.9 in squares of 2x2 padded to 16; 2.9 and
0.4 in squares of 4x4. Exact: the larger kernels hold the same weights at other places, and zeros.

1. Applies to a convolution of one group with constant weights (and bias, where it has one), step 1, no dilation, explicit padding, at most
   4 filters, and a kernel of at least 2x2. Up to 3 filters take squares of 4x4, 4 take 2x2: whole blocks, nothing to cut off.
2. Filter m at row dy and column dx of a square with side s is number (s dy + dx) F + m. The output (N, s s F, ceil(H/s), ceil(W/s)) is shuffled
   channels last, in pieces of s F values; where H or W is or may be no multiple of s, what is too much is cut off. The old value keeps its name.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from .constants import drop_unread
from .nodes import attributes

MOST = 4  # filters
BLOCKS = ".blocks"  # suffix of a value before its positions are put in place


def position_blocks(model: onnx.ModelProto, names: set[str]) -> dict[str, str]:
    """Rewrite the named convolutions of `model` in place. Returns, for each new value in blocks, the value whose range it has."""
    graph = model.graph
    constants = {each.name: each for each in graph.initializer}
    found = {}
    for node in [each for each in graph.node if each.name in names and _applies(each, constants)]:
        found[node.output[0] + BLOCKS] = node.output[0]
        _rewrite(graph, node, constants)
    if found:
        drop_unread(graph)
    return found


def _applies(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    """Rule 1."""
    if node.op_type != "Conv" or not all(name in constants for name in node.input[1:] if name):
        return False
    said, (filters, *_, height, width) = attributes(node), constants[node.input[1]].dims
    plain = said.get("group", 1) == 1 and said.get("auto_pad", b"NOTSET") == b"NOTSET"
    still = all(each == 1 for key in ("strides", "dilations") for each in said.get(key, [1, 1]))
    return len(constants[node.input[1]].dims) == 4 and plain and still and filters <= MOST and min(height, width) > 1


def _rewrite(graph: onnx.GraphProto, node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> None:
    weight = numpy_helper.to_array(constants[node.input[1]])
    filters, channels, height, width = weight.shape
    side, out, name = _side(filters), node.output[0], node.input[1] + BLOCKS
    wide = np.zeros((side * side * filters, channels, height + side - 1, width + side - 1), weight.dtype)
    for row, column in np.ndindex(side, side):
        first = (side * row + column) * filters
        wide[first : first + filters, :, row : row + height, column : column + width] = weight
    graph.initializer.append(numpy_helper.from_array(wide, name))
    place = list(graph.node).index(node)
    inputs = [node.input[0], name]
    if len(node.input) > 2 and node.input[2]:
        graph.initializer.append(numpy_helper.from_array(np.tile(numpy_helper.to_array(constants[node.input[2]]), side * side), node.input[2] + BLOCKS))
        inputs.append(node.input[2] + BLOCKS)
    top, left, bottom, right = attributes(node).get("pads", [0, 0, 0, 0])
    graph.node.remove(node)
    pads = [top, left, bottom + side - 1, right + side - 1]
    made = helper.make_node("Conv", inputs, [out + BLOCKS], name=node.name, kernel_shape=wide.shape[2:], strides=[side, side], pads=pads)
    shrinks = np.array([top + bottom - height + 1, left + right - width + 1])
    for each in reversed([made, *_in_place(graph, out, node.input[0], filters, shrinks)]):
        graph.node.insert(place, each)


def _in_place(graph: onnx.GraphProto, out: str, source: str, filters: int, shrinks: NDArray[np.int64]) -> list[onnx.NodeProto]:
    """Rule 2. `shrinks`: how much higher and wider the output is than the convolution's input, which is `source`."""
    side = _side(filters)
    constants = {
        "batch": np.array([0]),
        "pieces": np.array([0, 0, 0, side, side * filters]),
        "shrinks": shrinks,
        "rest": np.array([side - 1]),
        "side": np.array([side]),
        "filters": np.array([filters]),
        "corner": np.array([0, 0]),
        "sides": np.array([1, 2]),
    }
    graph.initializer.extend(numpy_helper.from_array(value.astype(np.int64), f"{out}{BLOCKS}.{name}") for name, value in constants.items())

    def made(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        read = [f"{out}{BLOCKS}{each}" if each.startswith(".") else each for each in inputs]
        written = f"{out}{BLOCKS}{output}" if output.startswith(".") else output
        return helper.make_node(kind, read, [written], name=f"edgeport/{written}", **attributes)

    return [
        made("Transpose", [out + BLOCKS], ".nhwc", perm=[0, 2, 3, 1]),
        made("Reshape", [".nhwc", ".pieces"], ".rows"),
        made("Transpose", [".rows"], ".shuffled", perm=[0, 1, 3, 2, 4]),
        made("Shape", [source], ".given", start=2),
        made("Add", [".given", ".shrinks"], ".wanted"),
        made("Add", [".wanted", ".rest"], ".more"),
        made("Div", [".more", ".side"], ".blocks"),
        made("Mul", [".blocks", ".side"], ".whole"),
        made("Concat", [".batch", ".whole", ".filters"], ".shape", axis=0),
        made("Reshape", [".shuffled", ".shape"], ".map"),
        made("Slice", [".map", ".corner", ".wanted", ".sides"], ".cropped"),
        made("Transpose", [".cropped"], out, perm=[0, 3, 1, 2]),
    ]


def _side(filters: int) -> int:
    """Of the square of positions that are computed together."""
    return 2 if filters == MOST else 4
