"""The last Q/DQ pair before an output, removed: it would round the answer and save nothing.

1. DequantizeLinear(QuantizeLinear(x)) directly before an output becomes x, under the output's name, unless x is an output itself.
"""

from edgeport_export.rewrites.graph import GraphEditor, PassResult

from .context import Int8Context


def last_pairs(editor: GraphEditor, context: Int8Context) -> PassResult:
    """Rule 1, on a graph with its Q/DQ pairs. `changed`: number of pairs."""
    changed = 0
    for output in [each.name for each in editor.graph.output]:
        last = editor.producer(output, "DequantizeLinear")
        first = editor.producer(last.input[0], "QuantizeLinear") if last is not None else None
        if last is None or first is None or editor.readers.get(output) or first.input[0] in editor.outputs:
            continue
        value, rounded = first.input[0], first.output[0]
        editor.remove([last])
        editor.rename(value, output)
        editor.remove_unread([rounded])
        changed += 1
    editor.remove_unread()
    return PassResult(changed=changed)
