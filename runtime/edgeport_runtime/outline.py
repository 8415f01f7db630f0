"""What a model file says of itself, read before onnxruntime, which is native code, sees any of it; and what is refused.

Field numbers: onnx.proto of ONNX 1.x, frozen since IR 3. A field that may come once counts each time, because the last of them wins.
"""

import math
from dataclasses import dataclass, field

from .errors import FormatError
from .protobuf import MOST_AXES, fields, packed, text

OWN_DOMAINS = {"", "ai.onnx"}  # edgeport writes standard operators alone
DEEPEST = 16  # graphs within graphs; a loop within a condition has 3
EXTERNAL = 1  # TensorProto.DataLocation
SESSION_SETTINGS = "ort_config"  # metadata from which onnxruntime takes settings if ORT_LOAD_CONFIG_FROM_MODEL is set
# TensorProto.DataType -> bits of an element
BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16}
BITS |= dict.fromkeys((17, 18, 19, 20, 24), 8) | dict.fromkeys((21, 22, 23), 4) | dict.fromkeys((25, 26), 2)


@dataclass(kw_only=True)
class Outline:
    """`opsets`: version of each domain. `nodes`, `operators`: of the graph itself. `external`: tensors kept outside the file. `domains`: of all nodes, those
    of graphs within graphs, too. `faults`: what no runtime should be given."""

    ir_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    nodes: int = 0
    operators: set[str] = field(default_factory=set)
    external: list[str] = field(default_factory=list)
    domains: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)

    @property
    def foreign(self) -> list[str]:
        """Domains of operators that are not ONNX's own."""
        return sorted(self.domains - OWN_DOMAINS)


def read_outline(data: bytes) -> Outline:
    """Walk a ModelProto. Raises FormatError if the bytes are none, or hold no graph."""
    found = Outline()
    for number, value in fields(memoryview(data)):
        if isinstance(value, int):
            found.ir_version = value if number == 1 else found.ir_version
        elif number == 7:
            _graph(value, found, 0)
        elif number == 8:
            pair = dict(fields(value))
            version = pair.get(2, 0)
            found.opsets[text(pair.get(1)) or "ai.onnx"] = version if isinstance(version, int) else 0
        elif number == 14:
            pair = dict(fields(value))
            found.metadata[text(pair.get(1))] = text(pair.get(2))
        elif number == 25:
            found.faults.append("functions of its own, whose expansion has crashed onnxruntime")
    if SESSION_SETTINGS in found.metadata:
        found.faults.append(f"metadata named {SESSION_SETTINGS}, from which onnxruntime may take settings")
    if not found.ir_version or not found.nodes:
        raise FormatError("expected an ONNX model, but there is no graph in these bytes: the file is damaged or of another kind")
    return found


def _graph(data: memoryview, found: Outline, depth: int) -> None:
    if depth > DEEPEST:
        raise FormatError(f"expected an ONNX model, but graphs lie more than {DEEPEST} deep in one another: the file is damaged")
    for number, value in fields(data):
        if isinstance(value, int):
            continue
        if number == 1:
            _node(value, found, depth)
        elif number == 5:
            _tensor(value, found)
        elif number == 15:
            found.faults.append("a sparse tensor")


def _node(data: memoryview, found: Outline, depth: int) -> None:
    found.nodes += depth == 0
    domain = False
    for number, value in fields(data):
        if isinstance(value, int):
            continue
        if number == 4 and depth == 0:
            found.operators.add(text(value))
        elif number == 5:
            _attribute(value, found, depth)
        elif number == 7:
            found.domains.add(text(value))
            domain = True
    if not domain:
        found.domains.add("")


def _attribute(data: memoryview, found: Outline, depth: int) -> None:
    for number, value in fields(data):
        if isinstance(value, int):
            continue
        if number in (5, 10):
            _tensor(value, found)
        elif number in (6, 11):
            _graph(value, found, depth + 1)
        elif number in (22, 23):
            found.faults.append("a sparse tensor")


@dataclass
class _Tensor:
    """What a TensorProto says of itself. `raw`: its data if they are one block of bytes."""

    dims: list[int] = field(default_factory=list)
    kind: int = 0
    name: str = ""
    raw: memoryview | None = None
    external: bool = False

    def is_filled(self, size: int) -> bool:
        """`size`: of the whole message in bytes."""
        if len(self.dims) > MOST_AXES:
            return False
        elements = math.prod(self.dims)
        if self.raw is None:
            return elements <= 2 * size  # the shortest element of a list takes half a byte
        return self.kind in BITS and len(self.raw) == -(-elements * BITS[self.kind] // 8)


def _tensor(data: memoryview, found: Outline) -> None:
    """Its data must be in it and fill its dims, or a native loader may read or allocate what is not there."""
    tensor = _Tensor()
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
    if tensor.external:
        found.external.append(tensor.name)
    elif not tensor.is_filled(len(data)):
        found.faults.append(f"the tensor {tensor.name!r} of dims {tensor.dims[:8]} and type {tensor.kind}, which its data do not fill")
