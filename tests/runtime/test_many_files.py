import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeport_runtime.cli import main
from edgeport_runtime.result_files import SIGN

pytestmark = pytest.mark.usefixtures("on_x86")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_predict_folders_streams_rows_and_goes_on(name: str, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index, level in enumerate((30, 225, 30, 225, 225)):
        (tmp_path / "in" / "deep").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), level, np.uint8)).save(tmp_path / "in" / ("deep" if index > 3 else "") / f"{index}.png")
    (tmp_path / "in" / "1.png").write_bytes(b"torn")
    out = tmp_path / "out" / name
    call = ["predict", str(classifier), str(tmp_path / "in"), str(tmp_path / "in" / "*.png"), "--out", str(out)]
    assert main(call) == 1  # one of five
    err = capsys.readouterr().err
    assert "1 of 5 images could not be predicted" in err

    def rows() -> list[dict[str, str]]:
        text = out.read_text()
        return [json.loads(line) for line in text.splitlines()] if name.endswith("jsonl") else list(csv.DictReader(text.splitlines()))

    first = rows()
    assert [Path(row["image"]).name for row in first] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    assert "expected an image" in first[1]["error"] and [row.get("label") or "" for row in first] == ["dark", "", "dark", "bright", "bright"]
    assert main(call) == 2 and "or go on in it with --resume" in capsys.readouterr().err
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:-1]) + lines[-1][:9])  # killed in the middle of a row
    Image.fromarray(np.full((20, 30, 3), 225, np.uint8)).save(tmp_path / "in" / "1.png")
    assert main([*call, "--resume"]) == 0
    assert sorted((Path(row["image"]).name, row["label"]) for row in rows()) == [(f"{i}.png", "dark" if i in (0, 2) else "bright") for i in range(5)]
    kept = out.read_text()
    assert main([*call, "--resume"]) == 0 and out.read_text() == kept
    other = [*call[:1], str(classifier), *call[2:], "--precision", "int8", "--resume"]
    assert main(other) == 2 and "was answered by another bundle or precision" in capsys.readouterr().err and out.read_text() == kept
    out.write_text("something else\n")
    assert main([*call, "--resume"]) == 2 and "does not begin as rows of results" in capsys.readouterr().err


def test_predict_goes_on_in_a_folder_of_answers(generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), 100, np.uint8)).save(tmp_path / "in" / name)
    call = ["predict", str(generator), str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert main(call) == 0
    made = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert made == ["a/1.png", "b/1.png"]
    (tmp_path / "out" / "b" / "1.png").unlink()
    capsys.readouterr()
    assert main([*call, "--resume"]) == 0
    assert capsys.readouterr().out.count("->") == 1 and (tmp_path / "out" / "b" / "1.png").exists()
    for other in (["--precision", "fp32"], ["--tile", "32"]):  # whose answers would be taken for these
        assert main([*call, *other, "--resume"]) == 2 and "it holds answers of another bundle, precision or tile size" in capsys.readouterr().err


def rows_of(content: bytes, form: str) -> list[dict[str, Any]]:
    if form == "jsonl":
        return [json.loads(line) for line in content.decode().split("\n")[:-1]]
    return list(csv.DictReader(io.StringIO(content.decode(errors="surrogateescape"), newline="")))


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_predict_goes_on_whatever_the_files_are_called(form: str, classifier: Path, tmp_path: Path) -> None:
    names = [b"a\xff.png", "b\u2028c.png".encode(), b"d\ne.png", b'f",g.png', b"h.png"]
    (tmp_path / "in").mkdir()
    for index, name in enumerate(names):
        Image.fromarray(np.full((20, 30, 3), (30, 225)[index % 2], np.uint8)).save(tmp_path / "in" / "image.png")
        (tmp_path / "in" / "image.png").rename(tmp_path / "in" / os.fsdecode(name))
    out = tmp_path / f"rows.{form}"
    call = ["predict", str(classifier), str(tmp_path / "in"), "--out", str(out)]
    assert main(call) == 0
    whole = out.read_bytes()
    rows = rows_of(whole, form)
    assert [os.fsencode(Path(row["image"]).name) for row in rows] == sorted(names) and [row["label"] for row in rows] == ["dark", "bright"] * 2 + ["dark"]
    out.write_bytes(whole[:-5])  # killed in the middle of the last row
    assert main([*call, "--resume"]) == 0
    *kept, last = rows_of(out.read_bytes(), form)
    assert kept == rows[:-1] and out.read_bytes().startswith(whole[: whole.rindex(b"h.png")])
    # one image alone is summed in another order than among others, which on arm64 shows in the last digit of a score
    assert (last["image"], last["label"], last["model"]) == (rows[-1]["image"], rows[-1]["label"], rows[-1]["model"])
    assert float(last["score"]) == pytest.approx(float(rows[-1]["score"]), rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing*.png"], "no image (.jpg,"),
        (["{folder}"], "expected a folder of images"),
        (["a.png", "--resume"], "name them with --out"),
        (["a.png", "--format", "xml"], "invalid choice"),
    ],
)
def test_predict_that_cannot_begin(arguments: list[str], message: str, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    try:
        code = main(["predict", str(classifier), *(each.format(folder=tmp_path / "empty") for each in arguments)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2 and message in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="pipes are Unix's")
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_resuming_in_something_else_harms_nothing(name: str, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A text without a line break was taken for a row that was torn, and lost; a pipe was waited for."""
    image = tmp_path / "a.png"
    Image.fromarray(np.full((20, 30, 3), 30, np.uint8)).save(image)
    out = tmp_path / name
    call = ["predict", str(classifier), str(image), "--out", str(out), "--format", name.partition(".")[2], "--resume"]
    for content in (b"my thesis", b"\xff\xfe\0", b"[" * 100_000, b"image," + b"x" * 200_000 + b"\n"):
        out.write_bytes(content)
        assert main(call) == 2 and out.read_bytes() == content
        assert len(capsys.readouterr().err.splitlines()) == 1
    out.unlink()
    os.mkfifo(out)
    assert main(call) == 2 and "expected a file of rows, but this is a pipe" in capsys.readouterr().err
    out.unlink()
    out.mkdir()
    assert main(call) == 2 and "expected a file of rows, but this is a folder" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="pipes are Unix's")
def test_a_sign_that_is_none_is_told(generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, out = tmp_path / "a.png", tmp_path / "out"
    Image.fromarray(np.full((20, 30, 3), 30, np.uint8)).save(image)
    out.mkdir()
    call = ["predict", str(generator), str(image), "--out", str(out)]
    (out / SIGN).write_bytes(bytes(range(128, 148)))
    assert main(call) == 2 and "it holds answers of another bundle" in capsys.readouterr().err
    (out / SIGN).unlink()
    os.mkfifo(out / SIGN)
    assert main(call) == 2 and "cannot be read (it is a pipe, not a file)" in capsys.readouterr().err
