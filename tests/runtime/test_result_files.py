"""Files of answers and pictures: none is lost, none is written over, and each folder belongs to one model."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeport_runtime.cli import main
from edgeport_runtime.result_files import SIGN

pytestmark = pytest.mark.usefixtures("on_x86")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for index in range(3):
        Image.fromarray(np.full((16, 20, 3), 60 * index, np.uint8)).save(tmp_path / "images" / f"{index}.png")
    return tmp_path / "images"


def predict(*arguments: object) -> int:
    return main(["predict", *map(str, arguments)])


def test_answers_and_pictures_in_one_folder_are_refused(generator: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(generator, images, "--out", tmp_path / "same", "--draw", tmp_path / "same") == 2
    assert "a picture would overwrite its answer there; name another folder with --draw" in capsys.readouterr().err and not (tmp_path / "same").exists()


def test_a_refused_call_leaves_no_file_behind(classifier: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "drawn").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "drawn" / "1.png")
    assert predict(classifier, images, "--out", tmp_path / "rows.csv", "--draw", tmp_path / "drawn") == 2
    assert "name another folder with --draw" in capsys.readouterr().err and not (tmp_path / "rows.csv").exists()
    (tmp_path / "file").write_text("")
    assert predict(classifier, images, "--draw", tmp_path / "file") == 2
    assert "expected a folder, but this is a file; name another one with --draw" in capsys.readouterr().err


def test_missing_pictures_are_made_when_it_goes_on(classifier: Path, images: Path, tmp_path: Path) -> None:
    rows, drawn = tmp_path / "rows.jsonl", tmp_path / "drawn"
    assert predict(classifier, images / "0.png", images / "1.png", "--out", rows) == 0
    assert predict(classifier, images, "--out", rows, "--draw", drawn, "--resume") == 0
    assert sorted(path.name for path in drawn.glob("*.png")) == ["0.png", "1.png", "2.png"] and len(rows.read_text().splitlines()) == 3
    kept = (drawn / "0.png").stat().st_mtime_ns
    (drawn / "1.png").unlink()
    assert predict(classifier, images, "--out", rows, "--draw", drawn, "--resume") == 0
    assert (drawn / "1.png").exists() and (drawn / "0.png").stat().st_mtime_ns == kept and len(rows.read_text().splitlines()) == 3


def test_answers_are_kept_when_pictures_are_added(generator: Path, images: Path, tmp_path: Path) -> None:
    assert predict(generator, images, "--out", tmp_path / "made") == 0
    kept = (tmp_path / "made" / "0.png").stat().st_mtime_ns
    assert predict(generator, images, "--out", tmp_path / "made", "--draw", tmp_path / "drawn", "--resume") == 0
    assert (tmp_path / "made" / "0.png").stat().st_mtime_ns == kept
    with Image.open(tmp_path / "drawn" / "0.png") as picture:
        assert picture.width > 2 * 320  # source and answer side by side


def test_pictures_of_another_model_are_not_gone_on_with(
    classifier: Path, generator: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = tmp_path / "drawn"
    assert predict(classifier, images, "--draw", drawn) == 0 and (drawn / SIGN).exists()
    assert predict(generator, images, "--out", tmp_path / "made", "--draw", drawn, "--resume") == 2
    assert "it holds answers of another bundle, precision or tile size; name another folder with --draw" in capsys.readouterr().err


@pytest.mark.parametrize("score", ["nan", "inf", "7", "-3", "0.5"])
def test_a_score_is_for_detectors_and_a_share(score: str, classifier: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(classifier, images, f"--min-score={score}") == 2
    assert "--min-score is for detectors, and in 0..1" in capsys.readouterr().err


def test_rows_are_json(classifier: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(classifier, images, "--json") == 0
    assert all(json.loads(line)["label"] for line in capsys.readouterr().out.splitlines())
