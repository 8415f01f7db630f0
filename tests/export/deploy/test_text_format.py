"""Protobuf's text format, against protobuf's own reader where it knows the message."""

import pytest
from google.protobuf import json_format, struct_pb2, text_format
from hypothesis import given
from hypothesis import strategies as st

from edgeport_export.deploy.text_format import TextFormatError, quoted, read_blocks


def test_what_configurations_are_written_in() -> None:
    text = """
    name: "a \\"b\\""  # a comment
    max: -3 share: 0.5 kind: KIND_CPU
    dims: [ 1, -1, 3 ]
    input [ { name: 'x' dims: [2] }, { name: "y" } ]
    input { name: "z" }
    deep { a: < b { c: 1; } > }
    """
    assert read_blocks(text) == {
        "name": ['a "b"'],
        "max": [-3],
        "share": [0.5],
        "kind": ["KIND_CPU"],
        "dims": [1, -1, 3],
        "input": [{"name": ["x"], "dims": [2]}, {"name": ["y"]}, {"name": ["z"]}],
        "deep": [{"a": [{"b": [{"c": [1]}]}]}],
    }
    assert read_blocks("") == {} and read_blocks("  # nothing\n") == {}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a", 1),
        ("a:", 1),
        ("a: 1\nb: }", 2),
        ("a {\n b: 1\n", 2),
        ("a: [1 2]", 1),
        ('a: "x', 1),
        ("5: 1", 1),
        ("}", 1),
        ("a: [", 1),
        ("\n\n?", 3),
        ("a {" * 30, 1),
    ],
)
def test_other_text_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(TextFormatError, match=f"^line {line}: "):
        read_blocks(text)


@given(st.text())
def test_any_text_goes_there_and_back(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert read_blocks(f"a: {quoted(text)}") == {"a": [text]}


@given(st.dictionaries(st.text(alphabet="abc", min_size=1, max_size=3), st.text(alphabet='ab "\\\n{}[]:', max_size=6) | st.integers(-9, 9), max_size=4))
def test_what_protobuf_writes_is_read(data: dict[str, str | int]) -> None:
    message = json_format.ParseDict(data, struct_pb2.Struct())
    fields = read_blocks(text_format.MessageToString(message)).get("fields", [])
    found = {each["key"][0]: next(iter(each["value"][0].values()))[0] for each in fields}
    assert found == data


@given(st.text(alphabet='ab1-:{}[]<>,;"# \n', max_size=30))
def test_any_other_text_is_read_or_refused_with_a_line_that_it_has(text: str) -> None:
    try:
        found = read_blocks(text)
    except TextFormatError as error:
        line = int(str(error).removeprefix("line ").partition(":")[0])
        assert 1 <= line <= text.count("\n") + 1
    else:
        assert all(key.isidentifier() and values for key, values in found.items()) or any(values == [] for values in found.values())
