import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeport_export import ExportError
from edgeport_export.quantization.plan import Finding, plan_from_dict, read_plan
from edgeport_runtime.manifest import Selection

STORED = Path(__file__).parents[2] / "fixtures" / "format1"
FORMAT_1 = ("agreement", "probes", "unseen", "format")  # fields that the first plans lack


def sealed(body: dict[str, Any]) -> dict[str, Any]:
    body = {name: value for name, value in body.items() if name != "sha256"}
    return {**body, "sha256": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()}


def test_a_plan_is_read_from_a_bundle_a_manifest_or_a_file_of_its_own(tiny_bundle: Path, tmp_path: Path) -> None:
    plan = read_plan(tiny_bundle)
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_dict()))
    assert plan == read_plan(tiny_bundle / "manifest.json") == read_plan(tmp_path / "plan.json")
    assert set(plan.integer) == {"conv1/Conv", "conv2/Conv", "head/Gemm"} and plan.integer_share == 1.0
    assert plan.speedup == 2.0 and plan.selection.precision == "int8"


@pytest.mark.parametrize("name", ["classifier", "generator"])
def test_a_plan_of_format_1_is_read_under_the_present_names(name: str) -> None:
    stored = next(each for each in json.loads((STORED / name / "manifest.json").read_text())["variants"] if each["precision"] == "int8")["plan"]
    plan = read_plan(STORED / name)
    assert {key: list(pair) for key, pair in plan.ranges.items()} == stored["limits"]
    assert plan.selection == Selection(precision=stored["auto"]["precision"], reason=stored["auto"]["reason"])
    assert plan.findings == {
        key: Finding(macs=each["multiplications"], speedup=each["slower"], sqnr_db=each["sqnr_db"]) for key, each in stored["findings"].items()
    }
    assert plan_from_dict(plan.to_dict()) == plan  # and written as the present format


def test_a_plan_of_before_a_field_came_is_read(tiny_bundle: Path) -> None:
    plan = read_plan(tiny_bundle)
    old = {name: value for name, value in plan.to_dict().items() if name not in (*FORMAT_1, "ranges", "selection", "findings")}
    old |= {"limits": plan.to_dict()["ranges"], "auto": {"precision": "int8", "reason": "it pays"}}
    old |= {"findings": {name: {"multiplications": each.macs, "slower": each.speedup, "sqnr_db": each.sqnr_db} for name, each in plan.findings.items()}}
    assert plan_from_dict(sealed(old)) == replace(plan, probes=0, unseen=False, selection=Selection(precision="int8", reason="it pays"))


@pytest.mark.parametrize("text", ["", "[]", '{"target": "x86"}', "no json"])
def test_a_file_that_is_no_plan_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ExportError, match="int8 plan"):
        read_plan(tmp_path / "plan.json")
    with pytest.raises(ExportError, match=r"gone\.json: the int8 plan cannot be read"):
        read_plan(tmp_path / "gone.json")


@pytest.mark.parametrize(
    "change",
    [{"ranges": {}}, {"integer": "conv1/Conv"}, {"integer": ["conv1/Conv", "gone"]}, {"selection": {"precision": "int4"}}, {"sqnr_db": 99.0}, {"findings": {}}],
    ids=str,
)
def test_a_plan_that_was_edited_is_refused(change: dict[str, Any], tiny_bundle: Path) -> None:
    with pytest.raises(ExportError, match="was changed after it was made"):
        plan_from_dict(read_plan(tiny_bundle).to_dict() | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "has format 99, and this edgeport reads up to 2: upgrade edgeport, or make a new plan"),
        ({"format": "2"}, "has format '2'"),
        ({"color": "red"}, "missing nothing, unknown color"),
        ({"integer": None}, "this is no int8 plan of edgeport"),
        ({"ranges": {"x": 1}}, "this is no int8 plan of edgeport"),
        ({"findings": {"x": {"speed": 1}}}, "this is no int8 plan of edgeport"),
    ],
    ids=str,
)
def test_a_plan_of_another_form_is_refused_even_with_a_seal(change: dict[str, Any], message: str, tiny_bundle: Path) -> None:
    with pytest.raises(ExportError, match=message):
        plan_from_dict(sealed(read_plan(tiny_bundle).to_dict() | change))


def test_a_bundle_without_int8_has_no_plan(tmp_path: Path) -> None:
    for path in STORED.joinpath("classifier").rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(STORED / "classifier")
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["variants"] = [each for each in manifest["variants"] if each["precision"] == "fp32"]
    manifest["auto"] = {"precision": "fp32", "reason": "made without int8"}
    (tmp_path / "manifest.json").write_text(json.dumps(sealed_manifest(manifest)))
    with pytest.raises(ExportError, match="this bundle has no int8 plan to replay"):
        read_plan(tmp_path)


def sealed_manifest(manifest: dict[str, Any]) -> dict[str, Any]:
    from edgeport_runtime.manifest import sealed as sealed_by_runtime

    return dict(sealed_by_runtime(manifest))
