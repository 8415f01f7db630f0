"""Reading protobuf without its package: messages, and the tensors of golden cases.

Wire format: https://protobuf.dev/programming-guides/encoding/ · field numbers: onnx.proto of ONNX 1.x, frozen since IR 3.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .errors import FormatError

Array = NDArray[np.generic]
MOST_AXES = 32  # older numpy has no more
# TensorProto.DataType -> numpy, for the types that edgeport's inputs and outputs have.
DTYPES = {1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}


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


def packed(value: int | memoryview) -> list[int]:
    """The numbers of a repeated field, which come packed or one at a time; of many the first ones, since dims are few."""
    if isinstance(value, int):
        return [value]
    numbers, at = list[int](), 0
    while at < len(value) and len(numbers) <= MOST_AXES:
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
            dims += packed(value) if len(dims) <= MOST_AXES else []
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8 and not isinstance(value, int):
            name = text(value)
        elif number == 9 and not isinstance(value, int):
            raw = value
    if kind not in DTYPES or raw is None:
        raise FormatError(f"tensor {name!r}: expected raw data of a known type, got ONNX type {kind}{'' if raw is not None else ' without raw data'}")
    dtype = np.dtype(DTYPES[kind]).newbyteorder("<")
    if len(dims) > MOST_AXES or len(raw) != dtype.itemsize * math.prod(dims):
        raise FormatError(f"tensor {name!r}: {len(raw)} bytes do not fill {dims} of {dtype}")
    return name, np.frombuffer(raw, dtype).reshape(dims).astype(dtype.newbyteorder("="))


def text(value: int | memoryview | None) -> str:
    """Of a field that holds text; empty if it is not there."""
    return "" if value is None or isinstance(value, int) else bytes(value).decode("utf-8", errors="replace")
