import json
import math
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from edgeport_runtime import Bundle, Contract, DetectionHead, Input, Output, Pixels, Range
from edgeport_runtime.bundle import MANIFEST
from edgeport_runtime.manifest import (
    FORMAT,
    File,
    GoldenCase,
    Manifest,
    Selection,
    TargetCpu,
    Tolerance,
    Variant,
    parse_manifest,
    sealed,
    selection_of_format_1,
)

MEASURED = Selection(precision="int8", reason="measured")


@pytest.fixture
def manifest(classifier: Path) -> Manifest:
    """The stored one, as the present format has it."""
    return replace(Bundle(classifier).manifest, format=FORMAT)


def test_a_manifest_round_trip_is_exact(manifest: Manifest) -> None:
    text = manifest.to_json()
    again = parse_manifest(json.loads(text))
    assert again == manifest and again.to_json() == text and sealed(json.loads(text)) == json.loads(text)


@pytest.mark.parametrize("name", ["classifier", "generator"])
def test_format_1_is_read_into_the_same_values(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    stored = json.loads((folder / MANIFEST).read_text())
    found = Bundle(folder).manifest
    assert found.format == 1 and found.auto == Selection(precision=stored["auto"]["precision"], reason=stored["auto"]["reason"])
    machines = ("x86_64", "AMD64")
    assert [each.target for each in found.variants] == [None, TargetCpu(name="x86-vnni", machines=machines, narrow_weights=False)]
    assert [each.plan for each in found.variants] == [each["plan"] or None for each in stored["variants"]]
    assert [each.sha256 for each in found.variants] == [each["sha256"] for each in stored["variants"]]
    assert [asdict(each) for each in found.golden] == [asdict(each) for each in parse_manifest(stored).golden]


@pytest.mark.parametrize(
    ("auto", "expected"),
    [
        ({"precision": "int8", "reason": "r"}, Selection(precision="int8", reason="r")),
        (
            {"precision": "fp32", "reason": "r", "in_batches": "int8", "from_batch": "8"},
            Selection(precision="fp32", reason="r", batch_precision="int8", from_batch=8),
        ),
        ({"precision": "fp32", "reason": "r", "data_parallel_from": "6"}, Selection(precision="fp32", reason="r", split_batch_from=6)),
    ],
)
def test_the_selection_of_format_1(auto: dict[str, str], expected: Selection) -> None:
    assert selection_of_format_1(auto) == expected


@pytest.mark.parametrize(
    ("selection", "batch", "taken"),
    [
        (Selection(precision="int8", reason="r"), 1, "int8"),
        (Selection(precision="fp32", reason="r", batch_precision="int8", from_batch=8), 7, "fp32"),
        (Selection(precision="fp32", reason="r", batch_precision="int8", from_batch=8), 8, "int8"),
    ],
)
def test_the_variant_for_a_batch(selection: Selection, batch: int, taken: str) -> None:
    assert selection.taken(batch) == taken and taken in selection.precisions


@pytest.mark.parametrize(
    ("auto", "message"),
    [
        ({"precision": "int4", "reason": "r"}, "variants"),
        ({"precision": "int8", "reason": ""}, "variants"),
        ({"precision": "fp32", "reason": "r", "batch_precision": "int4", "from_batch": 8}, "variants"),
        ({"precision": "fp32", "reason": "r", "batch_precision": "int8"}, "belong together"),
        ({"precision": "fp32", "reason": "r", "from_batch": 8}, "belong together"),
        ({"precision": "fp32", "reason": "r", "batch_precision": "int8", "from_batch": 1}, "auto.from_batch must be a batch of at least 2, got 1"),
        ({"precision": "fp32", "reason": "r", "split_batch_from": True}, "auto.split_batch_from has a value of another kind, 'True'"),
        ({"precision": "fp32", "reason": "r", "split_batch_from": "8"}, "auto.split_batch_from has a value of another kind, '8'"),
        ({"precision": "fp32", "reason": "r", "color": "red"}, "color"),
        ({"precision": "fp32"}, "reason"),
    ],
    ids=str,
)
def test_a_selection_that_makes_no_sense_is_refused(auto: dict[str, Any], message: str, manifest: Manifest) -> None:
    data = json.loads(manifest.to_json())
    with pytest.raises((ValueError, TypeError), match=message):
        parse_manifest({**data, "auto": auto})


def test_the_seal_covers_everything_else(manifest: Manifest) -> None:
    data = json.loads(manifest.to_json())
    assert sealed({**data, "name": "other"})["sha256"] != data["sha256"] == sealed({**data, "sha256": "lost"})["sha256"]


SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "manifest.schema.json").read_text())


def schema_faults(data: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(SCHEMA).iter_errors(data)]


@pytest.mark.parametrize("name", ["classifier", "generator"])
def test_the_schema_describes_format_1_and_format_2(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    Draft202012Validator.check_schema(SCHEMA)
    assert schema_faults(json.loads((folder / MANIFEST).read_text())) == []
    found = Bundle(folder).manifest
    # plans are the host's: format 1's stay what they were, and tests/export checks that of a bundle that was just made
    present = replace(found, format=FORMAT, variants=tuple(replace(each, plan=None) for each in found.variants), auto=replace(found.auto, reason="r"))
    assert schema_faults(json.loads(present.to_json())) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("auto", "precision"), "int4"),
        (("auto", "from_batch"), 1),
        (("auto", "reason"), "r" * 200),
        (("variants", 0, "bytes"), "7714"),
        (("variants", 1, "target", "machines"), "x86_64"),
        (("golden", 0, "tolerance", "fp32", 0, "max_abs"), None),
        (("golden", 0, "inputs", 0, "sha256"), "0" * 63),
        (("contract", "inputs", 0, "pixels", "std"), [0, 0.5, 0.5]),
        (("contract", "task"), "prophecy"),
        (("provenance", "checkpoint_sha256"), None),
        (("surplus",), 1),
    ],
)
def test_the_schema_refuses_what_is_wrong(manifest: Manifest, place: tuple[Any, ...], value: Any) -> None:
    data = json.loads(replace(manifest, variants=tuple(replace(each, plan=None) for each in manifest.variants), auto=MEASURED).to_json())
    assert schema_faults(data) == []
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert schema_faults(data)


ONLY_SOME_HAVE = {"contract": {"detection"}, "output": {"names", "unit"}}  # left out of contracts of other tasks


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("variant", Variant), ("target", TargetCpu), ("selection", Selection), ("goldenCase", GoldenCase), ("file", File), ("tolerance", Tolerance)),
        *(("contract", Contract), ("input", Input), ("output", Output), ("pixels", Pixels), ("range", Range), ("detection", DetectionHead)),
    ],
)
def test_the_schema_has_the_fields_of_the_classes(name: str, kind: Any) -> None:
    """A field that is added to the manifest and not to its schema would fail here."""
    described, names = SCHEMA["$defs"][name], {each.name for each in fields(kind)}
    assert set(described["properties"]) == names and set(described["required"]) == names - ONLY_SOME_HAVE.get(name, set())
    assert set(SCHEMA["$defs"]["format2"]["properties"]) == {each.name for each in fields(Manifest)} | {"sha256"}


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_a_number_that_json_has_not_is_never_written(number: float) -> None:
    manifest = Bundle(Path(__file__).parents[1] / "fixtures" / "format2" / "classifier").manifest
    with pytest.raises(ValueError, match="JSON"):
        replace(manifest, provenance={"figure": number}).to_json()  # type: ignore[dict-item]
