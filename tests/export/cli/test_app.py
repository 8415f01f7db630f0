import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from edgeport_export import pipeline
from edgeport_export.cli.app import main
from edgeport_runtime import Bundle, BundleError, load

pytestmark = pytest.mark.usefixtures("fixed_latencies")


@pytest.fixture(scope="module")
def exported(checkpoint: Path, fix_latencies: Callable[[pytest.MonkeyPatch], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "cnn"
    command = ["export", "cnn", "--checkpoint", str(checkpoint), "--calibration", "digits", "--batch", "4", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as written:
        fix_latencies(patch)
        assert main(command) == 0
    for words in ("PyTorch", "fp32", "int8", "labels changed", "fp32 agrees with PyTorch at 1", "auto: int8, because int8 is "):
        assert words in written.getvalue()
    return out


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A copy, for a test to change."""
    return shutil.copytree(exported, tmp_path / "cnn")


def test_train_export_verify_predict(bundle: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle), "--checkpoint", str(checkpoint)]) == 0
    assert "golden outputs agree" in capsys.readouterr().out
    assert main(["verify", str(bundle), "--checkpoint", str(checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    assert load(bundle, precision="fp32")(np.zeros((32, 32, 3), np.uint8)).label in "0123456789"  # type: ignore[union-attr]
    assert Bundle(bundle).evidence()["speed"]["batch"] == Bundle(bundle).manifest.variants[1].plan["batch"] == 4


def test_verify_of_another_checkpoint_exits_1(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.safetensors"
    assert main(["train", "cnn", "--epochs", "1", "--seed", "7", "--out", str(other)]) == 0
    assert "held-out images" in capsys.readouterr().out
    assert main(["verify", str(bundle), "--checkpoint", str(other)]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_bench(bundle: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(bundle), "--batch", "2", "--rounds", "1", "--size", "8x8", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"edgeport fp32", "edgeport int8"}


def truncated(path: Path, folder: Path) -> Path:
    cut = folder / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:5000])
    return cut


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "cnn", "--checkpoint", "gone.safetensors", "--out", "{new}"], "gone.safetensors: expected a checkpoint, but there is no such file"),
        (["export", "cnn", "--checkpoint", "{cut}", "--out", "{new}"], "damaged or truncated"),
        (["export", "attention", "--checkpoint", "{checkpoint}", "--out", "{new}"], "unexpected: features.0.conv.bias"),
        (["export", "vgg", "--checkpoint", "{checkpoint}", "--out", "{new}"], "expected one of cnn, cnn-separable, resnet18"),
        (["export", "cnn", "--checkpoint", "{checkpoint}", "--out", "{folder}"], "exists already; give another folder, or replace it"),
        (["export", "cnn", "--checkpoint", "{checkpoint}", "--calibration", "folder:{folder}", "--out", "{new}"], "there are none in it"),
        (["export", "cnn", "--checkpoint", "{checkpoint}", "--calibration", "folder:{bad}", "--out", "{new}"], "a.png: expected an image"),
        (["export", "cnn", "--checkpoint", "{checkpoint}", "--calibration", "mnist", "--out", "{new}"], "got 'mnist'"),
        (["export", "cnn", "--checkpoint", "{checkpoint}", "--precision", "int4", "--out", "{new}"], "precisions must include fp32"),
        (["export", "cnn", "--checkpoint", "{checkpoint}", "--target", "riscv", "--out", "{new}"], "expected a target among x86-vnni, x86, arm64, got 'riscv'"),
        (["export", "cnn", "--checkpoint", "{checkpoint}", "--plan", "gone.json", "--out", "{new}"], "gone.json: the int8 plan cannot be read"),
        (["export", "cnn", "--checkpoint", "{checkpoint}", "--metric", "nowhere", "--out", "{new}"], "expected a metric as my.module:function, got 'nowhere'"),
        (["export", "cnn"], "Missing option"),
        (["verify", "{folder}", "--checkpoint", "{checkpoint}"], "there is no manifest.json"),
        (["train", "cnn", "--out", "{new}.pt"], "checkpoints are written as .safetensors"),
        (["train", "cnn", "--out", "{checkpoint}"], "exists already; give another file with --out"),
        (["train", "cnn", "--weights", "none", "--out", "{new}.safetensors"], "cnn takes no --weights"),
        (["train", "cnn", "--data", "photos", "--out", "{new}.safetensors"], "learns from labeled images"),
        (["train", "cnn", "--epochs", "-1", "--out", "{new}.safetensors"], "at least 1 epoch"),
        (["train", "cnn", "--size", "2x2", "--out", "{new}.safetensors"], "the height of 'pixels' is 2 px, which is not within its own range 4..1024"),
        (["bench", "{folder}"], "there is no manifest.json"),
        (["bench", "{folder}", "--size", "big"], "expected a size as HEIGHTxWIDTH"),
        (["bench", "{folder}", "--against", "caffe"], "expected --against torch"),
        (["nonsense"], "No such command"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    arguments: list[str], message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("folder", "bad"):
        (tmp_path / name).mkdir()
    (tmp_path / "bad" / "a.png").write_text("no image")
    names = {"checkpoint": checkpoint, "cut": truncated(checkpoint, tmp_path), "new": tmp_path / "new", "folder": tmp_path / "folder", "bad": tmp_path / "bad"}
    before = sorted(path for path in tmp_path.rglob("*"))
    assert main([argument.format(**names) for argument in arguments]) == 2
    err = capsys.readouterr().err
    sentence = err.strip().splitlines()[-1]
    assert message in sentence and sentence.startswith("edgeport: ")
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_ctrl_c_exits_130(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "answer_golden", interrupted)
    assert main(["export", "cnn", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "new")]) == 130
    assert "interrupted" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("edgeport 0.")
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("train", "export", "verify", "bench", "demo"))


@pytest.mark.parametrize("number", [signal.SIGINT, *(pytest.param(number, marks=pytest.mark.long) for number in (signal.SIGTERM, signal.SIGHUP))])
def test_a_signal_in_the_middle_of_an_export_leaves_nothing(number: int, checkpoint: Path, tmp_path: Path) -> None:
    """In a process of its own, while it times candidates in processes of their own."""
    awake = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a test run in the background hands on a SIGINT that is ignored
    command = [sys.executable, "-c", f"{awake}; import sys; from edgeport_export.cli.app import main; sys.exit(main())"]
    arguments = ["export", "cnn", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "bundle")]
    process = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    before = next((line for line in process.stderr if "timing products" in line), "it never came to that")
    time.sleep(0.5)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert "timing products" in before and process.returncode == 130 and "interrupted; nothing was left half-written" in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_diff(bundle: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    assert main(["export", "cnn", "--checkpoint", str(checkpoint), "--dynamic", "batch=1..4", "--out", str(other)]) == 0
    capsys.readouterr()
    assert main(["diff", str(bundle), str(bundle)]) == 0
    assert "do not differ" in capsys.readouterr().out
    assert main(["diff", str(bundle), str(other), "--json"]) == 1
    found = {each["what"]: (each["first"], each["second"]) for each in json.loads(capsys.readouterr().out)}
    assert found["contract.axes.batch.high"] == ("64", "4") and found["contract.axes.height.low"] == ("4", "")
    assert "fp32: sha256" in found and "provenance.torch" not in found
    with pytest.raises(BundleError):
        Bundle(tmp_path / "nothing")


def test_paths_may_hold_brackets(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "[bold]a [x]"
    assert main(["export", "cnn", "--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    assert "[bold]a" in capsys.readouterr().out
    assert load(out).check()


def test_bench_against_another_network_is_refused(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.safetensors"
    assert main(["train", "cnn", "--epochs", "1", "--size", "16x16", "--out", str(other)]) == 0
    capsys.readouterr()
    assert main(["bench", str(bundle), "--against", "torch", "--checkpoint", str(other), "--rounds", "1"]) == 2
    assert "made for another contract" in capsys.readouterr().err
