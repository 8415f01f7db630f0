"""What a report may say, against the files themselves; and of bundles that have less."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeport_export.report.facts import BundleFacts
from edgeport_export.report.page import Subject, report_page
from edgeport_runtime import Bundle, InputError
from edgeport_runtime.bundle import EVIDENCE

FIXTURES = Path(__file__).parents[2] / "fixtures"
ALL = sorted(FIXTURES.glob("format*/*"))


@pytest.fixture
def evidence() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((FIXTURES / "format2" / "classifier" / EVIDENCE).read_text())
    return data


def test_every_figure_is_the_files(evidence: dict[str, Any]) -> None:
    facts = BundleFacts(Bundle(FIXTURES / "format2" / "classifier"))
    assert [each.precision for each in facts.variants] == ["fp32", "int8"]
    for each in facts.variants:
        stored = evidence["summary"]["variants"][each.precision]
        assert (each.bytes, each.quality, each.load_ms, each.peak_mib) == tuple(stored[key] for key in ("bytes", "quality", "load_ms", "peak_mib"))
        assert {str(batch): ms for batch, ms in each.ms_per_call.items()} == stored["ms_per_call"]
        assert {str(batch): times for batch, times in each.speedup.items()} == stored["speedup"]
        assert (each.sqnr_db, each.integer_share) == (stored["sqnr_db"], stored["integer_share"])
    assert (facts.metric, facts.images, facts.torch_quality) == ("accuracy", 30, evidence["quality"]["values"]["torch"])
    assert [(each.name, each.sqnr_db) for each in facts.products] == [(name, each["sqnr_db"]) for name, each in evidence["int8"]["findings"].items()]
    assert [each.onnx for each in facts.parity] == [each["onnx"] for each in evidence["parity"]["fp32"]["cases"]] and facts.parity_passed is True
    assert facts.warnings == evidence["summary"]["warnings"]


def test_format_1_says_what_it_has() -> None:
    facts = BundleFacts(Bundle(FIXTURES / "format1" / "classifier"))
    stored = json.loads((FIXTURES / "format1" / "classifier" / EVIDENCE).read_text())
    assert [each.ms_per_call for each in facts.variants] == [{8: stored["speed"]["ms_per_call"][name]} for name in ("fp32", "int8")]
    assert facts.quality(facts.torch_quality) == "100.00%" and facts.products and not facts.curve and not facts.recovery and not facts.clipped


def test_without_evidence_the_manifest_is_left(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FIXTURES / "format2" / "classifier", tmp_path / "bundle"))
    for content in (None, "{", "[]", '{"summary": 5}'):
        (folder / EVIDENCE).unlink(missing_ok=True)
        if content is not None:
            (folder / EVIDENCE).write_text(content)
        facts = BundleFacts(Bundle(folder))
        assert [each.bytes for each in facts.variants] == [each.bytes for each in facts.manifest.variants]
        assert facts.plan is not None and not facts.parity and facts.metric is None and facts.parity_passed is None


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


def found(bundle: Bundle) -> dict[str, Any]:
    return {**FOUND, "manifest_sha256": bundle.sha256}


def test_what_verify_found_is_told_as_it_was_printed() -> None:
    bundle = Bundle(FIXTURES / "format2" / "classifier")
    facts = BundleFacts(bundle, "b", found(bundle))
    assert dict(facts.verified) == {
        "it was made of these weights": True,
        "its contract is what the network promises": True,
        "fp32 agrees with PyTorch at other inputs than the export's": True,
        "the stored answers are PyTorch's": True,
        "fp32 keeps its golden cases": True,
        "int8 keeps its golden cases": False,
        "fp32 comes out the same, byte for byte": True,
        "b@int8 and the network agree": True,
    }
    assert [(each.name, each.largest, each.rms, each.changed) for each in facts.stages] == [
        ("decode", 0.0, 0.0, 0),
        ("resize", 0.25, 0.125, 3),
        ("end to end", None, None, None),
    ]
    assert facts.stage_images == 7 and facts.stage_faults == ["the mean is another"]


def test_what_verify_found_about_another_bundle_is_refused() -> None:
    with pytest.raises(InputError, match=r"this verification is of another bundle than .*classifier: make it with edgeport verify .* --json > FILE"):
        BundleFacts(Bundle(FIXTURES / "format2" / "classifier"), "b", found(Bundle(FIXTURES / "format2" / "generator")))


def places(data: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        found.append((data, key))
        places(value, found)
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 10_000), value=st.sampled_from([None, 5, "x", [], {}, [5], {"x": 5}, True, -1.5, "<b>", {"1": "x"}]))
def test_evidence_that_somebody_changed_breaks_no_report(where: int, value: object, evidence: dict[str, Any], tmp_path: Path) -> None:
    """Nobody vouches for it."""
    folder = tmp_path / "bundle"
    if not folder.exists():
        shutil.copytree(FIXTURES / "format2" / "classifier", folder)
    changed = json.loads(json.dumps({key: each for key, each in evidence.items() if key != "int8"} | {"int8": {"audit": evidence["int8"]["audit"]}}))
    listed = places(changed, [])
    container, key = listed[where % len(listed)]
    container[key] = value
    (folder / EVIDENCE).write_text(json.dumps(changed))
    assert "<b>" not in report_page([Bundle(folder)], images=False).replace("<b>fp32", "").replace("<b>int8", "")


@settings(max_examples=25, deadline=None)
@given(where=st.integers(0, 10_000), value=st.sampled_from([None, 5, "x", [], {}, [5], {"x": 5}, True, -1.5, "<b>", {"1": "x"}]))
def test_a_verification_that_somebody_changed_breaks_no_report(where: int, value: object) -> None:
    bundle = Bundle(FIXTURES / "format2" / "classifier")
    changed = json.loads(json.dumps(FOUND))
    listed = places(changed, [])
    container, key = listed[where % len(listed)]
    container[key] = value
    page = report_page([Subject(bundle=bundle, verification={**changed, "manifest_sha256": bundle.sha256})], images=False)
    assert "<b>" not in page.replace("<b>fp32", "").replace("<b>int8", "")
