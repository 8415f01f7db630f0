import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeport_runtime.bundle import MANIFEST
from edgeport_runtime.cli import main
from edgeport_runtime.manifest import sealed

pytestmark = pytest.mark.usefixtures("on_x86")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((20, 30, 3), 225, np.uint8)).save(path)
    return path


def test_info(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(classifier)]) == 0
    text = capsys.readouterr().out
    for words in (
        "tiny-classifier: classification",
        "pixels: uint8 (batch, height, width, 3)",
        "height 4..64",
        "dark, middle, bright",
        "model.int8.onnx",
        "golden  2 cases",
    ):
        assert words in text
    assert main(["info", str(classifier), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == 1


def test_check(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(classifier), "--precision", "int8"]) == 0
    assert "int8: 4 of 4 golden outputs agree" in capsys.readouterr().out
    assert main(["check", str(classifier), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["passed"] is True and [each["precision"] for each in told["reports"]] == ["fp32", "int8"] and told["left_out"] == {}


def test_check_looks_at_every_variant_that_runs_here_and_names_the_others(
    classifier: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(classifier)]) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["fp32", "int8"]
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert main(["check", str(classifier)]) == 0
    assert "int8: not checked, because it was made for x86-vnni, and this machine is riscv64" in capsys.readouterr().out


def test_check_fails_with_exit_code_1(classifier: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from edgeport_runtime.engine import Engine

    run = Engine.run
    monkeypatch.setattr(Engine, "run", lambda self, inputs: {name: value + 9 for name, value in run(self, inputs).items()})
    assert main(["check", str(classifier), "--precision", "fp32"]) == 1
    assert "0 of 4" in capsys.readouterr().out


def test_predict(classifier: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(classifier), str(photo), "--top", "2"]) == 0
    assert f"{photo}: bright" in capsys.readouterr().out
    assert main(["predict", str(classifier), str(photo), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["label"], found["index"], found["top"][0]["index"]) == ("bright", 2, 2)


def test_predict_writes_a_generators_images(generator: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(generator), str(photo), "--out", str(tmp_path / "made")]) == 0
    with Image.open(tmp_path / "made" / "photo.png") as made:
        assert made.size == (30, 20)
    assert "->" in capsys.readouterr().out
    assert main(["predict", str(generator), str(photo)]) == 2
    assert "name a folder for them with --out" in capsys.readouterr().err
    twin = tmp_path / "elsewhere" / "photo.jpg"
    twin.parent.mkdir()
    Image.open(photo).save(twin)
    assert main(["predict", str(generator), str(photo), str(twin), "--out", str(tmp_path / "twice")]) == 2
    assert not (tmp_path / "twice").exists()
    capsys.readouterr()
    for out, message in ((photo.parent, "exists already, and a result is never written over a file"), (photo, "expected a folder, but this is a file")):
        before = photo.read_bytes()
        assert main(["predict", str(generator), str(photo), "--out", str(out)]) == 2
        assert message in capsys.readouterr().err and photo.read_bytes() == before


def test_predict_in_tiles(generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.effect_noise((200, 90), 60).convert("RGB").save(tmp_path / "large.png")
    command = ["predict", str(generator), str(tmp_path / "large.png"), "--out", str(tmp_path / "out")]
    assert main(command) == 2 and "too large" in capsys.readouterr().err
    assert main([*command, "--tile", "32"]) == 0
    with Image.open(tmp_path / "out" / "large.png") as answer:
        assert answer.size == (200, 90)


def test_eval(classifier: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data" / "bright").mkdir(parents=True)
    photo.rename(tmp_path / "data" / "bright" / "a.png")
    assert main(["eval", str(classifier), f"folder:{tmp_path / 'data'}", "--precision", "fp32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"precision": "fp32", "metric": "accuracy", "value": 1.0, "count": 1}


def test_bench(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(classifier), "--batch", "2", "--size", "8x12", "--seconds", "0.01"]) == 0
    assert "ms an image" in capsys.readouterr().out
    assert main(["bench", str(classifier), "--seconds", "0.01", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["median_ms"] > 0


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "onnxruntime wheels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "nowhere"], "nowhere: expected a bundle"),
        (["check", "{bundle}", "--precision", "fp16"], "no fp16 variant in this bundle"),
        (["predict", "{bundle}", "nowhere.png"], "nowhere.png: there is no such file"),
        (["predict", "{bundle}", "{bundle}/manifest.json"], "manifest.json: expected an image"),
        (["eval", "{bundle}", "folder:nowhere"], "nowhere: expected one folder of images per label"),
        (["bench", "{bundle}", "--batch", "0"], "within 1..8, got 0"),
        (["bench", "{bundle}", "--batch", "1000000000000"], "within 1..8"),
        (["bench", "{bundle}", "--size", "8"], "expected a size as HEIGHTxWIDTH"),
        (["predict", "{bundle}", "nowhere.png", "--top", "0"], "top is the number of classes to list"),
        (["predict", "{bundle}", "nowhere.png", "--tile", "8"], "tiles are for models that answer each position"),
        (["info", "{bundle}/model.onnx"], "but this is a file"),
        (["bench", "{bundle}", "--batch", "99"], "a whole number within 1..8, got 99"),
        (["bench", "{bundle}", "--size", "1x1"], "height must be within 4..64, got 1"),
        (["bench", "{bundle}", "--threads", "-1"], "threads must be a whole number from 1 to "),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(classifier: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([argument.format(bundle=classifier) for argument in arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("edgeport-run: ") and err.count("\n") == 1


def test_ctrl_c(classifier: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from edgeport_runtime import cli

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load", interrupted)
    assert main(["check", str(classifier)]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_info_names_the_batch_from_which_batches_are_split(altered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((altered / MANIFEST).read_text())
    manifest["auto"] = {"precision": "int8", "reason": "measured", "data_parallel_from": "6"}
    (altered / MANIFEST).write_text(json.dumps(sealed(manifest)))
    assert main(["info", str(altered)]) == 0
    assert "auto    int8, batches split among the threads from 6 images: measured" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "outputs"), [([], 4), (["--split-batch"], 6), (["--no-split-batch"], 4), (["--batch", "8"], 6)])
def test_batches_are_split_as_measured_or_as_asked_for(altered: Path, options: list[str], outputs: int, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((altered / MANIFEST).read_text())
    manifest["auto"] = {"precision": "int8", "reason": "measured", "data_parallel_from": "6"}
    (altered / MANIFEST).write_text(json.dumps(sealed(manifest)))
    assert main(["check", str(altered), "--threads", "2", *options]) == 0
    assert f"int8: {outputs} of {outputs} golden outputs agree" in capsys.readouterr().out


def test_a_bundles_name_does_not_steer_the_terminal(altered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads((altered / MANIFEST).read_text())
    data["name"] = "\x1b[31mred"
    (altered / MANIFEST).write_text(json.dumps(sealed(data)))
    assert main(["info", str(altered)]) == 0
    assert "\x1b" not in (told := capsys.readouterr().out) and r"\x1b[31mred" in told


def test_info_gives_the_hash_that_check_takes(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(classifier)]) == 0
    sha256 = next(line.split()[1] for line in capsys.readouterr().out.splitlines() if line.strip().startswith("sha256"))
    assert main(["check", str(classifier), "--precision", "fp32", "--manifest-sha256", sha256]) == 0
    for command in ("check", "predict", "eval", "bench"):
        more = {"predict": ["x.png"], "eval": ["x"]}.get(command, [])
        assert main([command, str(classifier), *more, "--manifest-sha256", sha256[::-1]]) == 2
        assert "this is not the bundle that was meant" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-px", "599"], "30x20 pixels (WxH) are more than the 599 that are decoded; shrink the image first, or raise max_px"),
        (["--max-file-mb", "0.00001"], "raise max_file_mb"),
        (["--formats", "jpeg, webp"], "expected an image (JPEG, WEBP)"),
        (["--formats", "eps"], "formats are some of"),
        (["--max-frames", "0"], "max_frames is a whole number"),
    ],
)
def test_limits_of_images_are_options(options: list[str], message: str, classifier: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(classifier), str(photo), *options]) == 2 and message in capsys.readouterr().err
    assert main(["predict", str(classifier), str(photo), "--max-px", "600", "--formats", "png", "--max-frames", "1"]) == 0
