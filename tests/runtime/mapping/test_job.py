"""A job's folder: begun once, gone on with by the same model alone, with what the sources have got since."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeport_runtime.errors import ImageError, InputError

pytest.importorskip("pyarrow")
answers = pytest.importorskip("edgeport_runtime.mapping.answers")
job = pytest.importorskip("edgeport_runtime.mapping.job")

ANSWERING = {"model": "abc int8", "task": "embedding", "top": 3, "min_score": None, "base": "/here"}


def begin(tmp_path: Path, count: int, *, resume: bool = False, **other: Any) -> Any:
    (tmp_path / "list.txt").write_text("".join(f"{index}.png\n" for index in range(count)))
    found = job.find_job(tmp_path / "out", [str(tmp_path / "list.txt")], job.Answering(**{**ANSWERING, **other}), resume=resume)
    found.save()
    return found


def write(begun: Any, number: int, errors: int = 0, missing: int = 0) -> None:
    part = begun.parts[number]
    rows = [answers.row(name, ImageError("no") if index < errors else np.ones(1, np.float32)) for index, name in enumerate(part.chunk.images)]
    answers.write_rows([rows[: len(rows) - missing]], part.place, "embedding", {})


def left(begun: Any) -> list[int]:
    return [part.number for part in begun.left()]


def test_what_is_left_is_what_has_no_rows_or_errors_among_them(tmp_path: Path) -> None:
    begun = begin(tmp_path, 70)
    assert begun.images == 70 and left(begun) == [0, 1, 2, 3, 4]
    write(begun, 0)
    write(begun, 1, errors=1)
    write(begun, 2, missing=1)  # not these images
    write(begun, 3)
    place = begun.parts[3].place
    place.write_bytes(place.read_bytes()[:-9])  # torn
    assert [part.rows() for part in begun.parts] == [(16, 0), (16, 1), None, None, None] and left(begun) == [1, 2, 3, 4]


def test_a_job_is_gone_on_with_and_new_images_are_chunks_of_their_own(tmp_path: Path) -> None:
    first = begin(tmp_path, 20)
    write(first, 0)
    again = begin(tmp_path, 25, resume=True)
    assert again.parts[:2] == first.parts and again.parts[2].chunk.images == tuple(f"{index}.png" for index in range(20, 25))
    assert left(again) == [1, 2]
    assert begin(tmp_path, 20, resume=True).parts == again.parts  # images that are gone from the source stay in the job
    fewer = begin(tmp_path, 1, resume=True)
    assert fewer.images == 25
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"_begun", "_job.jsonl", first.parts[0].place.name}


def test_the_same_number_with_other_images_has_another_file(tmp_path: Path) -> None:
    one = begin(tmp_path, 3)
    (tmp_path / "out" / "_job.jsonl").unlink()  # an empty `_begun` alone is of a beginning that failed
    assert begin(tmp_path, 4).parts[0].place != one.parts[0].place


@pytest.mark.parametrize("other", [{"model": "xyz int8"}, {"top": 4}, {"min_score": 0.5}])
def test_another_model_or_another_question_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    begin(tmp_path, 3)
    with pytest.raises(InputError, match=f"begun with {next(iter(other))} .* and now it is {next(iter(other.values()))!r}"):
        begin(tmp_path, 3, resume=True, **other)


def test_relative_paths_bind_a_job_to_where_it_was_begun(tmp_path: Path) -> None:
    begin(tmp_path, 3)
    with pytest.raises(InputError, match="begun in /here, to which its paths are relative; go on there"):
        begin(tmp_path, 3, resume=True, base="/elsewhere")
    (tmp_path / "absolute.txt").write_text("/a.png\n/b.png\n")
    for base in ("/here", "/elsewhere"):
        found = job.find_job(tmp_path / "other", [str(tmp_path / "absolute.txt")], job.Answering(**{**ANSWERING, "base": base}), resume=True)
        found.save()
        assert found.images == 2


def test_a_folder_in_use_is_refused_without_resume_and_a_new_one_taken_with_it(tmp_path: Path) -> None:
    begin(tmp_path, 3, resume=True)
    with pytest.raises(InputError, match="not empty, and answers are never written over others"):
        begin(tmp_path, 3)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="this is a file"):
        job.find_job(tmp_path / "file", [], job.Answering(**ANSWERING), resume=False)


@pytest.mark.parametrize(
    "text", ["", "{}\n", "no JSON\n", "[]\n", '{"kind": "edgeport-run map 1"}\n{"images": [1]}\n', '{"kind": "edgeport-run map 2"}\n', "TORN"]
)
def test_a_folder_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    begin(tmp_path, 3)
    place = tmp_path / "out" / "_job.jsonl"
    place.write_text(text if text != "TORN" else place.read_text()[:-5])
    before = place.read_text()
    with pytest.raises(InputError, match="no job of `edgeport-run map` to go on with"):
        begin(tmp_path, 3, resume=True)
    assert place.read_text() == before
    place.rename(place.with_name("other"))
    with pytest.raises(InputError, match="No such file"):
        begin(tmp_path, 3, resume=True)


def test_the_first_line_of_a_job_says_whose_answers_these_are(tmp_path: Path) -> None:
    begin(tmp_path, 3)
    first, second = (tmp_path / "out" / "_job.jsonl").read_text().splitlines()
    assert json.loads(first) == {"kind": "edgeport-run map 1", **ANSWERING} and json.loads(second) == {"images": ["0.png", "1.png", "2.png"]}


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "list.txt").write_text("a.png\n")
    with pytest.raises(InputError, match="cannot be written there"):
        job.find_job(tmp_path / "file" / "out", [str(tmp_path / "list.txt")], job.Answering(**ANSWERING), resume=False).save()


def test_a_beginning_that_failed_can_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as full:
        full.setattr(job.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(InputError, match="No space left"):
            begin(tmp_path, 3)
    assert begin(tmp_path, 3).images == 3


def test_files_that_belong_to_no_image_are_found(tmp_path: Path) -> None:
    begun = begin(tmp_path, 3)
    write(begun, 0)
    for name in ("part-000009-00000000.parquet", "more.parquet", "_list.parquet", ".part.parquet"):
        (tmp_path / "out" / name).write_text("")
    assert [path.name for path in begun.strangers()] == ["more.parquet", "part-000009-00000000.parquet"]


def test_one_process_at_a_time_deals_chunks_out(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with job.held(out):
        with pytest.raises(InputError, match="another process answers into this folder"), job.held(out):
            pass
        assert [path.name for path in out.iterdir()] == ["_lock"]
    assert not out.exists()  # nothing was begun
    with job.held(out):
        (out / "part").write_text("")
    with job.held(out):
        pass
    assert [path.name for path in out.iterdir()] == ["part"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written there"), job.held(tmp_path / "file" / "out"):
        pass
