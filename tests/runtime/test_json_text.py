import json
import math

from edgeport_runtime.json_text import canonical_json, strict_json


def test_numbers_that_are_not_finite_become_null() -> None:
    assert json.loads(strict_json({"a": [math.nan, 1.5, {"b": (math.inf, -math.inf)}], 3: "x"})) == {"3": "x", "a": [None, 1.5, {"b": [None, None]}]}


def test_equal_values_give_equal_bytes() -> None:
    assert canonical_json({"b": 1, "a": "é"}) == canonical_json({"a": "é", "b": 1}) == '{"a":"\\u00e9","b":1}'
