"""Widths of both kinds behind one input: multiples of 4 as they come, the others filled up and cut off.

To cut off what is too much behind a filled picture (`column_quads`, rule 4) all the rest is copied, and where the width is a multiple of 4 there
is nothing too much. So that such pictures do not pay for it, the first convolution stands in both branches of an If.

1. Applies to a graph with its Q/DQ pairs, where `column_quads` has left the widths to this: the contract has both kinds.
2. A branch gives what the convolution gave, channels last. The view that takes positions apart comes behind both, where it costs nothing, and
   changes nothing of what was taken apart already.
3. Each branch has constants of its own: where a CPU's products saturate, onnxruntime makes other weights of those that it finds in the graph of
   the convolution (`session.x64quantprecision`), and does not look for them outside. Found under qemu: ResNet18 was wrong on a Haswell.
"""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgeport_runtime import Contract
from edgeport_runtime.contract import Input

from .column_quads import APART, BEHIND, PREFIX, WIDE, Geometry, cut_off, fill_up, levels, remainders
from .constants import drop_unread_values
from .nodes import Chain, ancestors

WHOLE, RAGGED = PREFIX + "whole.", PREFIX + "ragged."  # what the values of a branch begin with


def width_branches(model: onnx.ModelProto, contract: Contract, shape: Geometry) -> None:
    """Rewrite `model` in place where rule 1 applies. `shape`: of its first convolution."""
    graph, first = model.graph, contract.inputs[0]
    if 0 not in remainders(contract) or len(remainders(contract)) == 1:
        return
    turn = next(node for node in graph.node if BEHIND in node.output)
    view = next(node for node in graph.node if BEHIND in node.input)
    last = next(node for node in graph.node if turn.input[0] in node.output)
    integers = last.op_type == "DequantizeLinear"
    value = last.input[0] if integers else turn.input[0]
    body = ancestors(graph, value)
    kind = TensorProto.UINT8 if integers else TensorProto.FLOAT

    whole, ragged = Chain(onnx.GraphProto(), WHOLE), Chain(onnx.GraphProto(), RAGGED)
    whole.add("Transpose", [whole.copy(graph, body, {})[value]], BEHIND, perm=[0, 2, 3, 1])
    add_ragged(ragged, graph, value, first, shape)
    made = Chain(graph, PREFIX)
    positions = made.add("Reshape", [by_width(made, first.name, whole, ragged, kind, 4), APART], "positions")
    turned = next(node for node in graph.node if view.output[0] in node.input)
    gone = {name for node in (*body, turn, view, turned, *([last] if integers else [])) for name in node.output}
    if integers:
        moved = made.add("Transpose", [positions], "integers", perm=[0, 3, 1, 2])
        gone |= _read_integers(graph, turned.output[0], last, moved)
        made.add("DequantizeLinear", [moved, *last.input[1:]], to=turned.output[0])
    else:
        made.add("Transpose", [positions], to=turned.output[0], perm=[0, 3, 1, 2])
    left = [node for node in graph.node if not gone & set(node.output)]
    del graph.node[:]
    graph.node.extend([*made.nodes, *left])
    drop_unread_values(graph, turned.output[0])  # and the constants that are the branches' now


def _read_integers(graph: onnx.GraphProto, value: str, last: onnx.NodeProto, integers: str) -> set[str]:
    """Who rounds `value` just as it was rounded in the branches reads the `integers` themselves: onnxruntime sees no pair there to leave out.
    Returns the outputs of the nodes that are not needed any more. `last`: what dequantised them."""
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    gone = set()
    for node in [each for each in graph.node if each.op_type == "QuantizeLinear" and each.input[0] == value]:
        if all(np.array_equal(constants[one], constants[other]) for one, other in zip(node.input[1:], last.input[1:], strict=True)):
            for reader in graph.node:
                reader.input[:] = [integers if name == node.output[0] else name for name in reader.input]
            gone.add(node.output[0])
    return gone


def add_ragged(made: Chain, graph: onnx.GraphProto, value: str, first: Input, shape: Geometry) -> str:
    """What makes `value`, the first convolution's, for pictures of any width: (N, H, W, C), its columns in their place."""
    level = None if first.pixels is None else levels(first.pixels)
    assert level is not None  # or `column_quads` had left the convolution
    copied = made.copy(graph, ancestors(graph, value), {first.name: fill_up(made, first.name, level)})
    behind = made.add("Transpose", [copied[value]], BEHIND, perm=[0, 2, 3, 1])
    apart = next(numpy_helper.to_array(each) for each in graph.initializer if each.name == APART)
    return cut_off(made, first.name, made.add("Reshape", [behind, made.constant("apart", apart)], "map"), shape)


def by_width(made: Chain, pixels: str, whole: Chain, ragged: Chain, kind: int, rank: int) -> str:
    """What `whole` makes last where the pictures `pixels` (N, H, W, C) are a multiple of 4 wide, and elsewhere what `ragged` does."""
    remainder = made.add("Mod", [made.add("Shape", [pixels], "across", start=2, end=3), made.constant("by", [WIDE])], "remainder")
    condition = made.add("Equal", [remainder, made.constant("nothing", [0])], "is_whole")
    branches = {"then_branch": whole.as_branch("whole", kind, rank), "else_branch": ragged.as_branch("ragged", kind, rank)}
    return made.add("If", [condition], "either", **branches)
