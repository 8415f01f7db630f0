"""BatchNormalization that no convolution before it has taken in, as a convolution of one weight for each channel: an integer kernel.

Networks that normalize before they convolve have it behind an Add or a Concat (pre-activation residual blocks, arXiv:1603.05027; DenseNet,
arXiv:1608.06993; ArcFace, arXiv:1801.07698). In float, every such map is dequantized, turned from channels last to channels first and back, and rounded
again. DenseNet-121, wholly integer at 96 px, takes 32 instead of 67 ms for 16 images and 3.2 instead of 5.1 for one. Eight pre-activation blocks of
32 to 256 channels take 10.6 instead of 17.4, and 0.88 instead of 1.24. Both keep their distance from fp32 (onnxruntime 1.32.0, two threads).

1. BatchNormalization(x) = x * w + (bias - mean * w) with w = scale / sqrt(variance + epsilon). One weight for each channel, with a step of its own, is
   its own integer, so that nothing is rounded that was not rounded before.
"""

import numpy as np
import onnx

from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.nodes import attributes

from .context import Int8Context


def has_integer_norm(editor: GraphEditor, node: onnx.NodeProto) -> bool:
    """Whether rule 1 applies: a map (N, C, H, W), and statistics that are known and finite."""
    if node.op_type != "BatchNormalization" or not editor.are_constants(node.input[1:]) or len(node.output) != 1:
        return False
    if len(editor.dims.get(node.output[0], ())) != 4:
        return False
    factors, added = _affine(editor, node)
    return bool(np.isfinite(factors).all() and np.isfinite(added).all())


def batch_norm(editor: GraphEditor, context: Int8Context) -> PassResult:
    """Rewrite the BatchNormalizations among the followers. `changed`: number of them."""
    changed = 0
    for node in [each for each in editor.nodes if each.name in context.followers and has_integer_norm(editor, each)]:
        factors, added = _affine(editor, node)
        made = editor.builder(f"{node.output[0]}.")
        weights, bias = made.constant("factors", factors.reshape(-1, 1, 1, 1)), made.constant("added", added)
        made.add("Conv", [node.input[0], weights, bias], into=node.output[0], name=node.name, group=len(factors), kernel_shape=[1, 1])
        editor.replace(node, made.nodes)
        editor.remove_unread()
        changed += 1
    return PassResult(changed=changed)


def _affine(editor: GraphEditor, node: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray]:
    """The factor and the addend of each channel, computed in float64."""
    scale, bias, mean, variance = (editor.array(name).astype(np.float64) for name in node.input[1:5])
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        factors = scale / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
        return factors.astype(np.float32), (bias - mean * factors).astype(np.float32)
