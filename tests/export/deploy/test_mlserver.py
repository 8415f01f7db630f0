"""MLServer's folder. That the server answers, and gathers, is seen in tests/test_deployments.py."""

import json
from pathlib import Path

import pytest

from edgeport_export.deploy.deployment import read_deployment
from edgeport_export.deploy.mlserver import VERSION, deploy_mlserver
from edgeport_runtime import Bundle, InputError, load

FIXTURES = Path(__file__).parents[2] / "fixtures" / "format2"
CLASSIFIER = Bundle(FIXTURES / "classifier")


def test_settings_runtime_and_the_bundle_itself(tmp_path: Path) -> None:
    folder = deploy_mlserver(CLASSIFIER, tmp_path / "d", name="tiny", precision="int8")
    model = json.loads((folder / "tiny" / "model-settings.json").read_text())
    assert (model["name"], model["implementation"]) == ("tiny", "runtime.BundleModel")
    assert model["parameters"]["extra"] == {"precision": "int8", "batch": CLASSIFIER.manifest.contract.axes["batch"].high}
    assert json.loads((folder / "settings.json").read_text())["parallel_workers"] == 0
    assert (folder / "requirements.txt").read_text().split() == [f"mlserver=={VERSION}"]
    with load(folder / "tiny" / "bundle", precision="int8") as copied:
        assert copied.check()
    assert Bundle(folder / "tiny" / "bundle").sha256 == CLASSIFIER.sha256 and read_deployment(folder).altered == ()
    compile((folder / "tiny" / "runtime.py").read_text(), "runtime.py", "exec")


def test_the_bundles_name_and_what_auto_takes(tmp_path: Path) -> None:
    folder = deploy_mlserver(CLASSIFIER, tmp_path / "d")
    model = json.loads((folder / "tiny-classifier" / "model-settings.json").read_text())
    assert model["parameters"]["extra"]["precision"] == "auto"


@pytest.mark.parametrize(("given", "message"), [({"name": "../x"}, "a model's name is of letters"), ({"precision": "fp16"}, "holds no fp16")])
def test_bad_input_is_one_sentence(given: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        deploy_mlserver(CLASSIFIER, tmp_path / "d", **given)  # type: ignore[arg-type]
    assert not (tmp_path / "d").exists()
