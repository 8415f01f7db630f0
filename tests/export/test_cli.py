import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeport_export.cli import main
from edgeport_runtime import load

pytestmark = pytest.mark.usefixtures("even_race")


@pytest.fixture
def bundle(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["export", "cnn", "--checkpoint", str(checkpoint), "--calibration", "digits", "--out", str(tmp_path / "cnn")]) == 0
    text = capsys.readouterr().out
    for said in ("PyTorch: ", "fp32", "int8", "labels changed", "fp32 agrees with PyTorch at 9 sizes", "auto: int8"):
        assert said in text
    return tmp_path / "cnn"


def test_train_export_verify_predict(bundle: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle), "--checkpoint", str(checkpoint)]) == 0
    assert "golden outputs agree" in capsys.readouterr().out
    assert main(["verify", str(bundle), "--checkpoint", str(checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    assert load(bundle, precision="fp32")(np.zeros((32, 32, 3), np.uint8)).label in "0123456789"  # type: ignore[union-attr]


def test_verify_of_another_checkpoint_exits_1(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.safetensors"
    assert main(["train", "cnn", "--epochs", "1", "--seed", "7", "--out", str(other)]) == 0
    assert "held-out images" in capsys.readouterr().out
    assert main(["verify", str(bundle), "--checkpoint", str(other)]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_bench(bundle: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(bundle), "--batch", "2", "--rounds", "1", "--size", "8x8", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"edgeport fp32", "edgeport int8"}


def test_train_on_a_folder_of_your_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    for label, level in (("night", 40), ("day", 200)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for index in range(40):
            Image.fromarray(np.clip(generator.normal(level, 25, (24, 30, 3)), 0, 255).astype(np.uint8)).save(tmp_path / "data" / label / f"{index}.png")
    out = tmp_path / "mine.safetensors"
    assert main(["train", "cnn", "--data", f"folder:{tmp_path / 'data'}", "--epochs", "5", "--size", "16", "--out", str(out)]) == 0
    assert "100.00% accuracy" in capsys.readouterr().out
    assert main(["export", "cnn", "--checkpoint", str(out), "--out", str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quality"]["values"]["fp32"] == 1.0
    assert load(tmp_path / "b").contract.labels == ("day", "night")


def truncated(path: Path, folder: Path) -> Path:
    cut = folder / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:5000])
    return cut


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "cnn", "--checkpoint", "gone.safetensors", "--out", "{new}"], "gone.safetensors: expected a checkpoint, but there is no such file"),
        (["export", "cnn", "--checkpoint", "{cut}", "--out", "{new}"], "damaged or truncated"),
        (["export", "attention", "--checkpoint", "{checkpoint}", "--out", "{new}"], "unexpected: features.0.conv.bias"),
        (["export", "vgg", "--checkpoint", "{checkpoint}", "--out", "{new}"], "expected one of cnn, cnn-separable, resnet18"),
        (["export", "cnn", "--checkpoint", "{checkpoint}", "--out", "{folder}"], "exists already; give another folder with --out"),
        (["export", "cnn", "--checkpoint", "{checkpoint}", "--calibration", "folder:{folder}", "--out", "{new}"], "there are none in it"),
        (["export", "cnn", "--checkpoint", "{checkpoint}", "--calibration", "folder:{bad}", "--out", "{new}"], "a.png: expected an image"),
        (["export", "cnn", "--checkpoint", "{checkpoint}", "--calibration", "mnist", "--out", "{new}"], "got 'mnist'"),
        (["export", "cnn", "--checkpoint", "{checkpoint}", "--precision", "int4", "--out", "{new}"], "precisions must include fp32"),
        (["export", "cnn"], "Missing option"),
        (["verify", "{folder}", "--checkpoint", "{checkpoint}"], "there is no manifest.json"),
        (["train", "cnn", "--out", "{new}.pt"], "checkpoints are written as .safetensors"),
        (["train", "cnn", "--out", "{checkpoint}"], "exists already; give another file with --out"),
        (["train", "cnn", "--weights", "none", "--out", "{new}.safetensors"], "cnn takes no --weights"),
        (["train", "cnn", "--data", "photos", "--out", "{new}.safetensors"], "learns from labelled images"),
        (["train", "cnn", "--epochs", "-1", "--out", "{new}.safetensors"], "at least 1 epoch"),
        (["train", "cnn", "--size", "2", "--out", "{new}.safetensors"], "2 px is too small for the height of this model (4..1024 px)"),
        (["bench", "{folder}"], "there is no manifest.json"),
        (["bench", "{folder}", "--size", "big"], "expected a size as HEIGHTxWIDTH"),
        (["bench", "{folder}", "--against", "caffe"], "expected --against torch"),
        (["nonsense"], "No such command"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    arguments: list[str], said: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("folder", "bad"):
        (tmp_path / name).mkdir()
    (tmp_path / "bad" / "a.png").write_text("no image")
    names = {"checkpoint": checkpoint, "cut": truncated(checkpoint, tmp_path), "new": tmp_path / "new", "folder": tmp_path / "folder", "bad": tmp_path / "bad"}
    before = sorted(path for path in tmp_path.rglob("*"))
    assert main([argument.format(**names) for argument in arguments]) == 2
    err = capsys.readouterr().err
    sentence = err.strip().splitlines()[-1]
    assert said in sentence and sentence.startswith("edgeport: ")
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_ctrl_c_exits_130(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from edgeport_export import pipeline

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "write_golden", interrupted)
    assert main(["export", "cnn", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "new")]) == 130
    assert "interrupted" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("edgeport 0.")
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("train", "export", "verify", "bench", "demo"))
