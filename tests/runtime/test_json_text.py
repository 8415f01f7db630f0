import json
import math

from edgeport_runtime.json_text import canonical_json, printable, strict_json


def test_numbers_that_are_not_finite_become_null() -> None:
    assert json.loads(strict_json({"a": [math.nan, 1.5, {"b": (math.inf, -math.inf)}], 3: "x"})) == {"3": "x", "a": [None, 1.5, {"b": [None, None]}]}


def test_equal_values_give_equal_bytes() -> None:
    assert canonical_json({"b": 1, "a": "é"}) == canonical_json({"a": "é", "b": 1}) == '{"a":"\\u00e9","b":1}'


def test_a_terminal_is_not_steered_by_text() -> None:
    assert printable("grün\n\tx") == "grün\n\tx"
    assert printable("a\x1b[2Jb\r\x07\u202e\ud800") == r"a\x1b[2Jb\r\x07\u202e" + printable("\ud800") and printable("\ud800").isascii()
