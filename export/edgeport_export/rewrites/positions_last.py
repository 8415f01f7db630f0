"""Maps that become sequences of positions, and back, without leaving the layout of the integer kernels.

Attention over a map flattens (N, C, H, W) to (N, C, H * W) and swaps the last two axes. Integer convolutions work channels last, where
that sequence already lies as it is needed, but onnxruntime cannot take its transpositions past the flattening. Measured on AttentionNet,
16 images of 64x64, two threads: these transpositions take 0.4 of 4.0 ms. Layout alone, so it is exact.

1. Reshape of a named convolution from (N, C, H, W) to (N, C, H * W) goes by way of (N, H, W, C) and (N, H * W, C).
2. Reshape of a swapped (N, H * W, C) to (N, C, H, W) goes by way of (N, H, W, C).
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .transposed_product import swaps

CHANNELS_LAST, CHANNELS_FIRST, SWAP = [0, 2, 3, 1], [0, 3, 1, 2], [0, 2, 1]


def positions_last(model: onnx.ModelProto, names: set[str]) -> int:
    """Rewrite `model` in place where rule 1 applies to convolutions of `names`, and where rule 2 does. Returns the number of places."""
    graph = model.graph
    shapes = {value.name: _dims(value) for value in (*graph.value_info, *graph.input, *graph.output)}
    producers = {out: node for node in graph.node for out in node.output}
    count = 0
    for node in [each for each in graph.node if each.op_type == "Reshape"]:
        source = producers.get(node.input[0])
        before, after = shapes.get(node.input[0], []), shapes.get(node.output[0], [])
        if source is None:
            continue
        if source.op_type == "Conv" and source.name in names and _same_channels(before, after, 4, 3):
            _flatten(graph, node, int(before[1]))
            count += 1
        elif swaps(source) and _same_channels(before, after, 3, 4) and _says_sizes(graph, node):
            _unflatten(graph, node, source.input[0])
            count += 1
    _drop_idle(graph)
    return count


def _drop_idle(graph: onnx.GraphProto) -> None:
    """Remove transpositions that nobody reads any more, the last one of a chain first."""
    read = {name for node in graph.node for name in node.input} | {each.name for each in graph.output}
    idle = [node for node in graph.node if swaps(node) and node.output[0] not in read]
    for node in idle:
        graph.node.remove(node)
    if idle:
        _drop_idle(graph)


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [each.dim_value if each.HasField("dim_value") else each.dim_param for each in value.type.tensor_type.shape.dim]


def _same_channels(before: list[int | str], after: list[int | str], rank: int, new_rank: int) -> bool:
    return (len(before), len(after)) == (rank, new_rank) and before[:2] == after[:2] and isinstance(before[1], int) and before[0] != ""


def _says_sizes(graph: onnx.GraphProto, node: onnx.NodeProto) -> bool:
    """Whether the shape that was asked for names sizes alone: a zero that stands for the input's size at its place would not survive another order."""
    if any(each.name == "allowzero" and each.i for each in node.attribute):
        return True
    constant = next((numpy_helper.to_array(each) for each in graph.initializer if each.name == node.input[1]), None)
    return constant is not None and all(constant[1:])


def _flatten(graph: onnx.GraphProto, node: onnx.NodeProto, channels: int) -> None:
    """Rule 1. Who swapped the axes afterwards reads the sequence itself."""
    name, out = f"edgeport/{node.output[0]}", node.output[0]
    graph.initializer.append(numpy_helper.from_array(np.array([0, -1, channels]), f"{out}.sequence"))
    place = list(graph.node).index(node)
    graph.node.remove(node)
    made = [
        helper.make_node("Transpose", [node.input[0]], [f"{out}.nhwc"], name=f"{name}.nhwc", perm=CHANNELS_LAST),
        helper.make_node("Reshape", [f"{out}.nhwc", f"{out}.sequence"], [f"{out}.positions"], name=f"{name}.positions"),
        helper.make_node("Transpose", [f"{out}.positions"], [out], name=f"{name}.swap", perm=SWAP),
    ]
    for each in reversed(made):
        graph.node.insert(place, each)
    swapped = {each.output[0] for each in graph.node if swaps(each) and each.input[0] == out} - {each.name for each in graph.output}
    for reader in graph.node:
        for index, read in enumerate(reader.input):
            if read in swapped:
                reader.input[index] = f"{out}.positions"


def _unflatten(graph: onnx.GraphProto, node: onnx.NodeProto, sequence: str) -> None:
    """Rule 2. The shape that was asked for is put into the other order."""
    out = node.output[0]
    allowed = {each.name: each.i for each in node.attribute}
    graph.initializer.append(numpy_helper.from_array(np.array(CHANNELS_LAST), f"{out}.order"))
    place = list(graph.node).index(node)
    graph.node.remove(node)
    made = [
        helper.make_node("Gather", [node.input[1], f"{out}.order"], [f"{out}.shape"], name=f"edgeport/{out}.shape"),
        helper.make_node("Reshape", [sequence, f"{out}.shape"], [f"{out}.map"], name=f"edgeport/{out}.map", **allowed),
        helper.make_node("Transpose", [f"{out}.map"], [out], name=f"edgeport/{out}.nchw", perm=CHANNELS_FIRST),
    ]
    for each in reversed(made):
        graph.node.insert(place, each)
