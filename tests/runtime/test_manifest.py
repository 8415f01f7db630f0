import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from edgeport_runtime import Bundle
from edgeport_runtime.bundle import MANIFEST
from edgeport_runtime.manifest import FORMAT, Manifest, Selection, parse_manifest, sealed, selection_of_format_1


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
    assert [each.target for each in found.variants] == [each["plan"].get("target") for each in stored["variants"]]
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
        ({"precision": "fp32", "reason": "r", "split_batch_from": True}, "auto.split_batch_from must be a batch of at least 2, got True"),
        ({"precision": "fp32", "reason": "r", "split_batch_from": "8"}, "got '8'"),
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
