"""The shape of a dequantized value, taken from its integers: otherwise onnxruntime dequantizes the whole tensor only to read its shape.

1. Shape(DequantizeLinear(q)) becomes Shape(q).
"""

from edgeport_export.rewrites.graph import GraphEditor, PassResult

from .context import Int8Context


def integer_shapes(editor: GraphEditor, context: Int8Context) -> PassResult:
    """Rule 1, on a graph with its Q/DQ pairs. `changed`: number of shapes."""
    changed = 0
    for node in [each for each in editor.nodes if each.op_type == "Shape"]:
        dequantized = editor.producer(node.input[0], "DequantizeLinear")
        if dequantized is not None:
            editor.set_input(node, 0, dequantized.input[0])
            changed += 1
    return PassResult(changed=changed)
