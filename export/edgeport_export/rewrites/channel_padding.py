"""Convolutions with few filters, padded with zero filters to what the integer kernel works in.

onnxruntime's int8 convolution works in blocks of 16 filters: 64 -> 3 channels at 128x128 takes as long as 64 -> 64 (1,084 us against 1,269,
one thread), padded to 16 it takes 532 us. Exact: the added filters and biases are zeros, and their outputs are cut off.

1. Applies to a convolution of one group with constant weights, and a constant bias or none, whose number of filters is no multiple of 16.
2. The convolution's output keeps its values under another name, with the zero channels behind; a Slice brings back the old one.
3. It pays below 16 filters only: from 17 to 31 the padding costs as much as it saves.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .constants import drop_unread

BLOCK = 16
WIDE = ".wide"  # suffix of a value with the zero channels behind


def channel_padding(model: onnx.ModelProto, names: set[str]) -> dict[str, str]:
    """Pad the named convolutions of `model` in place. Returns, for each new wide value, the value whose range it has."""
    graph = model.graph
    constants = {each.name: each for each in graph.initializer}
    widened = {}
    for node in [each for each in graph.node if each.name in names and each.op_type == "Conv"]:
        weight = constants.get(node.input[1])
        bias = constants.get(node.input[2]) if len(node.input) > 2 else None
        grouped = any(each.name == "group" and each.i != 1 for each in node.attribute)
        if weight is None or grouped or weight.dims[0] >= BLOCK or (len(node.input) > 2 and bias is None):
            continue
        _pad(graph, node, weight, bias)
        widened[node.output[0]] = node.output[0].removesuffix(WIDE)
    return widened


def _pad(graph: onnx.GraphProto, node: onnx.NodeProto, weight: onnx.TensorProto, bias: onnx.TensorProto | None) -> None:
    filters, output = weight.dims[0], node.output[0]
    more = BLOCK - filters
    for index, old in ((1, weight), (2, bias)):
        if old is None:
            continue
        array = numpy_helper.to_array(old)
        wide = np.concatenate([array, np.zeros((more, *array.shape[1:]), array.dtype)])
        graph.initializer.append(numpy_helper.from_array(wide, old.name + WIDE))
        node.input[index] = old.name + WIDE
    node.output[0] = output + WIDE
    bounds = {"starts": [0], "ends": [filters], "axes": [1]}
    graph.initializer.extend(numpy_helper.from_array(np.array(value), f"{output}.{name}") for name, value in bounds.items())
    cut = helper.make_node("Slice", [output + WIDE, *(f"{output}.{name}" for name in bounds)], [output], name=f"edgeport/{output}.Slice")
    graph.node.insert(list(graph.node).index(node) + 1, cut)
    drop_unread(graph)
