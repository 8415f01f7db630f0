"""`edgeport deploy` from the outside."""

from pathlib import Path

import pytest

from edgeport_export.cli.app import main

FIXTURES = Path(__file__).parents[2] / "fixtures"
CLASSIFIER = str(FIXTURES / "format2" / "classifier")


@pytest.mark.parametrize(
    ("target", "arguments", "told"),
    [
        (
            "fixed",
            ["--size", "24x20", "--batch", "2"],
            "fp32 at batch 2, height 24, width 20; 1 golden output agrees with the bundle's own fp32, since it holds no case of this size",
        ),
        ("triton", ["--name", "mine", "--instances", "2"], "tritonserver --model-repository"),
        ("mlserver", ["--name", "mine"], "beside the runtime; then: mlserver start"),
        ("node", ["--precision", "int8"], "npm install && node main.mjs check"),
    ],
)
def test_each_target_writes_a_folder_that_check_knows(target: str, arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", target, CLASSIFIER, "--out", str(tmp_path / "d"), *arguments]) == 0
    assert told in capsys.readouterr().out.replace("\n", " ").replace("  ", " ")
    assert main(["deploy", "check", str(tmp_path / "d")]) == 0
    assert f"{target} of tiny-classifier, nothing was altered" in capsys.readouterr().out
    altered = next(path for path in sorted((tmp_path / "d").rglob("*")) if path.name in ("main.mjs", "model.onnx"))
    altered.write_bytes(altered.read_bytes() + b"\n")
    assert main(["deploy", "check", str(tmp_path / "d")]) == 1
    assert "was altered, or is gone" in capsys.readouterr().err


def test_a_configuration_may_be_changed_if_it_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["deploy", "triton", CLASSIFIER, "--out", str(tmp_path / "r"), "--name", "m"])
    config = tmp_path / "r" / "m" / "config.pbtxt"
    config.write_text(config.read_text().replace("microseconds: 500", "microseconds: 2000"))
    capsys.readouterr()
    assert main(["deploy", "check", str(tmp_path / "r")]) == 0
    assert "m/config.pbtxt was changed, and still fits the model" in capsys.readouterr().out
    config.write_text(config.read_text().replace("dims: [3]", "dims: [9]"))
    capsys.readouterr()
    assert main(["deploy", "check", str(tmp_path / "r")]) == 1
    assert capsys.readouterr().err == f"edgeport: {tmp_path / 'r'}: m: output 'logits' has the dims [9], the ONNX file has [3] after the batch\n"


def test_what_is_told_to_do_next_is_what_a_shell_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", "node", CLASSIFIER, "--out", str(tmp_path / "my; folder")]) == 0
    assert f"cd '{tmp_path / 'my; folder'}' && npm install" in capsys.readouterr().out.replace("\n", "")


def test_one_fault_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["deploy", "triton", CLASSIFIER, "--out", str(tmp_path / "r"), "--name", "m"])
    (tmp_path / "r" / "m" / "labels.txt").unlink()
    capsys.readouterr()
    assert main(["deploy", "check", str(tmp_path / "r")]) == 1
    assert capsys.readouterr().err == f"edgeport: {tmp_path / 'r'}: m: the labels labels.txt are missing\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fixed", CLASSIFIER, "--out", "d", "--size", "2x2"], "the model promises 4..64 for the axis 'height', and 2 was asked for"),
        (["fixed", CLASSIFIER, "--out", "d", "--size", "big"], "expected a size as HEIGHTxWIDTH in pixels"),
        (["triton", "nowhere", "--out", "d"], "expected a bundle (a folder with manifest.json), but there is no such folder"),
        (["node", CLASSIFIER, "--out", "mine"], "mine exists already; give another folder"),
        (["node", CLASSIFIER, "--out", "mine", "--force"], "mine exists and is no deployment, so force does not replace it"),
        (["node", CLASSIFIER, "--out", "d", "--precision", "fp16"], "holds no fp16 that runs there"),
        (["web", CLASSIFIER, "--out", "d", "--package", "mine"], "expected a folder of the npm package onnxruntime-web"),
        (["check", "mine"], "expected a folder that `edgeport deploy` made"),
        (["moon", CLASSIFIER, "--out", "d"], "No such command 'moon'"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_text("mine")
    assert main(["deploy", *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["mine"] and (tmp_path / "mine" / "photo.jpg").exists()
