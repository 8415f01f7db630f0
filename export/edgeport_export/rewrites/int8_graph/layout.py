"""Operators that move values about and change none of them."""

from edgeport_export.rewrites.graph import GraphEditor, PassResult

from .context import Int8Context

LAYOUT = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")


def layout_ranges(editor: GraphEditor, context: Int8Context) -> PassResult:
    """Change nothing; give values that come from a known one through layout that one's range."""
    ranges = dict(context.ranges)
    for node in editor.nodes:
        if node.op_type in LAYOUT and node.input[0] in ranges:
            ranges.setdefault(node.output[0], ranges[node.input[0]])
    return PassResult(ranges=ranges)
