"""What a report may say, against the files themselves; and of bundles that have less."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeport_export.report.facts import BundleFacts
from edgeport_export.report.page import report_page
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


def test_metrics_have_the_names_that_people_use() -> None:
    assert BundleFacts(Bundle(FIXTURES / "format2" / "generator")).metric_name == "PSNR"
    assert BundleFacts(Bundle(FIXTURES / "format2" / "classifier")).metric_name == "accuracy"


def test_format_1_says_what_it_has() -> None:
    facts = BundleFacts(Bundle(FIXTURES / "format1" / "classifier"))
    stored = json.loads((FIXTURES / "format1" / "classifier" / EVIDENCE).read_text())
    assert [each.ms_per_call for each in facts.variants] == [{8: stored["speed"]["ms_per_call"][name]} for name in ("fp32", "int8")]
    assert facts.quality(facts.torch_quality) == "100.00%" and facts.products and not facts.curve and not facts.recovery
    assert facts.clipped[0] == {"layer": "conv2d", "value": "conv2d", "share": stored["int8"]["audit"]["clipped"]["conv2d"]}


def test_without_evidence_the_manifest_is_left(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FIXTURES / "format2" / "classifier", tmp_path / "bundle"))
    for content in (None, "{", "[]", '{"summary": 5}'):
        (folder / EVIDENCE).unlink(missing_ok=True)
        if content is not None:
            (folder / EVIDENCE).write_text(content)
        facts = BundleFacts(Bundle(folder))
        assert [each.bytes for each in facts.variants] == [each.bytes for each in facts.manifest.variants]
        assert facts.plan is not None and not facts.parity and facts.metric is None and facts.parity_passed is None


def test_what_verify_found_about_another_bundle_or_in_another_form_is_refused() -> None:
    bundle = Bundle(FIXTURES / "format2" / "classifier")
    with pytest.raises(InputError, match=r"this verification is of another bundle than .*classifier: make it with edgeport verify .* --json > FILE"):
        BundleFacts(bundle, "b", {"manifest_sha256": "0" * 64, "passed": True})
    with pytest.raises(InputError, match=r"this verification is not as edgeport verify prints it: 'stages' is 5; make it again"):
        BundleFacts(bundle, "b", {"manifest_sha256": bundle.sha256, "passed": True, "stages": 5})


def places(data: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        found.append((data, key))
        places(value, found)
    return found


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
