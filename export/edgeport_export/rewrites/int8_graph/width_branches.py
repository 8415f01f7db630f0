"""Widths of both kinds for one first convolution: multiples of 4 as they come, the others filled up and cut off.

To cut off the excess after a filled-up image (`column_quads`, rule 4) all the rest is copied, and at a multiple of 4 there is no excess. So that
such images do not pay for it, the first convolution stands in both branches of an If.

1. Applies to a graph with its Q/DQ pairs, after `column_quads`, if the contract has widths of both kinds.
2. A branch gives the convolution's result, channels last. The view that splits positions comes after both, because it costs nothing there and changes
   nothing that was split already.
3. Each branch has constants of its own: on CPUs whose products saturate, onnxruntime makes other weights of those that it finds in the graph of
   the convolution (`session.x64quantprecision`), and does not look for them outside. Found under qemu: ResNet18 was wrong on a Haswell.
"""

import numpy as np
import onnx
from onnx import TensorProto

from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.nodes import NodeBuilder

from .column_quads import CHANNELS_LAST, FOUR, PREFIX, SPLIT, QuadStem, cut_off, fill_up, mean_levels, remainders
from .context import Int8Context

WHOLE, RAGGED = PREFIX + "whole.", PREFIX + "ragged."  # prefixes of the values of a branch


def width_branches(editor: GraphEditor, context: Int8Context) -> PassResult:
    """Rewrite the first convolution if rule 1 applies."""
    stem = next(iter(context.known(QuadStem)), None)
    if stem is None or not {0} < remainders(context.contract):
        return PassResult()
    turn, view = editor.producers[CHANNELS_LAST], editor.readers[CHANNELS_LAST][0]
    turned, last = editor.readers[view.output[0]][0], editor.producers[turn.input[0]]
    integers = last.op_type == "DequantizeLinear"
    value, dtype = (last.input[0], TensorProto.UINT8) if integers else (turn.input[0], TensorProto.FLOAT)
    body, made = editor.ancestors(value), editor.builder(PREFIX)
    positions = made.add("Reshape", [_either(made, editor, context, stem, value, dtype), SPLIT], "positions")
    if integers:
        moved = made.add("Transpose", [positions], "integers", perm=[0, 3, 1, 2])
        _read_integers(editor, turned.output[0], last, moved)
        made.add("DequantizeLinear", [moved, *last.input[1:]], into=turned.output[0])
    else:
        made.add("Transpose", [positions], into=turned.output[0], perm=[0, 3, 1, 2])
    editor.insert_before(editor.nodes[0], made.nodes)
    editor.remove([*body, turn, view, turned, *([last] if integers else [])])
    editor.remove_unread([turned.output[0]])  # and the constants that are the branches' now
    return PassResult(changed=1)


def _either(made: NodeBuilder, editor: GraphEditor, context: Int8Context, stem: QuadStem, value: str, dtype: int) -> str:
    """An If that gives `value`, channels last, for a whole width or for any other."""
    pixels, body = context.contract.inputs[0].name, editor.ancestors(value)
    whole, ragged = NodeBuilder(onnx.GraphProto(), WHOLE), NodeBuilder(onnx.GraphProto(), RAGGED)
    whole.add("Transpose", [whole.copy(editor.graph, body, {})[value]], CHANNELS_LAST, perm=[0, 2, 3, 1])
    level = mean_levels(context.contract.pixels)
    assert level is not None  # or `column_quads` had left the convolution
    copied = ragged.copy(editor.graph, body, {pixels: fill_up(ragged, pixels, level)})
    turned = ragged.add("Transpose", [copied[value]], CHANNELS_LAST, perm=[0, 2, 3, 1])
    split = ragged.constant("apart", editor.array(SPLIT))
    cut_off(ragged, pixels, ragged.add("Reshape", [turned, split], "map"), stem)
    remainder = made.add("Mod", [made.add("Shape", [pixels], "across", start=2, end=3), made.constant("by", [FOUR])], "remainder")
    condition = made.add("Equal", [remainder, made.constant("nothing", [0])], "is_whole")
    return made.add("If", [condition], "either", then_branch=whole.as_branch("whole", dtype, 4), else_branch=ragged.as_branch("ragged", dtype, 4))


def _read_integers(editor: GraphEditor, value: str, last: onnx.NodeProto, integers: str) -> None:
    """Let whoever rounds `value` as the branches did read their `integers`: onnxruntime sees no pair there to leave out.

    `last`: the node that dequantized them.
    """
    for node in [each for each in editor.readers.get(value, []) if each.op_type == "QuantizeLinear"]:
        if all(np.array_equal(editor.array(one), editor.array(other)) for one, other in zip(node.input[1:], last.input[1:], strict=True)):
            editor.read_instead(node.output[0], integers)
            editor.remove([node])
