"""What a node says of itself, which ones there are, and new ones in a row."""

from collections.abc import Iterator, Sequence
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
