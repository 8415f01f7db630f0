"""What a node says of itself, and new nodes for a rewrite."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from .names import WRAPPER


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Name -> value of every attribute that is written; strings are bytes."""
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The graph's nodes and those of its branches, at any depth."""
    for node in graph.node:
        yield node
        for each in node.attribute:
            for branch in [each.g, *each.graphs] if each.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) else []:
                yield from every_node(branch)


def swaps_last_axes(node: onnx.NodeProto) -> bool:
    """Whether the node is a Transpose of the last two axes, and of no others."""
    axes = transpose_order(node)
    return node.op_type == "Transpose" and len(axes) >= 2 and axes == [*range(len(axes) - 2), len(axes) - 1, len(axes) - 2]


def transpose_order(node: onnx.NodeProto) -> list[int]:
    """The `perm` of a Transpose; empty if it has none."""
    return list(attributes(node).get("perm", []))


class NodeBuilder:
    """New nodes, one after another. Their constants go into `graph`; names of values begin with `prefix`."""

    def __init__(self, graph: onnx.GraphProto, prefix: str) -> None:
        self.graph = graph
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []

    def constant(self, name: str, value: NDArray[Any] | Sequence[int]) -> str:
        """Add a constant and return its name. Integers of a list become int64."""
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), self.prefix + name))
        return self.prefix + name

    def add(self, op_type: str, inputs: Sequence[str], output: str = "", *, into: str | None = None, name: str | None = None, **attributes: Any) -> str:
        """Add a node and return the value that it makes: `prefix` + `output`, or exactly `into`. `name`: of the node, if not the value's."""
        value = into or self.prefix + output
        self.nodes.append(helper.make_node(op_type, inputs, [value], name=name or WRAPPER + value, **attributes))
        return value

    def repeat(self, node: onnx.NodeProto, source: str, output: str) -> str:
        """Add a copy of `node` that reads `source` first, and return the value that it makes."""
        value, copy = self.prefix + output, onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name, copy.input[0], copy.output[0] = WRAPPER + value, source, value
        self.nodes.append(copy)
        return value

    def copy(self, graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], renamed: Mapping[str, str]) -> dict[str, str]:
        """Add copies of `graph`'s nodes, with constants of their own, and return what each value is called here.

        The nodes keep their names. `renamed`: other values that they read, by their names in `graph`.
        """
        names = {**renamed, **{name: self.prefix + name for node in nodes for name in node.output}}
        read = {name for node in nodes for name in node.input}
        names |= {each.name: self.constant(each.name, numpy_helper.to_array(each)) for each in graph.initializer if each.name in read}
        for node in nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [names.get(each, each) for each in node.input]
            copy.output[:] = [names[each] for each in node.output]
            self.nodes.append(copy)
        return names

    def as_branch(self, name: str, dtype: int, rank: int) -> onnx.GraphProto:
        """The nodes as a graph without inputs, whose output is the last value; `dtype` and `rank` are that value's."""
        outputs = [helper.make_tensor_value_info(self.nodes[-1].output[0], dtype, [None] * rank)]
        return helper.make_graph(self.nodes, name, [], outputs, initializer=self.graph.initializer)
