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
from onnx import TensorProto, helper, numpy_helper

from edgeport_runtime import Contract

from .column_quads import APART, BEHIND, PREFIX, WIDE, Geometry, cut_off, fill_up, levels, remainders
from .constants import drop_unread_values
from .nodes import Chain

WHOLE, RAGGED = PREFIX + "whole.", PREFIX + "ragged."  # what the values of a branch begin with


def width_branches(model: onnx.ModelProto, contract: Contract, shape: Geometry) -> None:
    """Rewrite `model` in place where rule 1 applies. `shape`: of its first convolution."""
    graph, first = model.graph, contract.inputs[0]
    level = None if first.pixels is None else levels(first.pixels)
    if level is None or 0 not in remainders(contract) or len(remainders(contract)) == 1:
        return
    turn = next(node for node in graph.node if BEHIND in node.output)
    view = next(node for node in graph.node if BEHIND in node.input)
    last = next(node for node in graph.node if turn.input[0] in node.output)
    integers = last.op_type == "DequantizeLinear"
    value = last.input[0] if integers else turn.input[0]
    body = _ancestors(graph, value)
    kind = TensorProto.UINT8 if integers else TensorProto.FLOAT

    whole, ragged = Chain(onnx.GraphProto(), WHOLE), Chain(onnx.GraphProto(), RAGGED)
    _copy(whole, graph, body, {}, value)
    _copy(ragged, graph, body, {first.name: fill_up(ragged, first.name, level)}, value)
    apart = next(numpy_helper.to_array(each) for each in graph.initializer if each.name == APART)
    cut_off(ragged, first.name, ragged.add("Reshape", [RAGGED + BEHIND, ragged.constant("apart", apart)], "map"), shape)
    made = Chain(graph, PREFIX)
    positions = made.add("Reshape", [by_width(made, first.name, whole, ragged, helper.make_tensor_type_proto(kind, [None] * 4)), APART], "positions")
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


def _ancestors(graph: onnx.GraphProto, value: str) -> list[onnx.NodeProto]:
    """The nodes that `value` is made by, in the graph's order."""
    wanted, found = {value}, []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            found.append(node)
            wanted |= set(node.input)
    return found[::-1]


def _copy(branch: Chain, graph: onnx.GraphProto, body: list[onnx.NodeProto], renamed: dict[str, str], value: str) -> None:
    """The body with its constants under names of the branch's own, and `value` channels last. The nodes keep theirs: plans and messages go by them."""
    names = {**renamed, **{name: branch.prefix + name for node in body for name in node.output}}
    read = {name for node in body for name in node.input}
    names |= {each.name: branch.constant(each.name, numpy_helper.to_array(each)) for each in graph.initializer if each.name in read}
    for node in body:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [names.get(each, each) for each in node.input]
        copy.output[:] = [names[each] for each in node.output]
        branch.nodes.append(copy)
    branch.add("Transpose", [names[value]], BEHIND, perm=[0, 2, 3, 1])


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


def by_width(made: Chain, pixels: str, whole: Chain, ragged: Chain, kind: onnx.TypeProto) -> str:
    """What `whole` makes last where the pictures `pixels` (N, H, W, C) are a multiple of 4 wide, and elsewhere what `ragged` does, both of that kind."""
    remainder = made.add("Mod", [made.add("Shape", [pixels], "across", start=2, end=3), made.constant("by", [WIDE])], "remainder")
    condition = made.add("Equal", [remainder, made.constant("nothing", [0])], "is_whole")
    return made.add("If", [condition], "either", then_branch=_branch(whole, "whole", kind), else_branch=_branch(ragged, "ragged", kind))


def _branch(chain: Chain, name: str, kind: onnx.TypeProto) -> onnx.GraphProto:
    outputs = [helper.make_value_info(chain.nodes[-1].output[0], kind)]
    return helper.make_graph(chain.nodes, name, [], outputs, initializer=chain.graph.initializer)
