"""Parquet files as sources: paths, or files row by row, in the forms in which people have them."""

import io
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgeport_runtime.errors import ImageError, InputError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
tables = pytest.importorskip("edgeport_runtime.mapping.tables")


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (level, level, level)).save(file, "PNG")
    return file.getvalue()


def rows_of(place: Path, group: int = 0, first: int = 0, rows: int = 1000, at_once: int = 64) -> list[list[tuple[str, Any]]]:
    facts = tables.read_table(str(place))
    return list(tables.read_rows_of(str(place), facts.footer, group, first, min(rows, facts.groups[group]), at_once))


def hugging_face(rows: list[tuple[bytes | None, str | None]]) -> Any:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({"image": pa.array([{"bytes": file, "path": path} for file, path in rows], kind), "label": pa.array([0] * len(rows))})


FILES = [png(level) for level in range(5)]
PATHS = [f"{row}.png" for row in range(5)]
TABLES = {
    "bytes alone": (pa.table({"bytes": FILES}), "{table}#{row}"),
    "large": (pa.table({"bytes": pa.array(FILES, pa.large_binary()), "path": pa.array(PATHS, pa.large_string())}), "{row}.png"),
    "categories": (pa.table({"bytes": FILES, "path": pa.array(PATHS).dictionary_encode()}), "{row}.png"),
    "image alone": (pa.table({"image": FILES}), "{table}#{row}"),
    "a struct": (hugging_face(list(zip(FILES, PATHS, strict=True))), "{row}.png"),
    "a struct without paths": (hugging_face([(file, None) for file in FILES]), "{table}#{row}"),
    "a name with a dot beside it": (hugging_face(list(zip(FILES, PATHS, strict=True))).append_column("image.path", pa.array(FILES)), "{row}.png"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_files_inside_parquet_are_read_by_row_groups(kind: str, tmp_path: Path) -> None:
    table, name = TABLES[kind]
    place = tmp_path / "t.parquet"
    pq.write_table(table, place, row_group_size=2)
    facts = tables.read_table(str(place))
    assert facts.paths is None and list(facts.groups) == [2, 2, 1]
    found = [each for group in range(3) for some in rows_of(place, group) for each in some]
    assert found == [(name.format(table=place, row=row), file) for row, file in enumerate(FILES)]


@pytest.mark.parametrize(
    "paths", [pa.array(PATHS), pa.array(PATHS).dictionary_encode(), pa.array(PATHS, pa.string_view())], ids=["plain", "categories", "view"]
)
def test_paths_alone_are_listed(paths: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": paths}), tmp_path / "t.parquet", row_group_size=2)
    assert tables.read_table(str(tmp_path / "t.parquet")).paths == PATHS


@pytest.mark.parametrize("at_once", [1, 3, 64])
@pytest.mark.parametrize(("first", "rows"), [(0, 200), (0, 7), (61, 9), (64, 64), (199, 1), (100, 100)])
def test_a_piece_of_a_row_group_is_these_rows_alone(first: int, rows: int, at_once: int, tmp_path: Path) -> None:
    place = tmp_path / "t.parquet"
    pq.write_table(pa.table({"bytes": [bytes([row]) for row in range(210)]}), place, row_group_size=200)
    found = rows_of(place, 0, first, rows, at_once)
    assert [each for some in found for each in some] == [(f"{place}#{row}", bytes([row])) for row in range(first, first + rows)]
    assert all(0 < len(some) <= at_once for some in found)
    assert rows_of(place, 1)[0][0] == (f"{place}#200", bytes([200]))


def test_a_row_without_a_file_takes_its_path_or_is_an_error(tmp_path: Path) -> None:
    table = hugging_face([(None, "a.png"), (None, None), (png(1), None)])
    pq.write_table(pa.table({"image": pa.concat_arrays([table["image"].combine_chunks(), pa.nulls(1, table["image"].type)])}), tmp_path / "t.parquet")
    ((first, second, third, fourth),) = rows_of(tmp_path / "t.parquet")
    assert first == ("a.png", "a.png") and third[1] == png(1)
    assert all(isinstance(each[1], ImageError) and each[0].endswith(f"#{row}") for row, each in ((1, second), (3, fourth)))
    assert "holds no file and no path" in str(fourth[1])


def write(table: Any, place: Path) -> None:
    pq.write_table(table, place)


WRONG: dict[str, tuple[Any, str]] = {
    "text": (lambda place: place.write_text("text"), "this Parquet file cannot be read"),
    "missing": (lambda place: None, "expected a Parquet file, but there is no such file"),
    "a pipe": (os.mkfifo, "expected a Parquet file, but this is a pipe"),
    "a folder": (Path.mkdir, "expected a Parquet file, but this is a folder"),
    "labels": (lambda place: write(pa.table({"label": [1]}), place), "expected a column `path` of strings, and `bytes` of binary if it holds the files"),
    "numbers": (lambda place: write(pa.table({"path": [1]}), place), "its columns are path (int64)"),
    "two of one name": (lambda place: write(pa.table([pa.array(["a"]), pa.array(["b"])], names=["path", "path"]), place), "path (string), path (string)"),
    "no path": (lambda place: write(pa.table({"path": ["a", None]}), place), "row 1 has no path"),
    "an empty path": (lambda place: write(pa.table({"path": ["", "a"]}), place), "row 0 has no path"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_table_is_one_sentence(kind: str, tmp_path: Path) -> None:
    make, words = WRONG[kind]
    make(tmp_path / "t.parquet")
    with pytest.raises(InputError) as raised:
        tables.read_table(str(tmp_path / "t.parquet"))
    assert words in str(raised.value) and str(tmp_path / "t.parquet") in str(raised.value)


def test_a_table_that_changed_is_not_read(tmp_path: Path) -> None:
    place = tmp_path / "t.parquet"
    write(pa.table({"bytes": FILES}), place)
    footer = tables.read_table(str(place)).footer
    write(pa.table({"bytes": FILES[::-1]}), place)  # as many rows, and as many bytes
    with pytest.raises(InputError, match="another one than when the job began"):
        list(tables.read_rows_of(str(place), footer, 0, 0, 5, 64))
    place.unlink()
    with pytest.raises(InputError, match="there is no such file"):
        list(tables.read_rows_of(str(place), footer, 0, 0, 5, 64))
