"""`edgeport-run map` in this process: the rows of `predict`, exactly once, whatever interrupts it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeport_runtime.cli import main
from edgeport_runtime.errors import InputError

pa = pytest.importorskip("pyarrow")
dataset = pytest.importorskip("pyarrow.dataset")
command = pytest.importorskip("edgeport_runtime.mapping.command")

pytestmark = pytest.mark.usefixtures("on_x86")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(40):
        Image.fromarray(np.full((20, 30 + index % 3, 3), 30 + 5 * index, np.uint8)).save(folder / f"{index:02d}.png")
    (folder / "07.png").write_bytes(b"torn")
    return folder


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """As any reader of Parquet finds them."""
    found: list[dict[str, Any]] = dataset.dataset(folder, format="parquet").to_table().to_pylist()
    return found


def predicted(bundle: Path, images: Path, place: Path, *more: str) -> list[dict[str, Any]]:
    main(["predict", str(bundle), str(images), "--out", str(place), *more])
    rows = [json.loads(line) for line in place.read_text().splitlines()]
    answers = [{name: value for name, value in row.items() if name not in ("image", "model", "error")} or None for row in rows]
    return [{"path": row["image"], "answer": answer, "error": row.get("error")} for row, answer in zip(rows, answers, strict=True)]


def test_rows_are_those_of_predict(classifier: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", str(classifier), str(images), "--out", str(tmp_path / "out"), "--top", "1"]) == 1
    assert f"40 images are answered in {tmp_path / 'out'}, 1 of them with an error, such as: {images / '07.png'}: expected an image" in capsys.readouterr().out
    wanted = predicted(classifier, images, tmp_path / "rows.jsonl", "--top", "1")
    assert rows_in(tmp_path / "out") == wanted and len(wanted) == 40 and [row["path"] for row in wanted if row["error"]] == [str(images / "07.png")]


def test_files_in_parquet_give_what_the_files_give(classifier: Path, images: Path, tmp_path: Path) -> None:
    paths = sorted(images.iterdir())
    table = pa.table({"path": [str(path) for path in paths], "bytes": [path.read_bytes() for path in paths]})
    pa.parquet.write_table(table, tmp_path / "in.parquet", row_group_size=9)
    assert main(["map", str(classifier), str(tmp_path / "in.parquet"), "--out", str(tmp_path / "out")]) == 1
    found, wanted = rows_in(tmp_path / "out"), predicted(classifier, images, tmp_path / "rows.jsonl")
    assert [(row["path"], row["answer"]) for row in found] == [(row["path"], row["answer"]) for row in wanted]
    assert found[7]["error"] is not None and "an image of 4 bytes" in found[7]["error"]


def test_answers_that_are_images_are_the_files_of_predict(generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.full((20, 30, 3), 100, np.uint8)).save(tmp_path / "a.png")
    assert main(["map", str(generator), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"1 image is answered in {tmp_path / 'out'}\n"
    assert main(["predict", str(generator), str(tmp_path / "a.png"), "--out", str(tmp_path / "files")]) == 0
    (row,) = rows_in(tmp_path / "out")
    assert row["answer"] == (tmp_path / "files" / "a.png").read_bytes() and row["path"] == str(tmp_path / "a.png")


def test_failed_images_are_tried_again_and_new_ones_answered(classifier: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["map", str(classifier), str(images), "--out", str(tmp_path / "out")]
    assert main(call) == 1 and main(call) == 2 and "or go on in it with --resume" in capsys.readouterr().err
    for name in ("07.png", "99.png"):
        Image.fromarray(np.full((20, 30, 3), 225, np.uint8)).save(images / name)
    assert main([*call, "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"images": 41, "errors": 0, "first_error": ""}
    assert sorted(row["path"] for row in rows_in(tmp_path / "out")) == sorted(map(str, images.iterdir()))
    assert main([*call, "--resume", "--precision", "int8"]) == 2 and "this job was begun with model" in capsys.readouterr().err


def test_progress_begins_with_what_is_done_and_ends_with_all(classifier: Path, images: Path, tmp_path: Path) -> None:
    options = {"device": "cpu", "precision": "auto", "batch": 1, "manifest_sha256": None}
    request = {"bundle": classifier, "sources": [str(images)], "out": tmp_path / "out", "options": options, "resume": True}
    told: list[tuple[int, int]] = []
    outcome = command.map_images(command.MapRequest(**request), lambda done, total: told.append((done, total)))
    assert (outcome.images, outcome.errors) == (40, 1) and "07.png" in outcome.first_error and told == [(0, 40), (16, 40), (32, 40), (40, 40)]
    told.clear()
    command.map_images(command.MapRequest(**request), lambda done, total: told.append((done, total)))
    assert told == [(24, 40), (40, 40)]


def test_a_run_that_is_killed_goes_on_and_each_image_is_answered_once(classifier: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = [sys.executable, "-m", "edgeport_runtime", "map", str(classifier), str(images), "--out", str(out), "--resume", "--precision", "fp32"]
    slow = (
        "import time, sys, edgeport_runtime.mapping.worker as w; write = w.write_rows; "
        "w.write_rows = lambda *given: (time.sleep(0.2), write(*given), time.sleep(0.2)); "
        "from edgeport_runtime.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    for parts in (1, 2):
        process = subprocess.Popen([sys.executable, "-c", slow, *call[3:]])
        deadline = time.monotonic() + 60
        while len(list(out.glob("part-*"))) < parts and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert len(list(out.glob("part-*"))) == 2
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "40 images are answered" in done.stdout, done.stderr
    assert rows_in(out) == predicted(classifier, images, tmp_path / "rows.jsonl", "--precision", "fp32")


def test_rows_that_vanish_are_noticed(classifier: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.Worker, "answer", lambda self, part: command.Done(number=part.number, rows=1))  # a worker that says so and writes nothing
    options = {"device": "cpu", "precision": "auto", "batch": 1, "manifest_sha256": None}
    with pytest.raises(InputError, match="these answers are missing, and 2 more"):
        command.map_images(command.MapRequest(bundle=classifier, sources=[str(images)], out=tmp_path / "out", options=options))


def test_a_file_of_rows_that_is_no_part_of_the_job_is_told(classifier: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["map", str(classifier), str(images), "--out", str(tmp_path / "out"), "--resume"]
    assert main(call) == 1
    part = next((tmp_path / "out").glob("part-*"))
    part.with_name(f".{part.name}.abc").write_bytes(b"PAR1")  # of a worker that was killed
    assert main(call) == 1 and not list((tmp_path / "out").glob(".*"))
    part.with_name("part-000099-aaaaaaaa.parquet").write_bytes(part.read_bytes())
    assert main(call) == 2 and "of no image of this job, but readers would take it for answers" in capsys.readouterr().err


def test_two_calls_do_not_answer_into_one_folder(classifier: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with command.held(tmp_path / "out"):
        assert main(["map", str(classifier), str(images), "--out", str(tmp_path / "out")]) == 2
    assert "another process answers into this folder" in capsys.readouterr().err and not (tmp_path / "out").exists()


WRONG = {
    ("--min-score", "0.5"): "--min-score is for detectors",
    ("--top", "0"): "a whole number of at least 1, got 0",
    ("--workers", "2"): "--workers are on Ray",
    ("--ray", "local", "--workers", "0"): "a whole number of at least 1, got 0",
    ("--ray", "local", "--device", "auto"): "name the device, cpu or cuda",
    ("--ray", "local", "--threads", "0"): "threads",
    ("--max-file-mb", "-1"): "max_file_mb",
}


@pytest.mark.parametrize("given", WRONG)
def test_wrong_options_are_one_sentence_and_begin_nothing(
    given: tuple[str, ...], classifier: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["map", str(classifier), str(images), "--out", str(tmp_path / "out"), *given]) == 2
    err = capsys.readouterr().err
    assert WRONG[given] in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_lone_file_is_refused(classifier: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", str(next(classifier.glob("*.onnx"))), str(images), "--out", str(tmp_path / "out")]) == 2
    assert "expected the folder of a bundle" in capsys.readouterr().err


def test_without_pyarrow_the_reason_is_one_sentence(classifier: Path, images: Path, tmp_path: Path) -> None:
    call = ["map", str(classifier), str(images), "--out", "x"]
    code = f"import sys; sys.modules['pyarrow'] = None; from edgeport_runtime.cli import main; sys.exit(main({call!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2 and "pyarrow is not installed: pip install pyarrow" in done.stderr and "Traceback" not in done.stderr


def test_nothing_of_it_is_loaded_by_the_other_commands(classifier: Path, images: Path) -> None:
    code = (
        f"import sys; from edgeport_runtime.cli import main; main({['predict', str(classifier), str(images / '01.png')]!r}); "
        "print([name for name in sys.modules if name.partition('.')[0] in ('pyarrow', 'ray', 'pandas') or 'mapping' in name and 'edgeport' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
