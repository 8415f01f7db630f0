"""Sources of images: each path once, in the order given, and files inside Parquet by their rows."""

import io
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgeport_runtime.errors import ImageError, InputError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
sources = pytest.importorskip("edgeport_runtime.mapping.sources")


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (level, level, level)).save(file, "PNG")
    return file.getvalue()


def images(*given: str) -> list[str]:
    return [image for chunk in sources.find_chunks(given) for image in chunk.images]


def read(chunk: Any) -> list[tuple[str, Any]]:
    return [each for some in sources.read_chunk(chunk) for each in some]


def test_folders_globs_lists_and_tables_of_paths_give_each_path_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("in/b.png", "in/deep/a.png", "c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    (tmp_path / "list.txt").write_text("c.png\r\n\nnot there.png\nin/b.png\n")
    pq.write_table(pa.table({"path": ["in/b.png", "d.jpg", None], "label": [1, 2, 3]}), "paths.parquet")
    assert images("in") == ["in/b.png", "in/deep/a.png"]
    assert images("in/*.png", "in") == ["in/b.png", "in/deep/a.png"]
    assert images("list.txt") == ["c.png", "not there.png", "in/b.png"]
    assert images("c.png", "paths.parquet", "*.txt") == ["c.png", "in/b.png", "d.jpg", "not there.png"]
    assert images("*.parquet") == ["in/b.png", "d.jpg"] == images(str(tmp_path / "*.parquet"))


def test_a_list_keeps_names_that_are_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff.png\n")
    assert images(str(tmp_path / "list.txt")) == [os.fsdecode(b"\xff.png")]


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (17, [16, 1]), (2048, [32] * 64), (40_000, [256] * 156 + [64])])
def test_chunks_are_many_of_a_few_images_and_large_ones_of_many(count: int, sizes: list[int], tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("".join(f"{index}.png\n" for index in range(count)))
    chunks = sources.find_chunks([str(tmp_path / "l.txt")])
    assert [chunk.count for chunk in chunks] == sizes
    assert [int(Path(image).stem) for chunk in chunks for image in chunk.images] == list(range(count))
    assert sources.find_chunks([str(tmp_path / "l.txt")], chunks[1:]) == chunks[:1] or count > 256  # what is known is left out
    assert len({chunk.part(number) for number, chunk in enumerate(chunks)}) == len(chunks)
    assert [sources.Chunk.from_json(chunk.to_json()) for chunk in chunks] == chunks


def hugging_face(rows: list[tuple[bytes | None, str | None]]) -> Any:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({"image": pa.array([{"bytes": file, "path": path} for file, path in rows], kind), "label": pa.array([0] * len(rows))})


FILES = [png(level) for level in range(5)]
TABLES = {
    "bytes alone": (pa.table({"bytes": FILES}), "{table}#{row}"),
    "large": (pa.table({"bytes": pa.array(FILES, pa.large_binary()), "path": pa.array([f"{row}.png" for row in range(5)], pa.large_string())}), "{row}.png"),
    "image alone": (pa.table({"image": FILES}), "{table}#{row}"),
    "a struct": (hugging_face([(file, f"{row}.png") for row, file in enumerate(FILES)]), "{row}.png"),
    "a struct without paths": (hugging_face([(file, None) for file in FILES]), "{table}#{row}"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_files_inside_parquet_are_read_by_row_groups(kind: str, tmp_path: Path) -> None:
    table, name = TABLES[kind]
    place = tmp_path / "t.parquet"
    pq.write_table(table, place, row_group_size=2)
    chunks = sources.find_chunks([str(tmp_path)])  # a folder without images
    assert [(chunk.group, chunk.count) for chunk in chunks] == [(0, 2), (1, 2), (2, 1)]
    assert [sources.Chunk.from_json(chunk.to_json()) for chunk in chunks] == chunks
    found = [each for chunk in chunks for each in read(chunk)]
    assert found == [(name.format(table=place, row=row), file) for row, file in enumerate(FILES)]


def test_a_row_without_a_file_takes_its_path_or_is_an_error(tmp_path: Path) -> None:
    table = hugging_face([(None, "a.png"), (None, None), (png(1), None)])
    table = table.append_column("more", pa.array([1, 2, 3]))
    pq.write_table(pa.table({"image": pa.concat_arrays([table["image"].combine_chunks(), pa.nulls(1, table["image"].type)])}), tmp_path / "t.parquet")
    (chunk,) = sources.find_chunks([str(tmp_path / "t.parquet")])
    first, second, third, fourth = read(chunk)
    assert first == ("a.png", "a.png") and third[1] == png(1)
    assert all(isinstance(each[1], ImageError) and each[0].endswith(f"#{row}") for row, each in ((1, second), (3, fourth)))
    assert "holds no file and no path" in str(fourth[1])


def test_many_rows_are_read_some_at_a_time(tmp_path: Path) -> None:
    pq.write_table(pa.table({"bytes": FILES * 40}), tmp_path / "t.parquet")
    (chunk,) = sources.find_chunks([str(tmp_path / "t.parquet")])
    assert [len(some) for some in sources.read_chunk(chunk)] == [64, 64, 64, 8]
    assert [name.rpartition("#")[2] for name, _ in read(chunk)] == [str(row) for row in range(200)]


WRONG = {
    "nothing/*.parquet": "no file matches",
    "empty.txt": "this list is empty",
    "missing.txt": "this list of images cannot be read (No such file or directory)",
    "text.parquet": "this Parquet file cannot be read",
    "missing.parquet": "this Parquet file cannot be read",
    "labels.parquet": "expected a column `path` of strings",
    "folder": "expected a folder of images",
    "nothing/*.png": "no image",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_source_is_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "text.parquet").write_text("text")
    (tmp_path / "folder").mkdir()
    pq.write_table(pa.table({"label": [1]}), tmp_path / "labels.parquet")
    with pytest.raises(InputError) as raised:
        sources.find_chunks([str(tmp_path / name)])
    assert WRONG[name] in str(raised.value) and name in str(raised.value)


def test_a_table_that_changed_since_the_job_began_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"bytes": FILES}), tmp_path / "t.parquet")
    (chunk,) = sources.find_chunks([str(tmp_path / "t.parquet")])
    pq.write_table(pa.table({"bytes": FILES[:4]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="row groups are others than when the job began"):
        read(chunk)
    (tmp_path / "t.parquet").unlink()
    with pytest.raises(InputError, match="cannot be read any more"):
        read(chunk)
