"""What differs between a graph that was shipped and the same one made again: nodes, their attributes, their wiring, and stored values, each by its module."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from edgeport_export.rewrites.graph import GraphEditor
from edgeport_export.rewrites.names import ROOT
from edgeport_export.rewrites.nodes import attributes

ROUNDING = 4 * 2.0**-23  # of the largest value of a stored tensor: folding a BatchNorm may round otherwise on another processor
MOST_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class GraphChange:
    """One change. `kind`: "end" of an input or output, "values", "attribute", "operator", "wiring", "missing", "added" or "stored". `told`: in words.

    `module`: path of the module, or the node's name if it stands outside of the network.
    """

    kind: str
    module: str
    told: str

    def __str__(self) -> str:
        return f"{self.module}: {self.told}"


def graph_changes(expected: onnx.ModelProto, shipped: onnx.ModelProto) -> list[GraphChange]:
    """In the graph's order. Stored tensors that differ by rounding alone are no change."""
    first, second = GraphEditor(expected), GraphEditor(shipped)
    return [*_end_changes(expected, shipped), *_node_changes(first, second), *_stored_changes(first, second)]


def _module(name: str) -> str:
    return name.rpartition("/")[0] or name


def _end_changes(expected: onnx.ModelProto, shipped: onnx.ModelProto) -> Iterator[GraphChange]:
    for kind in ("input", "output"):
        ends = [{each.name: _shape(each) for each in getattr(model.graph, kind)} for model in (expected, shipped)]
        for name in dict.fromkeys([*ends[0], *ends[1]]):
            if ends[0].get(name) != ends[1].get(name):
                told = f"the {kind} {name} is {ends[1].get(name, 'missing')} instead of {ends[0].get(name, 'missing')}"
                yield GraphChange(kind="end", module=name, told=told)


def _shape(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    sizes = ", ".join(str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim)
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type).lower()}[{sizes}]"


def _node_changes(first: GraphEditor, second: GraphEditor) -> Iterator[GraphChange]:
    left = {node.name: node for node in second.nodes}
    for node in first.nodes:
        other = left.pop(node.name, None)
        if other is None:
            yield GraphChange(kind="missing", module=_module(node.name), told=f"the node {node.name} ({node.op_type}) is missing")
        elif other.op_type != node.op_type:
            yield GraphChange(kind="operator", module=_module(node.name), told=f"{node.name} is {other.op_type} instead of {node.op_type}")
        else:
            yield from _attribute_changes(node, other)
            if list(node.input) != list(other.input) or list(node.output) != list(other.output):
                told = f"{node.name} reads {', '.join(other.input)} instead of {', '.join(node.input)}"
                yield GraphChange(kind="wiring", module=_module(node.name), told=told)
    for name, node in left.items():
        yield GraphChange(kind="added", module=_module(name), told=f"the node {name} ({node.op_type}) was added")


def _attribute_changes(node: onnx.NodeProto, other: onnx.NodeProto) -> Iterator[GraphChange]:
    if node.attribute == other.attribute:
        return
    expected, got = attributes(node), attributes(other)
    for name in sorted(set(expected) | set(got)):
        if repr(expected.get(name)) != repr(got.get(name)):
            told = f"{name} of {node.name} is {got.get(name, 'left out')} instead of {expected.get(name, 'the default')}"
            yield GraphChange(kind="attribute", module=_module(node.name), told=told)


def _stored_changes(first: GraphEditor, second: GraphEditor) -> Iterator[GraphChange]:
    for name in sorted(set(first.constants) | set(second.constants)):
        module = _reader(first if name in first.constants else second, name)
        if name not in first.constants or name not in second.constants:
            told = f"the stored tensor {name} {'was added' if name not in first.constants else 'is missing'}"
            yield GraphChange(kind="stored", module=module, told=told)
            continue
        expected, got = first.array(name), second.array(name)
        if expected.shape != got.shape or expected.dtype != got.dtype:
            told = f"{name} is {got.dtype} of shape {got.shape} instead of {expected.dtype} {expected.shape}"
            yield GraphChange(kind="stored", module=module, told=told)
        elif expected.tobytes() != got.tobytes():
            yield from _value_changes(name, module, expected, got)


def _value_changes(name: str, module: str, expected: np.ndarray, got: np.ndarray) -> Iterator[GraphChange]:
    a, b = np.atleast_1d(expected).astype(np.float64), np.atleast_1d(got).astype(np.float64)
    largest = float(np.nan_to_num(np.abs(a)).max(initial=0.0))
    allowed = ROUNDING * largest if expected.dtype.kind == "f" else 0.0
    apart = np.nan_to_num(np.abs(a - b), nan=np.inf)
    apart[np.isnan(a) & np.isnan(b)] = 0.0
    off = np.argwhere(apart > allowed)
    if len(off):
        worst = np.unravel_index(int(apart.argmax()), apart.shape)
        place = tuple(int(each) for each in worst)
        more = f" (the largest of {len(off)} values of {a.size} that differ)" if len(off) > 1 else ""
        yield GraphChange(kind="values", module=module, told=f"{name.removeprefix(ROOT + '.')}{list(place)} is {b[worst]:.7g} instead of {a[worst]:.7g}{more}")


def _reader(editor: GraphEditor, name: str) -> str:
    """The module whose node reads a stored tensor first, through the conversion of an int8 weight if there is one."""
    for node in editor.readers.get(name, []):
        if node.op_type == "DequantizeLinear":
            return _reader(editor, node.output[0])
        return _module(node.name)
    return name


def told(changes: Sequence[GraphChange]) -> str:
    """The first few, in one line."""
    shown = "; ".join(map(str, changes[:MOST_SHOWN]))
    return shown + (f"; and {len(changes) - MOST_SHOWN} more" if len(changes) > MOST_SHOWN else "")
