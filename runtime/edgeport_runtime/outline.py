"""What a model file says of itself, read before onnxruntime, which is native code, sees any of it; and what is refused.

1. Everything is in the file: no tensors elsewhere, each filled by its data.
2. Operators are ONNX's own, in the order in which they run, at most MOST_PARTS of them, in graphs that lie at most DEEPEST in one another.
3. What follows from constants alone is computed at load, before anybody asked for anything. So such nodes only convert or shape constants (SHAPING), and all
   of them together give no more than some times the file. One division of constants has ended the process, and sixty small nodes took 4 GB.
4. No functions, sparse tensors, or settings for onnxruntime.

Field numbers: onnx.proto of ONNX 1.x, frozen since IR 3. A field that may come once counts each time, because the last of them wins.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .errors import FormatError
from .protobuf import MOST_AXES, fields, packed, text

OWN_DOMAINS = {"", "ai.onnx"}  # edgeport writes standard operators alone
DEEPEST = 16  # graphs within graphs; a loop within a condition has 3
MOST_PARTS = 100_000  # nodes and tensors; Swin has 1,300
MOST_NAMED = 5  # in a message
EXTERNAL = 1  # TensorProto.DataLocation
SESSION_SETTINGS = "ort_config"  # metadata from which onnxruntime takes settings if ORT_LOAD_CONFIG_FROM_MODEL is set
SHAPING = {
    "DequantizeLinear",
    "QuantizeLinear",
    "Cast",
    "Identity",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Shape",
    "Size",
    "Split",
    "Slice",
    "Concat",
}
WIDEST = 8  # bytes of an element
LEAST_COMPUTED = 64 * 2**20  # bytes that constants may become, whatever the size of the file
COMPUTED_SHARE = 16  # or so many times the file
# TensorProto.DataType -> bits of an element
BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16}
BITS |= dict.fromkeys((17, 18, 19, 20, 24), 8) | dict.fromkeys((21, 22, 23), 4) | dict.fromkeys((25, 26), 2)


@dataclass(kw_only=True)
class Outline:
    """`opsets`: version of each domain. `nodes`, `operators`: of the graph itself. `external`: tensors kept outside the file. `foreign`: domains of operators
    that are not ONNX's own, in any graph. `fault`: the first thing that no runtime should be given."""

    ir_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    nodes: int = 0
    operators: set[str] = field(default_factory=set)
    external: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    fault: str | None = None


def read_outline(data: bytes) -> Outline:
    """Walk a ModelProto. Raises FormatError if the bytes are none, or hold no graph."""
    found = Outline()
    reader = _Reader(found, max(LEAST_COMPUTED, COMPUTED_SHARE * len(data)))
    for number, value in fields(memoryview(data)):
        if isinstance(value, int):
            found.ir_version = value if number == 1 else found.ir_version
        elif number == 7:
            reader.graph(value, {}, 0)
        elif number == 8:
            pair = dict(fields(value))
            version = pair.get(2, 0)
            found.opsets[text(pair.get(1)) or "ai.onnx"] = version if isinstance(version, int) else 0
        elif number == 14:
            pair = dict(fields(value))
            found.metadata[text(pair.get(1))] = text(pair.get(2))
        elif number == 25:
            reader.refuse("functions of its own, whose expansion has crashed onnxruntime")
    if SESSION_SETTINGS in found.metadata:
        reader.refuse(f"metadata named {SESSION_SETTINGS}, from which onnxruntime may take settings")
    if not found.ir_version or not found.nodes:
        raise FormatError("expected an ONNX model, but there is no graph in these bytes: the file is damaged or of another kind")
    return found


Known = dict[str, int | None]  # name of a value -> number of its elements if it is a constant, else None


class _Reader:
    """Walks graphs. `computed`: bytes that constants may become."""

    def __init__(self, found: Outline, computed: int) -> None:
        self.found = found
        self._left = MOST_PARTS
        self._computed = computed

    def refuse(self, what: str) -> None:
        """The first fault is enough: a file may have millions."""
        self.found.fault = self.found.fault or what

    def graph(self, data: memoryview, outer: Mapping[str, int | None], depth: int) -> None:
        """`outer`: what the graphs around it know."""
        if depth > DEEPEST:
            raise FormatError(f"expected an ONNX model, but graphs lie more than {DEEPEST} deep in one another: the file is damaged")
        nodes: list[memoryview] = []
        known: Known = dict(outer)
        given: list[str] = []
        for number, value in fields(data):
            if isinstance(value, int):
                continue
            self._count(number)
            if number == 1:
                nodes.append(value)  # tensors may come after them
            elif number == 5:
                name, elements = self._tensor(value)
                known[name] = elements
            elif number == 11:
                given.append(text(dict(fields(value)).get(1)))
            elif number == 15:
                self.refuse("a sparse tensor")
        known |= dict.fromkeys(given)  # an input wins over a constant of its name, since a caller may give another value
        for node in nodes:
            self._node(node, known, depth)

    def _count(self, number: int) -> None:
        self._left -= number in (1, 5, 11)
        if self._left < 0:
            raise FormatError(f"expected an ONNX model of at most {MOST_PARTS:,} nodes and tensors, got more: the file is damaged")

    def _node(self, data: memoryview, known: Known, depth: int) -> None:
        node = _Node.of(data)
        self.found.nodes += depth == 0
        if depth == 0:
            self.found.operators.add(node.operator)
        for domain in node.domains - OWN_DOMAINS:
            if len(self.found.foreign) < MOST_NAMED and domain not in self.found.foreign:
                self.found.foreign.append(domain)
        for attribute in node.attributes:
            self._attribute(attribute, known, depth)
        unknown = next((name for name in node.inputs if name not in known), None)
        if unknown is not None:
            self.refuse(f"a node that reads {unknown[:80]!r} before anything has made it")
        known |= dict.fromkeys(node.outputs, self._computed_from(node, known))

    def _computed_from(self, node: "_Node", known: Known) -> int | None:
        """Rule 3: how many elements the outputs have if they are constants."""
        if node.operator == "Constant":
            return 0  # its tensor was counted
        elements = [known.get(name) for name in node.inputs]
        if not elements or None in elements:
            return None
        if node.operator not in SHAPING:
            self.refuse(f"a node of the operator {node.operator[:40]!r} that computes from constants alone")
        most = sum(each or 0 for each in elements) if node.operator == "Concat" else elements[0] or 0
        self._computed -= WIDEST * most
        if self._computed < 0:
            self.refuse("constants that become many times as large as the file")
        return most

    def _attribute(self, data: memoryview, known: Known, depth: int) -> None:
        for number, value in fields(data):
            if isinstance(value, int):
                continue
            if number in (5, 10):
                self._tensor(value)
            elif number in (6, 11):
                self.graph(value, known, depth + 1)
            elif number in (22, 23):
                self.refuse("a sparse tensor")

    def _tensor(self, data: memoryview) -> tuple[str, int]:
        """Its name and number of elements. Its data must be in it and fill its dims, or a native loader may read or allocate what is not there."""
        tensor = _Tensor.of(data)
        if tensor.external:
            self.found.external += [tensor.name] if len(self.found.external) < MOST_NAMED else []
        elif not tensor.is_filled(len(data)):
            self.refuse(f"the tensor {tensor.name[:80]!r} of dims {tensor.dims[:8]} and type {tensor.kind}, which its data do not fill")
        return tensor.name, math.prod(tensor.dims[:MOST_AXES])


@dataclass(kw_only=True)
class _Node:
    """A NodeProto, as far as it matters here."""

    operator: str = ""
    domains: set[str] = field(default_factory=set)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: list[memoryview] = field(default_factory=list)

    @classmethod
    def of(cls, data: memoryview) -> "_Node":
        node = cls()
        for number, value in _parts(data):
            if number == 1 and value:  # an input that is left out has no name
                node.inputs.append(text(value))
            elif number == 2:
                node.outputs.append(text(value))
            elif number == 4:
                node.operator = text(value)
            elif number == 5:
                node.attributes.append(value)
            elif number == 7:
                node.domains.add(text(value))
        return node


@dataclass(kw_only=True)
class _Tensor:
    """What a TensorProto says of itself. `raw`: its data if they are one block of bytes."""

    dims: list[int] = field(default_factory=list)
    kind: int = 0
    name: str = ""
    raw: memoryview | None = None
    external: bool = False

    @classmethod
    def of(cls, data: memoryview) -> "_Tensor":
        tensor = cls()
        for number, value in fields(data):
            if number == 1:
                tensor.dims += packed(value) if len(tensor.dims) <= MOST_AXES else []
            elif number == 13 or (number == 14 and value == EXTERNAL):
                tensor.external = True
            elif isinstance(value, int):
                tensor.kind = value if number == 2 else tensor.kind
            elif number == 8:
                tensor.name = text(value)
            elif number == 9:
                tensor.raw = value
        return tensor

    def is_filled(self, size: int) -> bool:
        """`size`: of the whole message in bytes."""
        if len(self.dims) > MOST_AXES:
            return False
        elements = math.prod(self.dims)
        if self.raw is None:
            return elements <= 2 * size  # the shortest element of a list takes half a byte
        return self.kind in BITS and len(self.raw) == -(-elements * BITS[self.kind] // 8)


def _parts(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Fields that are no numbers."""
    return ((number, value) for number, value in fields(data) if not isinstance(value, int))
