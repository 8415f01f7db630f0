"""The pixels of an answer looked up: 8-bit integers in, 8-bit levels out.

A network that ends in Tanh or Sigmoid gives pixels by way of seven passes in float: dequantise, Tanh, minus low, times 255 / (high - low), clip,
round, cast. What its last convolution gives are 256 different values, so that all of it is a table, and onnxruntime has one: QLinearSigmoid.
tanh(x) = 2 sigmoid(2x) - 1, so that a Tanh whose -1..1 are the levels 0..255 is the sigmoid of twice the value, in steps of 1/255. The same
numbers, but for levels that lie halfway between two.

1. Applies to an output of pixels where a Tanh and the range -1..1, or a Sigmoid and 0..1, come after U8 integers with one step, at once or
   behind layout.
2. The bytes are laid out instead; behind them stand DequantizeLinear (by twice the step before a Tanh), Sigmoid and QuantizeLinear by 1/255, which
   onnxruntime makes one operator.
3. The levels before rounding, by which variants are compared, are computed as before; `trace.finish` drops them.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeport_runtime import Contract

from .attention_product import LAYOUT
from .constants import drop_unread_values

TABLE = ".table"  # suffix of what the rewrite makes
WAYS = {"Tanh": ((-1.0, 1.0), 2.0), "Sigmoid": ((0.0, 1.0), 1.0)}  # the range it needs, and what its argument is multiplied by as a sigmoid's
# From the output back to the activation, as `wrap.from_network` and `as_pixels` compute; a Sigmoid may have been quantised already.
BEHIND = ("Cast", "Round", "Transpose", "Clip", "Mul", "Sub", "DequantizeLinear", "QuantizeLinear")
MAY_MISS = BEHIND[4:]
MOVES = (*LAYOUT, "Slice", "DepthToSpace")


def pixel_table(model: onnx.ModelProto, contract: Contract) -> int:
    """Rewrite `model`, which has its Q/DQ pairs, in place. Returns the number of outputs that are looked up."""
    return sum(each.kind == "pixels" and _look_up(model.graph, each.name, tuple(each.range)) for each in contract.outputs)


def _look_up(graph: onnx.GraphProto, output: str, limits: tuple[float, ...]) -> bool:
    """Whether rule 1 applied; rule 2."""
    behind = _before(graph, output, BEHIND)
    activation = _source(graph, behind[-1].input[0]) if behind else None
    if activation is None or limits != WAYS.get(activation.op_type, ((), 0.0))[0]:
        return False
    moves = _before(graph, activation.input[0], ())
    given = _source(graph, moves[-1].input[0] if moves else activation.input[0])
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    if given is None or given.op_type != "DequantizeLinear" or not {*given.input[1:]} <= set(constants):
        return False
    step, zero = (constants[name] for name in given.input[1:])
    if step.size != 1 or zero.dtype != np.uint8:
        return False
    values = {
        "step": np.array(WAYS[activation.op_type][1] * float(step), np.float32),
        "zero": zero,
        "level": np.array(1 / 255, np.float32),
        "none": np.array(0, np.uint8),
    }
    graph.initializer.extend(numpy_helper.from_array(each, f"{output}{TABLE}.{name}") for name, each in values.items())
    place = list(graph.node).index(behind[0])
    for node in reversed(_nodes(output, given.input[0], moves[::-1], behind[BEHIND.index("Transpose")])):
        graph.node.insert(place, node)
    graph.node.remove(behind[0])
    drop_unread_values(graph, behind[0].input[0])
    return True


def _nodes(output: str, value: str, moves: list[onnx.NodeProto], last: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Rule 2. `moves`: what moved the float, in the order of the graph. `last`: makes it channels last."""
    prefix, made = output + TABLE, []
    for index, node in enumerate(moves):
        moved = onnx.NodeProto()
        moved.CopyFrom(node)
        moved.name, moved.input[0], moved.output[0] = f"edgeport/{prefix}.bytes{index}", value, f"{prefix}.bytes{index}"
        value = moved.output[0]
        made.append(moved)
    steps = (
        ("DequantizeLinear", [value, f"{prefix}.step", f"{prefix}.zero"], f"{prefix}.argument"),
        ("Sigmoid", [f"{prefix}.argument"], f"{prefix}.share"),
        ("QuantizeLinear", [f"{prefix}.share", f"{prefix}.level", f"{prefix}.none"], f"{prefix}.levels"),
    )
    turned = onnx.NodeProto()
    turned.CopyFrom(last)
    turned.name, turned.input[0], turned.output[0] = f"edgeport/{prefix}", f"{prefix}.levels", output
    return [*made, *(helper.make_node(kind, inputs, [out], name=f"edgeport/{out}") for kind, inputs, out in steps), turned]


def _source(graph: onnx.GraphProto, value: str) -> onnx.NodeProto | None:
    return next((node for node in graph.node if value in node.output), None)


def _before(graph: onnx.GraphProto, value: str, kinds: tuple[str, ...]) -> list[onnx.NodeProto]:
    """The nodes that made the value, last one first: of these kinds in this order, where those of MAY_MISS may be missing; or, without kinds, layout."""
    found: list[onnx.NodeProto] = []
    left = list(kinds)
    while (node := _source(graph, value)) is not None:
        while left and node.op_type != left[0] and left[0] in MAY_MISS:
            left.pop(0)
        if node.op_type != left[0] if left else kinds or node.op_type not in MOVES:
            break
        if kinds and "Linear" not in node.op_type and not node.name.startswith("edgeport/"):  # a Sub of the network's own counts
            break
        left = left[1:]
        found.append(node)
        value = node.input[0]
    return [] if left and left[0] not in MAY_MISS else found
