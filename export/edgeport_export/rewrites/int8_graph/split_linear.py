"""A linear layer whose result is only taken apart, as one layer for each part.

Transformers compute queries, keys and values together and slice the result. In float that is a copy of all of it: of ViT-tiny's time, 4 %.
Each output of a linear layer has weights and a bias of its own, so the parts can be computed apart, with the same numbers.

1. Applies to a MatMul and the Add of its bias, as `biased_linear` has them, if the result reaches Slices through Reshapes alone. Every Slice takes a
   range of one axis, and the sizes from that axis on are those of the layer's outputs.
2. The first part keeps the layer's name, because plans go by names.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from edgeport_export.rewrites.graph import GraphEditor, PassResult

from .biased_linear import Layer, biased_layer
from .context import Int8Context


@dataclass(frozen=True, kw_only=True)
class Range:
    """Of an axis: `first` is in it, `end` is not."""

    axis: int
    first: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Parts:
    """`slices`: what takes the parts, with their `ranges` of one axis. `shape`: of what they read."""

    slices: Sequence[onnx.NodeProto]
    ranges: Sequence[Range]
    shape: tuple[int, ...]


def split_linear(editor: GraphEditor, context: Int8Context) -> PassResult:
    """Rules 1 and 2, on a graph with its Q/DQ pairs. `changed`: number of layers."""
    changed, names = 0, set[str]()
    for product in [node for node in editor.nodes if node.op_type == "MatMul" and node.name in context.products]:
        layer = biased_layer(editor, product)
        parts = _parts(editor, layer) if layer is not None else None
        if layer is not None and parts is not None:
            names |= _apart(editor, product, layer, parts)
            changed += 1
    return PassResult(changed=changed, followers=frozenset(names))


def _parts(editor: GraphEditor, layer: Layer) -> Parts | None:
    """Rule 1; None if it does not apply."""
    value: str = layer.adding.output[0]
    shape: tuple[int, ...] = ()
    while (reader := editor.only_reader(value)) is not None and reader.op_type == "Reshape" and reader.input[1] in editor.constants:
        value, shape = reader.output[0], tuple(int(size) for size in editor.array(reader.input[1]))
    slices = editor.readers.get(value, [])
    found = [_range(editor, node, shape) for node in slices]
    ranges = [each for each in found if each is not None]
    if not ranges or len(ranges) < len(found) or value in editor.outputs or len({each.axis for each in ranges}) != 1:
        return None
    return Parts(slices=slices, ranges=ranges, shape=shape) if np.prod(shape[ranges[0].axis :]) == layer.bias.size else None


def _range(editor: GraphEditor, node: onnx.NodeProto, shape: tuple[int, ...]) -> Range | None:
    """What a Slice takes; None if it does more than take one range of one axis from which on all sizes are known."""
    if node.op_type != "Slice" or len(node.input) < 4 or not all(name in editor.constants for name in node.input[1:]):
        return None
    starts, ends, axes, *steps = ([int(each) for each in editor.array(name)] for name in node.input[1:])
    if len(axes) != 1 or steps not in ([], [[1]]) or not -len(shape) <= axes[0] < len(shape):
        return None
    axis = axes[0] % len(shape)
    first, end, _ = slice(starts[0], ends[0]).indices(max(shape[axis], 0))
    return Range(axis=axis, first=first, end=end) if min(shape[axis:]) > 0 and first < end else None


def _apart(editor: GraphEditor, product: onnx.NodeProto, layer: Layer, parts: Parts) -> set[str]:
    """One MatMul and Add for each part, in the place of its Slice. Returns the names of the MatMuls."""
    unread, names = [each.input[0] for each in parts.slices], set[str]()
    for index, (node, taken) in enumerate(zip(parts.slices, parts.ranges, strict=True)):
        made, behind = editor.builder(f"{node.output[0]}.part."), int(np.prod(parts.shape[taken.axis + 1 :]))
        columns = slice(taken.first * behind, taken.end * behind)
        steps, name = layer.steps[columns], product.name if index == 0 else f"{product.name}.{index}"
        integers, zeros = made.constant("integers", layer.table[:, columns]), made.constant("zeros", np.zeros(steps.shape, np.int8))
        weights = made.add("DequantizeLinear", [integers, made.constant("steps", steps), zeros], "weights", axis=1)
        sums = made.add("MatMul", [product.input[0], weights], "sums", name=name)
        value = made.add("Add", [sums, made.constant("bias", layer.bias[columns])], "biased")
        shape = [*parts.shape[: taken.axis], taken.end - taken.first, *parts.shape[taken.axis + 1 :]]
        made.add("Reshape", [value, made.constant("axes", shape)], into=node.output[0])
        editor.replace(node, made.nodes)
        names.add(name)
    editor.remove_unread(unread)
    return names
