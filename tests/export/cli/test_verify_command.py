import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeport_export.cli.app import main
from edgeport_export.cli.verify_command import VerifyJob, run_verify
from edgeport_export.progress import no_progress


def test_two_models_exit_codes_and_json(tiny_bundle: Path, capsys: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    assert main(["verify", str(tiny_bundle), str(tiny_bundle / "model.onnx")]) == 0
    assert "agree on 9 inputs (sweep)" in capsys.readouterr().out
    assert main(["verify", f"{tiny_bundle}@int8", str(tiny_bundle), "--sqnr-floor", "10", "--inputs", "golden", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "golden"
    assert main(["verify", str(tiny_bundle), str(checkpoint), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["passed"] is False and "the shapes differ" in told["outputs"][0]["faults"][0]


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (lambda bundle: VerifyJob(first=str(bundle / "model.onnx")), "model.onnx is no bundle's folder: name a second model"),
        (lambda bundle: VerifyJob(first=f"{bundle}@int8"), "@int8 is no bundle's folder: name a second model"),
        (lambda bundle: VerifyJob(first=str(bundle), inputs="sweep"), "--inputs are for two models, or the images of --stages"),
        (lambda bundle: VerifyJob(first=str(bundle), second=str(bundle), model="a:b"), "--checkpoint and --model name the network of a single bundle"),
        (lambda bundle: VerifyJob(first=str(bundle), second=str(bundle), contract=Path("gone")), "gone: the contract cannot be read"),
        (lambda bundle: VerifyJob(first=str(bundle), second=str(bundle), inputs="gone"), "gone: expected sweep, golden, a folder of images"),
        (lambda bundle: VerifyJob(first=str(bundle), second=str(bundle), max_changed=-5), "--max-changed is what may be lost, a number of at least 0, got -5"),
    ],
)
def test_wrong_use_is_told(job: Callable[[Path], VerifyJob], words: str, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exception) as caught:
        run_verify(job(tiny_bundle), no_progress)
    assert words in str(caught.value)
    assert main(["verify", str(tiny_bundle), "nowhere"]) == 2
