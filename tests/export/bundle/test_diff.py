import json
import shutil
from pathlib import Path

import pytest

from edgeport_export.bundle.diff import Difference, diff_bundles
from edgeport_runtime import AlteredError, Bundle
from edgeport_runtime.bundle import MANIFEST
from edgeport_runtime.manifest import sealed

STORED = Path(__file__).parents[2] / "fixtures" / "format1"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STORED / "classifier", tmp_path / "copy"))


def test_a_bundle_does_not_differ_from_its_copy_whatever_was_measured(copy: Path) -> None:
    evidence = json.loads((copy / "evidence.json").read_text())
    evidence["speed"], evidence["machine"] = {"batch": 1}, {"processor": "another"}
    (copy / "evidence.json").write_text(json.dumps(evidence))
    assert diff_bundles(Bundle(STORED / "classifier"), Bundle(copy)) == []


def test_what_was_changed_is_named_with_both_values(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    before = manifest["contract"]["labels"][0]
    manifest["name"], manifest["contract"]["labels"][0] = "other", "black"
    (copy / MANIFEST).write_text(json.dumps(sealed(manifest)))
    found = diff_bundles(Bundle(STORED / "classifier"), Bundle(copy))
    assert found[0] == Difference(what="name", first="tiny-classifier", second="other")
    assert [each.what for each in found] == ["name", "contract.labels"] and before in found[1].first and "black" in found[1].second


def test_a_variant_that_one_bundle_lacks_is_listed(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["variants"] = [each for each in manifest["variants"] if each["precision"] == "fp32"]
    manifest["auto"] = {"precision": "fp32", "reason": "made without int8"}
    (copy / MANIFEST).write_text(json.dumps(sealed(manifest)))
    found = {each.what: each for each in diff_bundles(Bundle(STORED / "classifier"), Bundle(copy))}
    assert found["int8: QuantizeLinear nodes"].second == "" and int(found["int8: QuantizeLinear nodes"].first) > 0
    assert {"int8: sha256", "int8: bytes", "auto.reason"} <= set(found) and "fp32: sha256" not in found


def test_two_networks_differ_down_to_their_operators() -> None:
    found = {each.what for each in diff_bundles(Bundle(STORED / "classifier"), Bundle(STORED / "generator"))}
    assert {"contract.task", "fp32: sha256", "fp32: Tanh nodes", "fp32: Gemm nodes", "test_data_set_0/output_0.pb", "evidence.quality.metric"} <= found


def test_a_file_that_was_altered_is_refused(copy: Path) -> None:
    path = copy / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(AlteredError):
        diff_bundles(Bundle(STORED / "classifier"), Bundle(copy))
