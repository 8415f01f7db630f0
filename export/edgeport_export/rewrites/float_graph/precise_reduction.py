"""Norms and log-sum-exps of many values, as precise as PyTorch's.

onnxruntime adds squares and exponentials one after another; its ReduceSum adds them in a tree, as PyTorch does. Largest relative distance
from float64 over 64 norms of 8,192 normal values (onnxruntime 1.31.1, torch 2.15): ReduceL2 2.1e-6, the square root of a ReduceSum of
squares 1.8e-7, PyTorch 2.5e-7. Every value of a normalized embedding has this error. ReduceLogSumExp: 3.3e-6, written out 9.4e-7, PyTorch 7e-7.

1. ReduceSumSquare(x) is ReduceSum(x * x), and ReduceL2(x) its square root.
2. ReduceLogSumExp(x) is m + Log(ReduceSum(Exp(x - m))) with the maximum m, or 0 if that is infinite, as in PyTorch.
"""

from typing import Any

import numpy as np
import onnx

from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.nodes import NodeBuilder, attributes
from edgeport_runtime import Contract


def precise_reduction(editor: GraphEditor, contract: Contract) -> PassResult:
    """Rewrite every such reduction (opset 18 or later). `changed`: number of reductions."""
    found = [node for node in editor.nodes if node.op_type in WRITTEN_OUT]
    for node in found:
        made = editor.builder(f"{node.output[0]}.")
        WRITTEN_OUT[node.op_type](made, node)
        editor.replace(node, made.nodes)
    return PassResult(changed=len(found))


def _add(made: NodeBuilder, node: onnx.NodeProto, op_type: str, inputs: list[str], part: str, **attributes: Any) -> str:
    """A node named after `node`; without a `part` it takes the place of `node` itself."""
    if not part:
        return made.add(op_type, inputs, into=node.output[0], name=node.name, **attributes)
    return made.add(op_type, inputs, part, name=f"{node.name}.{part}", **attributes)


def _reduce(made: NodeBuilder, node: onnx.NodeProto, op_type: str, value: str, part: str, **changes: int) -> str:
    """Over the axes of `node`."""
    return _add(made, node, op_type, [value, *node.input[1:]], part, **{**attributes(node), **changes})


def _squares(made: NodeBuilder, node: onnx.NodeProto) -> None:
    """Rule 1."""
    x, is_norm = node.input[0], node.op_type == "ReduceL2"
    total = _reduce(made, node, "ReduceSum", _add(made, node, "Mul", [x, x], "squares"), "total" if is_norm else "")
    if is_norm:
        _add(made, node, "Sqrt", [total], "")


def _log_sum_exp(made: NodeBuilder, node: onnx.NodeProto) -> None:
    """Rule 2."""
    x, none = node.input[0], made.constant("none", np.array(0, np.float32))
    most = _reduce(made, node, "ReduceMax", x, "most", keepdims=1)
    infinite = _add(made, node, "IsInf", [most], "endless")
    zero = _add(made, node, "CastLike", [none, most], "zero")
    shift = _add(made, node, "Where", [infinite, zero, most], "shift")
    shares = _add(made, node, "Exp", [_add(made, node, "Sub", [x, shift], "shifted")], "shares")
    log = _add(made, node, "Log", [_reduce(made, node, "ReduceSum", shares, "total")], "log")
    back = _reduce(made, node, "ReduceSum", shift, "back")  # over axes of one: drops them if the node does
    _add(made, node, "Add", [log, back], "")


WRITTEN_OUT = {"ReduceSumSquare": _squares, "ReduceL2": _squares, "ReduceLogSumExp": _log_sum_exp}
