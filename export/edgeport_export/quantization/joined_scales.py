"""An output that joins values of different scale is joined in float, so that its parts are not rounded with one step.

Detectors give boxes in pixels and scores in 0..1 in one tensor. Rounded together to 256 levels of the boxes' range, all scores become one number.

1. A Concat stays float if it gives an output of the graph, through layout and other Concats alone, and the range of one part is more than APART
   times that of another.
2. So do the Concats after it.
"""

from edgeport_export.rewrites.graph import GraphEditor
from edgeport_export.rewrites.int8_graph.context import Int8Context
from edgeport_export.rewrites.int8_graph.layout import LAYOUT

APART = 16.0  # a part that is so much smaller keeps 4 of 8 bits
PASSING = (*LAYOUT, "Concat", "Slice")


def joining_followers(editor: GraphEditor, context: Int8Context) -> set[str]:
    """Names of the followers that stay float."""
    mixed: set[str] = set()  # values
    found = set()
    for node in editor.nodes:
        if node.op_type in PASSING and mixed & set(node.input):
            mixed |= set(node.output)
        if node.op_type != "Concat" or not _gives_output(editor, node.output[0]):
            continue
        if mixed & set(node.input) or _is_mixed([context.ranges.get(each) for each in node.input]):
            mixed |= set(node.output)
            found |= {node.name} & context.followers
    return found


def _is_mixed(ranges: list[tuple[float, float] | None]) -> bool:
    sizes = [max(-each[0], each[1]) for each in ranges if each is not None]
    return len(sizes) > 1 and 0 < APART * min(sizes) < max(sizes)


def _gives_output(editor: GraphEditor, value: str) -> bool:
    """Rule 1: whether nothing but layout and joining comes after the value."""
    readers = editor.readers.get(value, [])
    if value in editor.outputs:
        return True
    return bool(readers) and all(node.op_type in PASSING and _gives_output(editor, node.output[0]) for node in readers)
