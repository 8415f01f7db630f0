"""What verify printed, as it was printed; and files that somebody changed."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeport_export.report.verification import stage_faults, stage_rows, verification_faults, verified_rows

FOUND: dict[str, Any] = {
    "passed": False,
    "same_weights": True,
    "recipe": [],
    "golden": {"fp32": True, "int8": False},
    "stored_answers": True,
    "reproduced": {"fp32": True, "int8": None},
    "lossy": [{"first": "b@int8", "second": "the network", "passed": True}],
    "parity": {"passed": True},
    "stages": {
        "images": 7,
        "stages": [
            {"name": "decode", "largest": 0.0, "rms": 0.0, "changed": 0, "note": "pixels"},
            {"name": "resize", "largest": 0.25, "rms": 0.125, "changed": 3, "note": ""},
            {"name": "end to end", "largest": None, "rms": None, "changed": None, "note": "shapes"},
        ],
        "recipe": {"differences": ["the mean is another"]},
    },
}


def test_every_finding_is_told() -> None:
    assert verification_faults(FOUND) == []
    assert dict(verified_rows(FOUND)) == {
        "it was made of these weights": True,
        "its contract is what the network promises": True,
        "fp32 agrees with PyTorch at other inputs than the export's": True,
        "the stored answers are PyTorch's": True,
        "fp32 keeps its golden cases": True,
        "int8 keeps its golden cases": False,
        "fp32 comes out the same, byte for byte": True,
        "b@int8 and the network agree": True,
    }
    assert [(each.name, each.largest, each.rms, each.changed) for each in stage_rows(FOUND)] == [
        ("decode", 0.0, 0.0, 0),
        ("resize", 0.25, 0.125, 3),
        ("end to end", None, None, None),
    ]
    assert stage_faults(FOUND) == ["the mean is another"]


def test_a_part_of_a_verification_will_do() -> None:
    assert verification_faults({}) == [] and stage_rows({}) == [] and verified_rows({}) == [] and stage_faults({}) == []
    only = {"stages": FOUND["stages"]}
    assert verification_faults(only) == [] and len(stage_rows(only)) == 3


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"stages": 5}, "'stages' is 5"),
        ({"parity": []}, "'parity' is []"),
        ({"parity": {}}, "'parity' does not say whether it passed"),
        ({"golden": {"fp32": "no"}}, "'golden' of fp32 is 'no'"),
        ({"reproduced": {"int8": 1}}, "'reproduced' of int8 is 1"),
        ({"lossy": [{}]}, "an entry of 'lossy' is {}"),
        ({"passed": "yes"}, "'passed' is 'yes'"),
        ({"stages": {"images": 3, "stages": []}}, "'stages' does not list them, each with its name and figures"),
        ({"stages": {"images": 3, "stages": [{"name": "x", "largest": "0", "rms": 0.0}]}}, "'stages' does not list them"),
        ({"stages": {"stages": FOUND["stages"]["stages"]}}, "'stages' does not tell the number of images"),
    ],
)
def test_what_is_broken_is_named_and_not_left_out(change: dict[str, Any], fault: str) -> None:
    assert verification_faults({**FOUND, **change})[0].startswith(fault)


def places(data: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        found.append((data, key))
        places(value, found)
    return found


@given(where=st.integers(0, 10_000), value=st.sampled_from([None, 5, "x", [], {}, [5], {"x": 5}, True, -1.5, float("nan"), {"1": "x"}]))
def test_a_file_that_somebody_changed_is_refused_or_read(where: int, value: object) -> None:
    changed = json.loads(json.dumps(FOUND))
    listed = places(changed, [])
    container, key = listed[where % len(listed)]
    container[key] = value
    if not verification_faults(changed):
        assert all(isinstance(holds, bool) for _, holds in verified_rows(changed))
        assert all(each.rms is None or each.rms >= 0 for each in stage_rows(changed)) and isinstance(stage_faults(changed), list)
