import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import onnx
import pytest
from jsonschema import Draft202012Validator

from edgeport_export import ExportOptions, pipeline
from edgeport_export.bundle.environment import versions
from edgeport_export.errors import ExportError
from edgeport_export.network.reference import weights_sha256
from edgeport_export.quantization.plan import plan_from_dict
from edgeport_runtime import Bundle
from edgeport_runtime.manifest import FORMAT, Manifest

pytestmark = pytest.mark.usefixtures("fixed_latencies")


def test_the_manifest_describes_the_files_beside_it(tiny_bundle: Path) -> None:
    manifest = Bundle(tiny_bundle).manifest
    assert manifest.format == FORMAT and [each.file for each in manifest.variants] == ["model.onnx", "model.int8.onnx"]
    for variant in manifest.variants:
        data = (tiny_bundle / variant.file).read_bytes()
        model = onnx.load_from_string(data)
        assert (variant.sha256, variant.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
        assert (variant.opset, variant.ir_version) == (next(each.version for each in model.opset_import if not each.domain), model.ir_version)
        onnx.checker.check_model(model, full_check=True)
    listed = {each.file for case in manifest.golden for each in (*case.inputs, *case.outputs, *sum(case.host.values(), ()))}
    assert listed == {str(path.relative_to(tiny_bundle)) for path in tiny_bundle.glob("*/*.pb")}


def test_the_plan_belongs_to_the_int8_variant_and_the_selection_to_the_bundle(tiny_bundle: Path) -> None:
    bundle = Bundle(tiny_bundle)
    fp32, int8 = bundle.manifest.variants
    plan = plan_from_dict(int8.plan)
    assert (fp32.target, fp32.plan) == (None, None) and int8.target is not None and int8.target.name == plan.target
    assert bundle.manifest.auto == plan.selection and json.loads((tiny_bundle / "manifest.json").read_text())["auto"] == asdict(plan.selection)


def test_provenance_is_the_callers_the_weights_hash_and_the_versions(make_bundle: Callable[..., Path], tiny: ModuleType, tmp_path: Path) -> None:
    given = {"checkpoint_sha256": "1" * 64}
    out = make_bundle(tmp_path / "b", provenance=given, options=ExportOptions(precisions=("fp32",)), held_out=())
    assert Bundle(out).manifest.provenance == {**versions(), "weights_sha256": weights_sha256(tiny.trained_classifier()), **given}
    assert {path.name for path in out.iterdir() if path.is_file()} == {"manifest.json", "evidence.json", "model.onnx"}


def test_both_texts_are_json_for_any_reader(tiny_bundle: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    for name in ("manifest.json", "evidence.json"):
        text = (tiny_bundle / name).read_text(encoding="utf-8")
        assert json.loads(text, parse_constant=refuse) and text.endswith("\n")


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_a_number_that_json_cannot_hold_leaves_no_bundle(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: float
) -> None:
    contents_of = pipeline._contents
    monkeypatch.setattr(pipeline, "_contents", lambda *given: replace(contents_of(*given), provenance={"figure": number}))
    with pytest.raises(ExportError, match=r"the bundle that was made cannot be read \(.*; this is a fault of edgeport: please report it"):
        make_bundle(tmp_path / "b", options=ExportOptions(precisions=("fp32",)), held_out=())
    assert not (tmp_path / "b").exists() and not [each for each in tmp_path.iterdir() if each.is_dir()]


def test_what_the_runtime_would_refuse_is_read_before_it_is_put_in_place(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Manifest, "to_json", lambda self: "{}\n")
    with pytest.raises(ExportError, match=r"the bundle that was made cannot be read \(.*; this is a fault of edgeport: please report it"):
        make_bundle(tmp_path / "b", options=ExportOptions(precisions=("fp32",)), held_out=())
    assert not (tmp_path / "b").exists()


def test_a_manifest_that_was_just_written_fits_its_schema(tiny_bundle: Path) -> None:
    schema = json.loads((Path(__file__).parents[3] / "docs" / "manifest.schema.json").read_text())
    data = json.loads((tiny_bundle / "manifest.json").read_text())
    assert [error.message for error in Draft202012Validator(schema).iter_errors(data)] == [] and data["variants"][1]["plan"]["selection"] == data["auto"]
    assert set(schema["$defs"]["plan"]["properties"]) == set(data["variants"][1]["plan"])
