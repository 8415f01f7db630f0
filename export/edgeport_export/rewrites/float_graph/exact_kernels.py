"""Elementwise functions of the fp32 variant that are as exact as PyTorch's where their results are small.

onnxruntime computes Sigmoid to 1e-7 of 1, and not of its result: at -12 it errs by 1 %. The depth 1 / (a + b sigmoid(x)), and the probability of
something rare, are wrong in their leading digits then. `docs/kernels.md` has every kernel's error over its whole domain.

1. Sigmoid becomes 1 / (1 + Exp(-x)), which is what PyTorch computes. The Sigmoid of a SiLU, x * Sigmoid(x), stays. It is on the largest maps of
   its networks, where it is faster (0.6 against 5.8 ms for two million values), and its error vanishes in the sums that follow.
2. Log(x + 1) and Exp(x) - 1, which is what the exporter makes of log1p and expm1, lose all digits for x near 0. They are corrected by what
   rounding x + 1 or Exp(x) lost (Kahan, "Interval arithmetic options in the proposed IEEE standard", 1980).

The graph that int8 is made from keeps its operators: int8's own steps are coarser than all of this.
"""

import numpy as np
import onnx
from onnx import TensorProto

from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.nodes import NodeBuilder
from edgeport_runtime import Contract

NEAR = 0.5  # beyond it Exp(x) - 1 loses no more than a digit of base 2


def exact_kernels(editor: GraphEditor, contract: Contract) -> PassResult:
    """Rewrite every such function of float32 values. `changed`: number of them."""
    floats = {each.name for each in (*editor.graph.value_info, *editor.graph.output) if each.type.tensor_type.elem_type == TensorProto.FLOAT}
    forms = {"Sigmoid": _sigmoid, "Log": _log1p, "Sub": _expm1}
    changed = 0
    for node in editor.nodes:
        if node.op_type in forms and node.output[0] in floats:
            made = forms[node.op_type](editor, node)
            if made is not None:
                editor.replace(node, made.nodes)
                changed += 1
    return PassResult(changed=changed)


def _one(made: NodeBuilder) -> str:
    return made.constant("one", np.array(1, np.float32))


def _is_one(editor: GraphEditor, value: str) -> bool:
    return value in editor.constants and editor.constants[value].data_type == TensorProto.FLOAT and bool((editor.array(value) == 1).all())


def _sigmoid(editor: GraphEditor, node: onnx.NodeProto) -> NodeBuilder | None:
    """Rule 1."""
    source, result = node.input[0], node.output[0]
    reader = editor.only_reader(result)
    if reader is not None and reader.op_type == "Mul" and source in reader.input:
        return None
    made = editor.builder(f"{result}.")
    power = made.add("Exp", [made.add("Neg", [source], "negative")], "power")
    made.add("Reciprocal", [made.add("Add", [power, _one(made)], "sum")], into=result)
    return made


def _log1p(editor: GraphEditor, node: onnx.NodeProto) -> NodeBuilder | None:
    """Rule 2: Log(1 + x) * x / ((1 + x) - 1), and x itself where 1 + x is 1."""
    added = editor.producer(node.input[0], "Add")
    source = None if added is None else next((value for value, other in (added.input, added.input[::-1]) if _is_one(editor, other)), None)
    if source is None:
        return None
    made = editor.builder(f"{node.output[0]}.")
    one = _one(made)
    kept = made.add("Sub", [node.input[0], one], "kept")
    plain = made.add("Log", [node.input[0]], "plain")
    is_zero = made.add("Equal", [kept, made.constant("zero", np.array(0, np.float32))], "is_zero")
    is_end = made.add("Or", [is_zero, made.add("IsInf", [kept], "is_infinite")], "is_end")
    share = made.add("Div", [source, made.add("Where", [is_end, one, kept], "divisor")], "share")
    end, corrected = made.add("Where", [is_zero, source, plain], "end"), made.add("Mul", [plain, share], "corrected")
    made.add("Where", [is_end, end, corrected], into=node.output[0])
    return made


def _expm1(editor: GraphEditor, node: onnx.NodeProto) -> NodeBuilder | None:
    """Rule 2: (Exp(x) - 1) * x / Log(Exp(x)) near 0, and x itself where Exp(x) is 1."""
    powered = editor.producer(node.input[0], "Exp")
    if powered is None or not _is_one(editor, node.input[1]):
        return None
    source, power = powered.input[0], powered.output[0]
    made = editor.builder(f"{node.output[0]}.")
    one = _one(made)
    plain = made.add("Sub", [power, one], "plain")
    is_one = made.add("Equal", [power, one], "is_one")
    divisor = made.add("Where", [is_one, one, made.add("Log", [power], "log")], "divisor")
    corrected = made.add("Mul", [plain, made.add("Div", [source, divisor], "share")], "corrected")
    near = made.add("Less", [made.add("Abs", [source], "size"), made.constant("near", np.array(NEAR, np.float32))], "is_near")
    made.add("Where", [near, made.add("Where", [is_one, source, corrected], "small"), plain], into=node.output[0])
    return made
