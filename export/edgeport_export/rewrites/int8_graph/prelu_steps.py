"""PReLU with a slope for each channel, in steps for which onnxruntime has integer kernels; for PRelu itself it has none.

Face recognition has it after most of its convolutions (ArcFace, arXiv:1801.07698). In float, every such map is dequantized, goes through four
operators and is rounded again. A network of that kind, 8 residual blocks at 112 px, is integer for the rest. It takes 135 instead of 230 ms for 16
images, 9.5 instead of 12.7 for one, at 23.9 instead of 24.0 dB from fp32 (onnxruntime 1.32.0, two threads).

1. PRelu(x) = Max(x, 0) + slope * Min(x, 0). The factor is a convolution of one weight for each channel, which has a scale of its own; the factors of
   a Mul would share one. x + (slope - 1) * Min(x, 0) is one operator less, but large numbers that are rounded cancel there. Wholly integer, MTCNN's
   P-, R- and O-Net stand at 15.4, 16.6 and 17.7 dB by this rule, at 14.4, 15.5 and 16.5 by that one, and at 16.9, 15.1 and 16.6 with PRelu in float.
2. Both parts have the steps of x, so that they are the Max and the Min of its integers and their zero point: `integer_halves`.
"""

import numpy as np
import onnx

from edgeport_export.rewrites.graph import GraphEditor, PassResult

from .context import Int8Context

HALVES = {"positive": "Max", "negative": "Min"}  # part of a map x -> the operator that takes it from x and 0


def has_integer_slopes(editor: GraphEditor, node: onnx.NodeProto) -> bool:
    """Whether rule 1 applies: a map (N, C, H, W), and C slopes that are known and finite."""
    if node.op_type != "PRelu" or node.input[1] not in editor.constants or len(editor.dims.get(node.output[0], ())) != 4:
        return False
    slopes, channels = editor.array(node.input[1]), editor.dims[node.output[0]][1]
    fits = slopes.shape in ((channels, 1, 1), (1, channels, 1, 1))
    return fits and slopes.dtype == np.float32 and bool(np.isfinite(slopes).all())


def prelu_steps(editor: GraphEditor, context: Int8Context) -> PassResult:
    """Rewrite the PRelus among the followers. `changed`: number of them."""
    ranges: dict[str, tuple[float, float]] = {}
    followers, changed = set[str](), 0
    for node in [each for each in editor.nodes if each.name in context.followers and has_integer_slopes(editor, each)]:
        source, output, made = node.input[0], node.output[0], editor.builder(f"{node.output[0]}.")
        slopes = editor.array(node.input[1]).reshape(-1, 1, 1, 1)
        zero = made.constant("zero", np.array(0, np.float32))
        positive = made.add("Clip", [source, zero], "positive", name=f"{node.name}.positive")
        negative = made.add("Clip", [source, "", zero], "negative", name=f"{node.name}.negative")
        sloped = made.add("Conv", [negative, made.constant("slopes", slopes)], "sloped", name=f"{node.name}.sloped", group=len(slopes), kernel_shape=[1, 1])
        made.add("Add", [positive, sloped], into=output, name=node.name)
        editor.replace(node, made.nodes)
        followers |= {each.name for each in made.nodes}
        lowest = context.ranges[source][0]
        ends = (float(lowest * slopes.max(initial=0)), float(lowest * slopes.min(initial=0)))
        ranges |= {positive: context.ranges[source], negative: context.ranges[source], sloped: ends}
        changed += 1
    return PassResult(changed=changed, ranges=ranges, followers=frozenset(followers))


def integer_halves(editor: GraphEditor, context: Int8Context) -> PassResult:
    """Rule 2: QuantizeLinear(Clip(DequantizeLinear(q))) with one scale is the Max or Min of q and its zero point. `changed`: number of them."""
    changed = 0
    for node in [each for each in editor.nodes if each.op_type == "Clip" and each.output[0].rpartition(".")[2] in HALVES]:
        before, after = editor.producer(node.input[0], "DequantizeLinear"), editor.only_reader(node.output[0])
        if before is None or after is None or after.op_type != "QuantizeLinear" or not _same_steps(editor, before, after):
            continue
        made = editor.builder("")
        made.add(HALVES[node.output[0].rpartition(".")[2]], [before.input[0], before.input[2]], into=after.output[0], name=node.name)
        editor.replace(after, made.nodes)
        editor.remove_unread([node.output[0]])
        changed += 1
    return PassResult(changed=changed)


def _same_steps(editor: GraphEditor, before: onnx.NodeProto, after: onnx.NodeProto) -> bool:
    return all(np.array_equal(editor.array(before.input[index]), editor.array(after.input[index])) for index in (1, 2))
