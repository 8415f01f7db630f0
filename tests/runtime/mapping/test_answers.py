"""Rows of answers: typed by the task, whole files or none, counted without being read."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeport_runtime.errors import ImageError, InputError
from edgeport_runtime.predictions import Detections, FloatMap, Label, Prediction, Segmentation, Values

pa = pytest.importorskip("pyarrow")
answers = pytest.importorskip("edgeport_runtime.mapping.answers")

LABELS = (Label(label="dark", index=0, score=0.75), Label(label="bright", index=1, score=0.25))
TOP = [{"label": "dark", "index": 0, "score": 0.75}, {"label": "bright", "index": 1, "score": 0.25}]
BOXES = Detections(
    boxes=np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32), scores=np.array([0.5, 0.25], np.float32), classes=np.array([1, 0]), labels=("cat", "dog")
)
CASES: dict[str, tuple[Any, Any]] = {
    "classification": (Prediction(label="dark", index=0, score=0.75, top=LABELS), {"label": "dark", "index": 0, "score": 0.75, "top": TOP}),
    "detection": (
        BOXES,
        [{"label": "dog", "index": 1, "score": 0.5, "box": [1, 2, 3, 4]}, {"label": "cat", "index": 0, "score": 0.25, "box": [5, 6, 7, 8]}],
    ),
    "embedding": (np.array([0.5, -1.5], np.float32), [0.5, -1.5]),
}


def stored(task: str, rows: list[Any], place: Path) -> Any:
    answers.write_rows([rows], place, task, {"model": "abc int8"})
    return answers.read_rows(place)


@pytest.mark.parametrize("task", CASES)
def test_an_answer_comes_back_with_its_types(task: str, tmp_path: Path) -> None:
    answer, wanted = CASES[task]
    rows = [answers.row("a.png", answer), answers.row("b.png", ImageError("b.png: there is no such file"))]
    found = stored(task, rows, tmp_path / "part.parquet")
    assert found == [{"path": "a.png", "answer": wanted, "error": None}, {"path": "b.png", "answer": None, "error": "b.png: there is no such file"}]
    assert stored(task, found, tmp_path / "again.parquet") == found  # as kept rows are written again
    table = pa.parquet.ParquetFile(tmp_path / "part.parquet")
    assert table.schema_arrow.names == ["path", "answer", "error"] and table.schema_arrow.metadata[b"edgeport.model"] == b"abc int8"


def test_answers_that_are_files_are_their_bytes(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    (row,) = stored("image-to-image", [answers.row("a", Image.fromarray(pixels))], tmp_path / "1.parquet")
    assert (np.asarray(Image.open(io.BytesIO(row["answer"]))) == pixels).all()
    (row,) = stored("segmentation", [answers.row("a", Segmentation(classes=np.array([[0, 3]]), labels=()))], tmp_path / "2.parquet")
    assert np.asarray(Image.open(io.BytesIO(row["answer"]))).tolist() == [[0, 3]]
    (row,) = stored("map", [answers.row("a", FloatMap(values=np.array([[0.5, 2.0]], np.float32), range=None, unit=None))], tmp_path / "3.parquet")
    assert np.load(io.BytesIO(row["answer"])).tolist() == [[0.5, 2.0]]


def test_named_values_are_json(tmp_path: Path) -> None:
    values = Values(values={"age": 3.5}, points={"eye": (1.0, 2.0)}, units={}, arrays={"code": np.array([1, 2])})
    (row,) = stored("tensors", [answers.row("a", values)], tmp_path / "part.parquet")
    assert json.loads(row["answer"]) == {"values": {"age": 3.5}, "points": {"eye": [1.0, 2.0]}, "units": {}, "arrays": {"code": [1, 2]}}


def test_a_name_that_is_no_utf8_is_written_with_escapes(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.png")
    (row,) = stored("embedding", [answers.row(name, ImageError(f"{name}: no"))], tmp_path / "part.parquet")
    assert row["path"] == "\\xff.png" and row["error"] == "\\xff.png: no"


def test_rows_are_counted_and_a_torn_file_has_none(tmp_path: Path) -> None:
    place = tmp_path / "part.parquet"
    assert answers.count_rows(place) is None
    rows = [answers.row(str(index), CASES["embedding"][0] if index % 3 else ImageError("no")) for index in range(10)]
    answers.write_rows(iter([rows[:4], rows[4:]]), place, "embedding", {})
    assert answers.read_rows(place) == [{**row, "answer": row["answer"] if row["answer"] is None else [0.5, -1.5]} for row in rows]
    assert answers.count_rows(place) == (10, 4) and [path.name for path in tmp_path.iterdir()] == ["part.parquet"]
    place.write_bytes(place.read_bytes()[:-20])
    assert answers.count_rows(place) is None
    with pytest.raises(InputError, match="cannot be read"):
        answers.read_rows(place)


def test_what_cannot_be_written_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="go on with --resume"):
        answers.write_rows([[answers.row("a", ImageError("no"))]], tmp_path / "missing" / "part.parquet", "embedding", {})
    (tmp_path / "part.parquet").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        answers.write_rows([[answers.row("a", ImageError("no"))]], tmp_path / "part.parquet", "embedding", {})
    assert [path.name for path in tmp_path.iterdir()] == ["part.parquet"]
