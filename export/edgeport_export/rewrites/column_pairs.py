"""A first convolution that moves on by two columns at a time, over pairs of columns.

onnxruntime's integer convolution spends about as long on a tap's addresses as on its products while a tap has few channels, and a picture
has four. Two neighbouring pixels make one position of eight: a 5x5 kernel has 15 taps then instead of 25, a 7x7 one 28 instead of 49. Channels
last, such a pair lies in memory as it is, so that nothing is moved. Exact: the same weights at other places, and zeros.

1. Applies to the convolution that reads what `pixel_convolution` has made, where it moves on by 2 across, has no dilation and explicit padding,
   and has fewer pairs than columns in its kernel.
2. The tap at column t of a kernel with P columns of padding before it reads column o = t - P, counted from the position's own pair: pixel o mod 2
   of pair floor(o / 2).
3. An odd width is filled up with a column of the zero point, which is what the padding is made of. Widths that may be odd or even must have their
   last position at the same padding: a 4x4 kernel with padding 1 is left alone, unless the contract says that the width is even.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeport_runtime import Contract

from .nodes import attributes
from .pixel_convolution import CHANNELS_LAST, PREFIX, REAL, ZERO

PAIRS = ".pairs"


def column_pairs(model: onnx.ModelProto, contract: Contract) -> bool:
    """Rewrite the convolution on pixels of `model` in place. False where the rules do not hold: then nothing is changed."""
    graph = model.graph
    convolution = next(node for node in graph.node if REAL in node.input)
    weight = next(numpy_helper.to_array(each) for each in graph.initializer if each.name == convolution.input[1])
    filters, channels, rows, columns = weight.shape
    said, odd = attributes(convolution), _odd_or_even(contract)
    top, left, bottom, right = said.get("pads", [0, 0, 0, 0])
    down, across = said.get("strides", [1, 1])
    before, after = -(-left // 2), (columns - 1 - left) // 2
    plain = said.get("auto_pad", b"NOTSET") == b"NOTSET" and all(each == 1 for each in said.get("dilations", [1, 1]))
    behind = {(left + right - columns - lacking) // 2 + 1 + after for lacking in odd}
    if not plain or across != 2 or before + after + 1 >= columns or len(behind) > 1 or min(behind) < 0:
        return False
    paired = np.zeros((filters, 2, channels, rows, before + after + 1), weight.dtype)
    for tap in range(columns):
        pair, pixel = divmod(tap - left, 2)
        paired[:, pixel, :, :, before + pair] = weight[..., tap]
    paired = paired.reshape(filters, 2 * channels, rows, -1)
    convolution.input[1] += PAIRS
    graph.initializer.append(numpy_helper.from_array(paired, convolution.input[1]))
    del convolution.attribute[:]
    says = {"kernel_shape": paired.shape[2:], "strides": [down, 1], "pads": [top, before, bottom, behind.pop()]}
    convolution.attribute.extend(helper.make_attribute(key, value) for key, value in says.items())
    _insert(graph, contract.inputs[0].name, 2 * channels, fill=1 in odd)
    return True


def _odd_or_even(contract: Contract) -> set[int]:
    """The remainders by 2 that the width of the pictures may have."""
    width = contract.inputs[0].shape[2]
    if isinstance(width, int):
        return {width % 2}
    limits = contract.axes[width]
    return {size % 2 for size in (limits.low, min(limits.low + limits.step, limits.high))}


def _insert(graph: onnx.GraphProto, name: str, channels: int, *, fill: bool) -> None:
    """Rule 3, and the view of two columns as one."""
    place = next(index for index, node in enumerate(graph.node) if CHANNELS_LAST in node.output) + 1
    reader = graph.node[place]
    values = {"paired": [0, 0, -1, channels]}

    def made(kind: str, inputs: Sequence[str], output: str, **more: Any) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [PREFIX + output], name=f"edgeport/{output}", **more)

    nodes = [made("Reshape", [PREFIX + "filled" if fill else CHANNELS_LAST, PREFIX + "paired"], "pairs")]
    if fill:
        values |= {"two": [2], "before": [0] * 6, "behind": [0]}
        nodes = [
            made("Shape", [name], "width", start=2, end=3),
            made("Mod", [PREFIX + "width", PREFIX + "two"], "lacking"),
            made("Concat", [PREFIX + each for each in ("before", "lacking", "behind")], "fill", axis=0),
            made("Pad", [CHANNELS_LAST, PREFIX + "fill", ZERO], "filled"),
            *nodes,
        ]
    graph.initializer.extend(numpy_helper.from_array(np.array(each), PREFIX + key) for key, each in values.items())
    for node in reversed(nodes):
        graph.node.insert(place, node)
    reader.input[0] = PREFIX + "pairs"
