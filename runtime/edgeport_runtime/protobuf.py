"""Reading ONNX's protobuf files without the onnx package: tensors of golden cases, and a model's outline.

Wire format: https://protobuf.dev/programming-guides/encoding/ · field numbers: onnx.proto of ONNX 1.x, frozen since IR 3.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import FormatError

Array = NDArray[np.generic]
# TensorProto.DataType -> numpy, for the types that edgeport's inputs and outputs have.
DTYPES = {1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}
EXTERNAL = 1  # TensorProto.DataLocation


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number that starts at `at`, and the place at which the next thing starts. Raises FormatError if it is cut off or too long."""
    value = shift = 0
    while True:
        if at >= len(data):
            raise FormatError("expected a protobuf message, but the bytes end early: the file is damaged")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise FormatError("expected a protobuf message, but a number in it is longer than 64 bits: the file is damaged")


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of one message: an int for numbers, a view for bytes, strings and messages.

    Raises FormatError if the bytes are not a protobuf message.
    """
    at = 0
    try:
        while at < len(data):
            key, at = _varint(data, at)
            number, wire = key >> 3, key & 7
            if wire == 0:
                value, at = _varint(data, at)
                yield number, value
                continue
            size, at = _varint(data, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            if at + size > len(data):
                raise IndexError
            yield number, data[at : at + size]
            at += size
    except (IndexError, KeyError) as error:
        raise FormatError("expected a protobuf message, but the bytes end early or are of another kind: the file is damaged") from error


def _packed(value: int | memoryview) -> list[int]:
    """A repeated integer field comes packed or one at a time."""
    if isinstance(value, int):
        return [value]
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(number)
    return numbers


def read_tensor(data: bytes) -> tuple[str, Array]:
    """Decode one TensorProto that holds raw_data: its name and its array.

    Raises FormatError for other encodings, unknown types, or a size that does not match the shape.
    """
    dims: list[int] = []
    kind, name, raw = 0, "", None
    for number, value in fields(memoryview(data)):
        if number == 1:
            dims += _packed(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8 and not isinstance(value, int):
            name = _text(value)
        elif number == 9 and not isinstance(value, int):
            raw = value
    if kind not in DTYPES or raw is None:
        raise FormatError(f"tensor {name!r}: expected raw data of a known type, got ONNX type {kind}{'' if raw is not None else ' without raw data'}")
    dtype = np.dtype(DTYPES[kind]).newbyteorder("<")
    if len(raw) != dtype.itemsize * int(np.prod(dims, dtype=np.int64)):
        raise FormatError(f"tensor {name!r}: {len(raw)} bytes do not fill {dims} of {dtype}")
    return name, np.frombuffer(raw, dtype).reshape(dims).astype(dtype.newbyteorder("="))


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a model file says about itself before any runtime has parsed it."""

    ir_version: int
    opsets: dict[str, int]
    metadata: dict[str, str]
    nodes: int
    operators: frozenset[str]
    external: tuple[str, ...]


def read_outline(data: bytes) -> Outline:
    """Walk a ModelProto's top level: IR version, opset of each domain, metadata, nodes and their operators, and tensors kept outside the file."""
    ir_version, nodes = 0, 0
    operators: set[str] = set()
    opsets: dict[str, int] = {}
    metadata: dict[str, str] = {}
    external: list[str] = []
    for number, value in fields(memoryview(data)):
        if number == 1 and isinstance(value, int):
            ir_version = value
        elif number == 7 and not isinstance(value, int):
            for inner, part in fields(value):
                if inner == 1 and not isinstance(part, int):
                    nodes += 1
                    operators.add(_operator(part))
                if inner == 5 and not isinstance(part, int):
                    external += _external(part)
        elif number == 8 and not isinstance(value, int):
            pair = dict(fields(value))
            opsets[_text(pair.get(1)) or "ai.onnx"] = int(pair.get(2, 0))
        elif number == 14 and not isinstance(value, int):
            pair = dict(fields(value))
            metadata[_text(pair.get(1))] = _text(pair.get(2))
    if not ir_version or not nodes:
        raise FormatError("expected an ONNX model, but there is no graph in these bytes: the file is damaged or of another kind")
    return Outline(ir_version=ir_version, opsets=opsets, metadata=metadata, nodes=nodes, operators=frozenset(operators), external=tuple(external))


def _operator(node: memoryview) -> str:
    return next((_text(value) for number, value in fields(node) if number == 4), "")


def _external(tensor: memoryview) -> list[str]:
    found = dict(fields(tensor))
    return [_text(found.get(8))] if found.get(14) == EXTERNAL or 13 in found else []


def _text(value: int | memoryview | None) -> str:
    return "" if value is None or isinstance(value, int) else bytes(value).decode("utf-8", errors="replace")
