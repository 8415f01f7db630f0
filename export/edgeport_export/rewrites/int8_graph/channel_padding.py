"""Convolutions with few filters, padded with zero filters to the integer kernel's block of 16.

onnxruntime's int8 convolution works in blocks of 16 filters: 64 -> 3 channels at 128x128 takes as long as 64 -> 64 (1,084 us against 1,269,
one thread); padded to 16 it takes 532 us. Exact: the added filters and biases are zeros, and their outputs are cut off.

1. Applies to a convolution of one group with constant weights, and a constant bias or none, that has fewer than 16 filters. From 17 to 31
   filters the padding costs as much as it saves.
2. The convolution's output gets another name, for its values with the zero channels after them. A Slice brings the old one back.
"""

import numpy as np
import onnx

from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.nodes import attributes

from .context import Int8Context

BLOCK = 16
PADDED = ".wide"  # suffix of a value with the zero channels


def channel_padding(editor: GraphEditor, context: Int8Context) -> PassResult:
    """Pad the convolutions that run as integers. `changed`: number of convolutions."""
    ranges = {}
    for node in [each for each in editor.nodes if each.name in context.products and _applies(editor, each)]:
        output = node.output[0]
        _pad(editor, node)
        ranges[output + PADDED] = context.ranges[output]
    return PassResult(changed=len(ranges), ranges=ranges)


def _applies(editor: GraphEditor, node: onnx.NodeProto) -> bool:
    """Rule 1."""
    if node.op_type != "Conv" or not all(name in editor.constants for name in node.input[1:]):
        return False
    return bool(attributes(node).get("group", 1) == 1 and editor.constants[node.input[1]].dims[0] < BLOCK)


def _pad(editor: GraphEditor, node: onnx.NodeProto) -> None:
    """Rule 2."""
    filters, output, made = editor.constants[node.input[1]].dims[0], node.output[0], editor.builder("")
    for index, name in enumerate(node.input[1:], start=1):
        array = editor.array(name)
        wide = np.concatenate([array, np.zeros((BLOCK - filters, *array.shape[1:]), array.dtype)])
        editor.set_input(node, index, made.constant(name + PADDED, wide))
    bounds = [made.constant(f"{output}.{name}", [value]) for name, value in (("starts", 0), ("ends", filters), ("axes", 1))]
    editor.set_output(node, output + PADDED)
    made.add("Slice", [output + PADDED, *bounds], into=output, name=f"edgeport/{output}.Slice")
    editor.insert_after(node, made.nodes)
    editor.remove_unread()
