import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeport_runtime import FormatError
from edgeport_runtime.outline import read_outline
from edgeport_runtime.protobuf import fields, read_tensor

# Bytes written out by hand from the encoding's definition: key = field number * 8 + wire type.
FLOATS = struct.pack("<3f", 1.0, -2.0, 0.5)
PACKED_DIMS = b"\x0a\x02\x01\x03"  # field 1, two bytes: 1, 3
LOOSE_DIMS = b"\x08\x01\x08\x03"  # field 1 twice
FLOAT = b"\x10\x01"  # field 2, data type 1
NAME = b"\x42\x01x"  # field 8
RAW = b"\x4a\x0c" + FLOATS  # field 9


@pytest.mark.parametrize("dims", [PACKED_DIMS, LOOSE_DIMS])
def test_a_tensor_written_by_hand(dims: bytes) -> None:
    name, array = read_tensor(dims + FLOAT + NAME + RAW)
    assert name == "x" and array.dtype == np.float32
    np.testing.assert_array_equal(array, [[1.0, -2.0, 0.5]])


def test_a_scalar_has_no_dims() -> None:
    assert read_tensor(b"\x10\x07\x4a\x08" + struct.pack("<q", -5))[1] == -5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "known type"),
        (PACKED_DIMS + b"\x10\x08" + RAW, "ONNX type 8"),  # strings
        (PACKED_DIMS + FLOAT, "without raw data"),
        (b"\x0a\x02\x02\x03" + FLOAT + RAW, r"12 bytes do not fill \[2, 3\]"),
        (RAW[:-1], "end early"),
        (b"\x4b", "another kind"),  # wire type 3, a group
        (b"\xff" * 12, "longer than 64 bits"),
        (b"\x0a", "end early"),
        (b"\x0a\x01\x80" + FLOAT + RAW, "end early"),  # a packed number that is cut off
    ],
)
def test_damaged_tensors_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_tensor(data)


@given(st.binary(max_size=200))
def test_random_bytes_never_escape_as_another_error(data: bytes) -> None:
    for read in (read_tensor, read_outline):
        try:
            found: object = read(data)
        except FormatError as error:
            found = error
        assert found is not None  # whatever else were raised would end the test here


def test_fields_yields_numbers_and_views() -> None:
    assert [(number, value if isinstance(value, int) else bytes(value)) for number, value in fields(memoryview(b"\x08\x96\x01\x12\x02hi"))] == [
        (1, 150),
        (2, b"hi"),
    ]
