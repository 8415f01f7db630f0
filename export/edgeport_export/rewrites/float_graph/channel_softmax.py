"""Softmax over the channels of a map, in operators that go along it; onnxruntime's turns the map round and takes the positions one by one.

Segmentation networks end in it, and detectors that look at every position. 21 classes of 512 x 512 positions took 176 ms, which was more than many a
network before it; by rule 1 they take 11. 4 x 19 x 128 x 128: 24 and 2.4; 10 x 2 x 43 x 43: 0.64 and 0.06 (onnxruntime 1.32.0, two threads).

1. Softmax(x) is Exp(x - m) / ReduceSum(Exp(x - m)) with the maximum m, for float32 and every axis but the last one, which is fast. LogSoftmax(x) is
   x - m - Log(ReduceSum(Exp(x - m))).
"""

import numpy as np
import onnx
from onnx import TensorProto

from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.nodes import attributes
from edgeport_runtime import Contract


def channel_softmax(editor: GraphEditor, contract: Contract) -> PassResult:
    """Rewrite every such Softmax and LogSoftmax (opset 18 or later). `changed`: number of them."""
    found = [node for node in editor.nodes if node.op_type in ("Softmax", "LogSoftmax") and _is_before_the_last(editor, node)]
    for node in found:
        made = editor.builder(f"{node.output[0]}.")
        axes = made.constant("axes", np.array([attributes(node)["axis"]], np.int64))
        shifted = made.add("Sub", [node.input[0], made.add("ReduceMax", [node.input[0], axes], "most")], "shifted")
        shares = made.add("Exp", [shifted], "shares")
        total = made.add("ReduceSum", [shares, axes], "total")
        if node.op_type == "Softmax":
            made.add("Div", [shares, total], into=node.output[0], name=node.name)
        else:
            made.add("Sub", [shifted, made.add("Log", [total], "log")], into=node.output[0], name=node.name)
        editor.replace(node, made.nodes)
    return PassResult(changed=len(found))


def _is_before_the_last(editor: GraphEditor, node: onnx.NodeProto) -> bool:
    value = next((each for each in (node.input[0], node.output[0]) if each in editor.dims), "")
    axis, axes = attributes(node).get("axis", -1), len(editor.dims.get(value, ()))
    return axes > 0 and axis % axes != axes - 1 and editor.types.get(value, TensorProto.FLOAT) == TensorProto.FLOAT
