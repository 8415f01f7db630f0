"""What follows from constants alone is stored instead of computed: the runtime refuses files that compute it while they are loaded (`outline`, rule 3).

1. Applies to nodes of the graph itself whose inputs are all constants, or made of such. Those that only convert or shape stay: they cost nothing, and
   DequantizeLinear of stored integers is how int8 weights are kept.
2. Their values are computed by ONNX's own reference evaluator, in the graph's order.
3. What would become larger than LARGEST_BYTES stays: a file that is made of one number many times is not worth it, and is refused with that reason.
"""

from typing import Any

import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_runtime.outline import SHAPING

LARGEST_BYTES = 2**26


def stored_constants(editor: GraphEditor) -> PassResult:
    """`changed`: number of nodes."""
    known, changed = set(editor.constants), 0
    for node in editor.nodes:
        inputs = [name for name in node.input if name]
        if node.op_type == "Constant":
            known |= set(node.output)
        if not inputs or not known.issuperset(inputs) or _has_graphs(node):
            continue
        if node.op_type in SHAPING or _store(editor, node):
            known |= set(node.output)
            changed += node.op_type not in SHAPING
    return PassResult(changed=changed)


def _has_graphs(node: onnx.NodeProto) -> bool:
    return any(each.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for each in node.attribute)


def _store(editor: GraphEditor, node: onnx.NodeProto) -> bool:
    """Rules 2 and 3."""
    outputs = [name for name in node.output if name]
    nodes = editor.ancestors(*outputs)
    names = {name for each in nodes for name in each.input}
    graph = onnx.GraphProto(name="constants", node=nodes, initializer=[each for each in editor.graph.initializer if each.name in names])
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    made: Any = ReferenceEvaluator(onnx.ModelProto(ir_version=editor.model.ir_version, opset_import=editor.model.opset_import, graph=graph)).run(None, {})
    if sum(array.nbytes for array in made) > LARGEST_BYTES:
        return False
    editor.remove([node])
    editor.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in zip(outputs, made, strict=True))
    return True
