"""What a page and Node read: the bundle's files, its contract as JSON, arrays as plain bytes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
import pytest

from edgeport_export.deploy.script_files import script_precisions, write_script_files
from edgeport_runtime import Bundle, Contract, InputError

FIXTURES = Path(__file__).parents[2] / "fixtures" / "format2"
CLASSIFIER, GENERATOR = Bundle(FIXTURES / "classifier"), Bundle(FIXTURES / "generator")


@pytest.mark.parametrize("bundle", [CLASSIFIER, GENERATOR], ids=["classifier", "generator"])
def test_everything_is_the_bundles(bundle: Bundle, tmp_path: Path) -> None:
    write_script_files(tmp_path, bundle, ["fp32", "int8"], ["edgeport.mjs"], photo={"dims": [1]})
    about = json.loads((tmp_path / "about.json").read_text())
    assert Contract.from_json(json.dumps(about["contract"])) == bundle.manifest.contract
    assert about["precision"] == bundle.manifest.auto.precision and about["photo"] == {"dims": [1]} and (tmp_path / "edgeport.mjs").exists()
    assert about["height_first"] is (int(PIL.__version__.split(".")[0]) >= 13)
    for precision, file in about["models"].items():
        assert (tmp_path / file).read_bytes() == bundle.read(bundle.variant(precision))
    cases = json.loads((tmp_path / "golden.json").read_text())["cases"]
    stored = [case for case in bundle.manifest.golden if case.sizes is None]
    assert [each["name"] for each in cases] == [case.folder for case in stored]
    name = bundle.manifest.contract.outputs[0].name
    for each, case in zip(cases, stored, strict=True):
        for precision, file in (("fp32", case.levels.get(name, case.outputs[0])), ("int8", case.host["int8"][0])):
            (described,) = each["expected"][precision]
            got = np.frombuffer((tmp_path / described["file"]).read_bytes(), described["dtype"]).reshape(described["dims"])
            np.testing.assert_array_equal(got, bundle.tensor(file))
            assert described["tolerance"] == {"max_abs": case.tolerance[precision][0].max_abs, "rms": case.tolerance[precision][0].rms}
        (given,) = each["inputs"]
        np.testing.assert_array_equal(np.frombuffer((tmp_path / given["file"]).read_bytes(), np.uint8).reshape(given["dims"]), bundle.tensor(case.inputs[0]))


def test_a_variant_that_auto_does_not_take_can_go_alone(tmp_path: Path) -> None:
    for precision in ("fp32", "int8"):
        (tmp_path / precision).mkdir()
        write_script_files(tmp_path / precision, CLASSIFIER, [precision], [])
        about = json.loads((tmp_path / precision / "about.json").read_text())
        assert about["precision"] == precision and list(about["models"]) == [precision]
        assert {each for case in json.loads((tmp_path / precision / "golden.json").read_text())["cases"] for each in case["expected"]} == {precision}


def test_what_cannot_run_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert script_precisions(CLASSIFIER, None) == ["fp32", "int8"] and script_precisions(CLASSIFIER, "int8") == ["int8"]
    with pytest.raises(InputError, match=r"holds no fp16 that runs there: give one of fp32, int8 \(--precision\), or leave it out"):
        script_precisions(CLASSIFIER, "fp16")
    bundle = Bundle(FIXTURES / "classifier")
    contract = bundle.manifest.contract
    bundle.manifest = replace(bundle.manifest, contract=replace(contract, outputs=(replace(contract.outputs[0], dtype="float16"),)))
    with pytest.raises(InputError, match="JavaScript has no arrays for the dtype of logits"):
        script_precisions(bundle, None)
    tensors = replace(
        contract, task="tensors", labels=(), inputs=(replace(contract.inputs[0], pixels=None),), outputs=(replace(contract.outputs[0], kind="tensor"),)
    )
    bundle.manifest = replace(bundle.manifest, contract=tensors)
    with pytest.raises(InputError, match="takes tensors, and these folders are for models of one image"):
        script_precisions(bundle, None)
