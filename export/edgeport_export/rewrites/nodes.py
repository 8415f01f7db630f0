"""What a node says of itself, which ones there are, and new ones in a row."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Name -> value of every attribute that is written; strings are bytes."""
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The graph's nodes and those of its branches, however deep."""
    for node in graph.node:
        yield node
        for each in node.attribute:
            for branch in [each.g, *each.graphs] if each.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) else []:
                yield from every_node(branch)


def ancestors(graph: onnx.GraphProto, value: str) -> list[onnx.NodeProto]:
    """The nodes that `value` is made by, in the graph's order."""
    wanted, found = {value}, []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            found.append(node)
            wanted |= set(node.input)
    return found[::-1]


class Chain:
    """Nodes of a rewrite, one after the other, for somebody to put in their place. Their constants go into `graph`; all names begin with `prefix`."""

    def __init__(self, graph: onnx.GraphProto, prefix: str) -> None:
        self.graph, self.prefix = graph, prefix
        self.nodes: list[onnx.NodeProto] = []

    def constant(self, name: str, value: NDArray[Any] | Sequence[int]) -> str:
        """The constant's name in the graph. Integers of a list become int64."""
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), self.prefix + name))
        return self.prefix + name

    def add(self, kind: str, inputs: Sequence[str], output: str = "", *, to: str = "", **attributes: Any) -> str:
        """One more node, and the name of what it makes: `output` behind the prefix, or just `to`."""
        written = to or self.prefix + output
        self.nodes.append(helper.make_node(kind, inputs, [written], name=f"edgeport/{written}", **attributes))
        return written

    def again(self, node: onnx.NodeProto, inputs: Sequence[str], output: str) -> str:
        """The node once more, with other inputs and `output` behind the prefix. It keeps its name: plans and messages go by them."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:], copy.output[:] = inputs, [self.prefix + output]
        self.nodes.append(copy)
        return self.prefix + output

    def copy(self, graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], renamed: Mapping[str, str]) -> dict[str, str]:
        """More nodes as those of `graph`, with constants of their own, and what each value is called here. `renamed`: others that they read, by their
        names there. The nodes keep their names."""
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

    def as_branch(self, name: str, kind: int, rank: int) -> onnx.GraphProto:
        """A graph without inputs that gives what is made last, of that type and rank."""
        outputs = [helper.make_tensor_value_info(self.nodes[-1].output[0], kind, [None] * rank)]
        return helper.make_graph(self.nodes, name, [], outputs, initializer=self.graph.initializer)
