"""Every format that was ever written stays readable, and format 2 is frozen: a bundle of it has these fields and no others.

A field more belongs to format 3: then FORMAT goes up, the reader of format 2 keeps its fields, and `tests/fixtures/make.py` writes a fixture beside these.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from edgeport_export import read_plan
from edgeport_runtime import Bundle, load
from edgeport_runtime.bundle import MANIFEST
from edgeport_runtime.manifest import FORMAT

FIXTURES = Path(__file__).parent / "fixtures"
SCHEMA = Path(__file__).parents[1] / "docs" / "manifest.schema.json"
FROZEN = "361f14613376a9ce710bc9c075efe253ea13c3e57744de26d38cbdfc65c165aa"  # of the schema's part for format 2: what it holds may not change any more
FOLDERS = sorted(FIXTURES.glob("format*/*"))


def test_each_format_has_its_fixtures() -> None:
    assert {int(path.parent.name.removeprefix("format")) for path in FOLDERS} == set(range(1, FORMAT + 1))
    for path in FOLDERS:
        assert f"format{json.loads((path / MANIFEST).read_text())['format']}" == path.parent.name


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_bundle_of_each_format_loads_answers_and_passes(folder: Path, precision: str) -> None:
    with load(folder, precision=precision) as model:
        assert model.check()
        answers = [model(np.full((16, 16, 3), level, np.uint8)) for level in (30, 220)]
        assert folder.name == "generator" or [each.label for each in answers] == ["dark", "bright"]  # type: ignore[union-attr]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_plan_of_each_format_is_read_by_the_host(folder: Path) -> None:
    plan = read_plan(folder)
    assert plan.integer and set(plan.integer) <= set(plan.findings)


def test_format_2_is_frozen() -> None:
    """Comments on fields may change; what a field is may not."""
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    assert hashlib.sha256(json.dumps(_bare(schema["$defs"]), sort_keys=True).encode()).hexdigest() == FROZEN


def _bare(value: Any) -> Any:
    """Without its descriptions."""
    if isinstance(value, dict):
        return {key: _bare(each) for key, each in value.items() if key != "description" or not isinstance(each, str)}
    return [_bare(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("folder", [path for path in FOLDERS if path.parent.name == "format2"], ids=lambda path: path.name)
def test_a_manifest_that_is_written_anew_is_the_stored_one(folder: Path) -> None:
    """To the last byte, so nothing that is written has changed."""
    assert Bundle(folder).manifest.to_json() == (folder / MANIFEST).read_text()
