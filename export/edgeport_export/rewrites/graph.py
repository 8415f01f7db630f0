"""Reading and changing an ONNX graph: the one place that inserts and removes nodes.

`GraphEditor` knows the node that makes a value, the nodes that read it, and the constants. A rewrite builds its nodes with a
`NodeBuilder`, puts them in place with the editor, and returns a `PassResult`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel

from .nodes import NodeBuilder, every_node

Dims = tuple[int | str, ...]
Ranges = Mapping[str, tuple[float, float]]  # value -> lowest and highest number that does not clip


@dataclass(frozen=True, kw_only=True)
class PassResult:
    """What a pass did. True if it changed anything.

    `changed`: number of places. `ranges`: of the values that it made, for those that may be quantized. `followers`: names of new nodes that
    have integer kernels. `facts`: what later passes must know of the places, each of a class of its own.
    """

    changed: int = 0
    ranges: Ranges = field(default_factory=dict)
    followers: frozenset[str] = frozenset()
    facts: tuple[Any, ...] = ()

    def __bool__(self) -> bool:
        return self.changed > 0


class GraphEditor:
    """One model's graph, read and changed in place."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.graph = model.graph

    @classmethod
    def of_copy(cls, model: onnx.ModelProto) -> "GraphEditor":
        """An editor of a copy, so that the caller's model stays as it is."""
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return cls(copy)

    # Reading. What is looked up is forgotten at the next change.

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return list(self.graph.node)

    @property
    def outputs(self) -> set[str]:
        return {each.name for each in self.graph.output}

    @cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        """Value -> the node that makes it."""
        return {value: node for node in self.graph.node for value in node.output}

    @cached_property
    def readers(self) -> dict[str, list[onnx.NodeProto]]:
        """Value -> the nodes that read it, each once, in the graph's order."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for value in dict.fromkeys(node.input):
                found.setdefault(value, []).append(node)
        return found

    @cached_property
    def constants(self) -> dict[str, onnx.TensorProto]:
        """Name -> the graph's stored tensors."""
        return {each.name: each for each in self.graph.initializer}

    @cached_property
    def types(self) -> dict[str, int]:
        """Value -> its element type, as onnx.TensorProto numbers them, if the graph says it."""
        return {each.name: each.type.tensor_type.elem_type for each in (*self.graph.value_info, *self.graph.input)}

    @cached_property
    def dims(self) -> dict[str, Dims]:
        """Value -> its sizes, as numbers, names or "" for an unknown one, if the graph says how many axes it has."""
        values = (*self.graph.value_info, *self.graph.input, *self.graph.output)
        return {
            each.name: tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in each.type.tensor_type.shape.dim)
            for each in values
            if each.type.tensor_type.HasField("shape")
        }

    @property
    def has_open_sizes(self) -> bool:
        """Whether some size of an input is known only while the network runs."""
        return any(isinstance(size, str) for value in self.graph.input for size in self.dims.get(value.name, ("",)))

    def array(self, name: str) -> NDArray[Any]:
        """The value of a constant."""
        return numpy_helper.to_array(self.constants[name])

    def are_constants(self, names: Iterable[str]) -> bool:
        """Whether every name that is not empty is a constant's."""
        return all(name in self.constants for name in names if name)

    def producer(self, value: str, *op_types: str) -> onnx.NodeProto | None:
        """The node that makes `value`, if its operator is one of `op_types`."""
        node = self.producers.get(value)
        return node if node is not None and node.op_type in op_types else None

    def only_reader(self, value: str) -> onnx.NodeProto | None:
        """The node that reads `value`, if it is the only one and the value is no output of the graph."""
        readers = self.readers.get(value, [])
        return readers[0] if len(readers) == 1 and value not in self.outputs else None

    def ancestors(self, *values: str, known: Collection[str] = ()) -> list[onnx.NodeProto]:
        """The nodes that `values` are made by, in the graph's order; those behind `known` values alone, if these are given."""
        wanted, found = set(values), []
        for node in reversed(self.graph.node):
            if wanted & set(node.output):
                found.append(node)
                wanted |= set(node.input) - set(known)
        return found[::-1]

    def first(self, op_type: str) -> onnx.NodeProto | None:
        """The graph's first node of this operator."""
        return next((node for node in self.graph.node if node.op_type == op_type), None)

    # Changing.

    def builder(self, prefix: str) -> NodeBuilder:
        """A builder whose constants go into this graph."""
        self._forget()
        return NodeBuilder(self.graph, prefix)

    def replace(self, node: onnx.NodeProto, nodes: Sequence[onnx.NodeProto]) -> None:
        """Put `nodes` in the place of `node`."""
        self._insert(self._remove(node), nodes)

    def insert_before(self, node: onnx.NodeProto, nodes: Sequence[onnx.NodeProto]) -> None:
        self._insert(list(self.graph.node).index(node), nodes)

    def insert_after(self, node: onnx.NodeProto, nodes: Sequence[onnx.NodeProto]) -> None:
        self._insert(list(self.graph.node).index(node) + 1, nodes)

    def append(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Add nodes in whatever place their inputs are known."""
        self.graph.node.extend(nodes)
        ONNXModel(self.model).topological_sort()
        self._forget()

    def remove(self, nodes: Iterable[onnx.NodeProto]) -> None:
        for node in nodes:
            self._remove(node)

    def set_input(self, node: onnx.NodeProto, index: int, value: str) -> None:
        node.input[index] = value
        self._forget()

    def set_inputs(self, node: onnx.NodeProto, values: Sequence[str]) -> None:
        node.input[:] = values
        self._forget()

    def set_output(self, node: onnx.NodeProto, value: str) -> None:
        """Let a node's first output have another name. Its readers are left as they are."""
        node.output[0] = value
        self._forget()

    def rename(self, value: str, name: str) -> None:
        """Give a value another name, in the node that makes it and in all that read it."""
        for node in self.graph.node:
            for names in (node.input, node.output):
                names[:] = [name if each == value else each for each in names]
        self._forget()

    def read_instead(self, value: str, other: str) -> None:
        """Let every node that reads `value` read `other`."""
        for node in self.readers.get(value, []):
            node.input[:] = [other if name == value else name for name in node.input]
        self._forget()

    def set_array(self, name: str, array: NDArray[Any]) -> None:
        """Give a constant another value."""
        self.constants[name].CopyFrom(numpy_helper.from_array(array, name))

    def set_attributes(self, node: onnx.NodeProto, values: Mapping[str, Any]) -> None:
        """Give a node exactly these attributes."""
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(name, value) for name, value in values.items())

    def set_outputs(self, values: Iterable[str]) -> None:
        """Give the graph exactly these outputs, of whatever type."""
        del self.graph.output[:]
        self.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values)
        self._forget()

    def require_opset(self, version: int) -> None:
        """Let the graph have at least this opset. The caller knows that its operators mean the same there."""
        for each in self.model.opset_import:
            if each.domain in ("", "ai.onnx"):
                each.version = max(each.version, version)

    def remove_output(self, value: str) -> None:
        """Remove an output of the graph, and the nodes that only it needed."""
        self.graph.output.remove(next(each for each in self.graph.output if each.name == value))
        self.remove_unread([value])

    def remove_unread(self, values: Iterable[str] = ()) -> None:
        """Remove the nodes that make `values` if nothing reads what they make, then those that only they read, and all unread constants.

        onnxruntime warns of every constant that is left behind.
        """
        left = list(values)
        while left:
            node = self.producers.get(left.pop())
            if node is not None and not self._read & set(node.output):
                left.extend(node.input)
                self._remove(node)
        read = self._read
        for unread in [each for each in self.graph.initializer if each.name not in read]:
            self.graph.initializer.remove(unread)
        self._forget()

    def forget_dims(self, values: Iterable[str]) -> None:
        """Remove the stored sizes of values that have others now."""
        changed = set(values)
        for each in [each for each in self.graph.value_info if each.name in changed]:
            self.graph.value_info.remove(each)
        self._forget()

    @property
    def _read(self) -> set[str]:
        return {name for node in every_node(self.graph) for name in node.input} | self.outputs

    def _insert(self, place: int, nodes: Sequence[onnx.NodeProto]) -> None:
        for node in reversed(nodes):
            self.graph.node.insert(place, node)
        self._forget()

    def _remove(self, node: onnx.NodeProto) -> int:
        place = list(self.graph.node).index(node)
        del self.graph.node[place]
        self._forget()
        return place

    def _forget(self) -> None:
        for name in ("producers", "readers", "constants", "dims"):
            self.__dict__.pop(name, None)
