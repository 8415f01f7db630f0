"""A depthwise convolution on the image and the 1x1 convolution directly after it, as one dense convolution.

On three channels a depthwise convolution has no integer kernel worth the name, and it keeps the pixels from going directly into one
(`pixel_convolution`). AttentionNet's stem, 16 images of 64x64, two threads: normalization, 5x5 depthwise and 1x1 together 2.6 of 9.7 ms.

1. Applies if the first convolution of the graph has one filter for each channel, at most MOST_CHANNELS of them. Its output goes only into a
   1x1 convolution with stride 1 and no padding. Both have constant weights and run as integers. No activation lies between, so both are one
   linear map.
2. Filter o of the one: the sum over channels c of P[o, c] · D[c]; its bias P · bias of D + bias of P. The padding is D's, zeros before both.
"""

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.nodes import attributes

from .context import Int8Context

MOST_CHANNELS = 4  # of an image; with more channels the dense convolution multiplies too much


def separable_fusion(editor: GraphEditor, context: Int8Context) -> PassResult:
    """Rewrite the first convolution and its reader, which keeps its name. Nothing is changed if rule 1 does not hold."""
    depthwise = editor.first("Conv")
    pointwise = editor.only_reader(depthwise.output[0]) if depthwise is not None else None
    if depthwise is None or pointwise is None or pointwise.op_type != "Conv" or not {depthwise.name, pointwise.name} <= context.products:
        return PassResult()
    if not all(name in editor.constants for node in (depthwise, pointwise) for name in node.input[1:]):
        return PassResult()
    spatial, mixing = (editor.array(node.input[1]).astype(np.float64) for node in (depthwise, pointwise))
    channels = spatial.shape[0]
    one_each = attributes(depthwise).get("group", 1) == channels and spatial.shape[1] == 1 and channels <= MOST_CHANNELS
    if not one_each or mixing.shape[1:] != (channels, 1, 1) or not _is_plain(pointwise):
        return PassResult()
    dense = np.einsum("oc,chw->ochw", mixing[:, :, 0, 0], spatial[:, 0])
    bias = mixing[:, :, 0, 0] @ _bias(editor, depthwise, channels) + _bias(editor, pointwise, len(mixing))
    made = editor.builder(pointwise.input[1])
    inputs = [depthwise.input[0], made.constant(".dense", dense.astype(np.float32)), made.constant(".dense_bias", bias.astype(np.float32))]
    made.add("Conv", inputs, into=pointwise.output[0], name=pointwise.name)
    made.nodes[0].attribute.extend(each for each in depthwise.attribute if each.name != "group")
    editor.replace(pointwise, made.nodes)
    editor.remove_unread(depthwise.output)
    return PassResult(changed=1)


def _is_plain(node: onnx.NodeProto) -> bool:
    """One group, stride 1, no padding."""
    found = attributes(node)
    return found.get("group", 1) == 1 and set(found.get("strides", [1])) == {1} and set(found.get("pads", [0])) == {0}


def _bias(editor: GraphEditor, node: onnx.NodeProto, count: int) -> NDArray[np.float64]:
    return editor.array(node.input[2]).astype(np.float64) if len(node.input) > 2 else np.zeros(count)
