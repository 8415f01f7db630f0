"""A job's folder: begun once, gone on with by the same model alone, with what the sources have got since."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgeport_runtime.errors import ImageError, InputError

pytest.importorskip("pyarrow")
answers = pytest.importorskip("edgeport_runtime.mapping.answers")
job = pytest.importorskip("edgeport_runtime.mapping.job")

ANSWERING = {"model": "abc int8", "task": "embedding", "top": 3, "min_score": None, "base": "."}


def begin(tmp_path: Path, count: int, *, resume: bool = False, **other: Any) -> Any:
    (tmp_path / "list.txt").write_text("".join(f"{index}.png\n" for index in range(count)))
    return job.begin(tmp_path / "out", [str(tmp_path / "list.txt")], job.Answering(**{**ANSWERING, **other}), resume=resume)


def write(begun: Any, number: int, errors: int = 0, missing: int = 0) -> None:
    rows = [answers.row(name, ImageError("no") if index < errors else [1.0]) for index, name in enumerate(begun.chunks[number].images)]
    rows = [{**row, "answer": [1.0] if row["error"] is None else None} for row in rows]
    answers.write_rows(rows[: len(rows) - missing], begun.place(number), "embedding", {})


@pytest.fixture(autouse=True)
def plain_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_value", lambda answer: answer)


def test_what_is_left_is_what_has_no_rows_or_errors_among_them(tmp_path: Path) -> None:
    begun = begin(tmp_path, 70)
    assert begun.images == 70 and begun.left() == [0, 1, 2, 3, 4]
    write(begun, 0)
    write(begun, 1, errors=1)
    write(begun, 2, missing=1)  # not these images
    write(begun, 3)
    begun.place(3).write_bytes(begun.place(3).read_bytes()[:-9])  # torn
    assert [begun.rows(number) for number in range(5)] == [(16, 0), (16, 1), None, None, None] and begun.left() == [1, 2, 3, 4]


def test_a_job_is_gone_on_with_and_new_images_are_chunks_of_their_own(tmp_path: Path) -> None:
    first = begin(tmp_path, 20)
    write(first, 0)
    again = begin(tmp_path, 25, resume=True)
    assert again.chunks[:2] == first.chunks and again.chunks[2].images == tuple(f"{index}.png" for index in range(20, 25))
    assert again.place(0) == first.place(0) and again.left() == [1, 2]
    assert begin(tmp_path, 20, resume=True).chunks == again.chunks  # images that are gone from the source stay in the job
    fewer = begin(tmp_path, 1, resume=True)
    assert fewer.images == 25
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"_begun", "_job.jsonl", first.place(0).name}


def test_the_same_number_with_other_images_has_another_file(tmp_path: Path) -> None:
    one = begin(tmp_path, 3)
    (tmp_path / "out" / "_job.jsonl").unlink()
    (tmp_path / "out" / "_begun").rmdir()
    assert begin(tmp_path, 4).place(0) != one.place(0)


@pytest.mark.parametrize("other", [{"model": "xyz int8"}, {"top": 4}, {"min_score": 0.5}, {"base": "/elsewhere"}])
def test_another_model_or_another_question_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    begin(tmp_path, 3)
    with pytest.raises(InputError, match=f"begun with {next(iter(other))} .* and now it is {next(iter(other.values()))!r}"):
        begin(tmp_path, 3, resume=True, **other)


def test_a_folder_in_use_is_refused_without_resume_and_a_new_one_taken_with_it(tmp_path: Path) -> None:
    begin(tmp_path, 3, resume=True)
    with pytest.raises(InputError, match="not empty, and answers are never written over others"):
        begin(tmp_path, 3)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="this is a file"):
        job.begin(tmp_path / "file", [], job.Answering(**ANSWERING), resume=False)


@pytest.mark.parametrize("text", ["", "{}\n", "no JSON\n", "[]\n", '{"kind": "edgeport-run map 2"}\n', "TORN"])
def test_a_folder_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    begin(tmp_path, 3)
    place = tmp_path / "out" / "_job.jsonl"
    place.write_text(text if text != "TORN" else place.read_text()[:-5])
    before = place.read_text()
    with pytest.raises(InputError, match="no job of `edgeport-run map` to go on with"):
        begin(tmp_path, 3, resume=True)
    assert place.read_text() == before
    place.unlink()
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
        job.begin(tmp_path / "file" / "out", [str(tmp_path / "list.txt")], job.Answering(**ANSWERING), resume=False)
