"""A channel whose weights are all zero keeps its bias: it gets a step of its own.

Pruning empties whole filters, and training switches channels of a normalization off. A bias has the step of its input times that of its weights, and
weights that are all zero have none. onnxruntime's quantizer takes 1 for it, so that the bias is rounded to whole steps of the input.

1. Its first weight becomes so small that the bias is BIAS_LEVELS of the steps that follow from it. What this weight then adds to the channel
   is less than 1 / 2000 of the bias, whatever the input.
"""

import numpy as np

from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.nodes import attributes

from .context import Int8Context

BIAS_LEVELS = 2**26  # 255 levels of input times 127 of weight are 1 / 2072 of it; the 2^5 up to int32's end are for inputs of unknown range
UNKNOWN_RANGE = (-1.0, 1.0)  # of pixels, about
WITH_BIAS = ("Conv", "Gemm")


def empty_channels(editor: GraphEditor, context: Int8Context) -> PassResult:
    """Give every such channel of the integer products a weight. `changed`: number of products."""
    changed = 0
    for node in [each for each in editor.nodes if each.op_type in WITH_BIAS and each.name in context.products | context.followers]:
        if len(node.input) < 3 or not editor.are_constants(node.input[1:3]):
            continue
        weights, bias = editor.array(node.input[1]).copy(), editor.array(node.input[2])
        channels = weights.T if node.op_type == "Gemm" and not attributes(node).get("transB", 0) else weights  # a view: (channels, …)
        if bias.shape != (len(channels),):
            continue
        empty = [index for index in np.flatnonzero(bias) if not channels[index].any()]
        if not empty:
            continue
        low, high = context.ranges.get(node.input[0], UNKNOWN_RANGE)
        step = (max(high, 0.0) - min(low, 0.0)) / 255 or 1.0
        for index in empty:
            channels[index].flat[0] = 127 * abs(bias[index]) / (BIAS_LEVELS * step)
        editor.set_input(node, 1, editor.builder(node.output[0]).constant(".filled", weights))
        editor.remove_unread()
        changed += 1
    return PassResult(changed=changed)
