"""Sources of images: each path once, in the order given, cut into chunks of a size that fits."""

import os
from pathlib import Path
from typing import Any

import pytest

from edgeport_runtime.errors import InputError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
sources = pytest.importorskip("edgeport_runtime.mapping.sources")


def images(*given: str) -> list[str]:
    return [image for chunk in sources.find_chunks(given) for image in chunk.images]


def test_folders_globs_lists_and_tables_of_paths_give_each_path_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("in/b.png", "in/deep/a.png", "c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfc.png\r\n\nnot there.png\n./in/b.png\n")  # with a mark of its encoding, as some editors write
    pq.write_table(pa.table({"path": ["in/b.png", "d.jpg"], "label": [1, 2]}), "paths.parquet")
    assert images("in") == ["in/b.png", "in/deep/a.png"]
    assert images("in/*.png", "in", "./in", str(tmp_path / "in")) == ["in/b.png", "in/deep/a.png"]  # whatever it is called
    assert images("list.txt") == ["c.png", "not there.png", "./in/b.png"]
    assert images("c.png", "paths.parquet", "*.txt") == ["c.png", "in/b.png", "d.jpg", "not there.png"]
    assert images("path?.parquet") == ["in/b.png", "d.jpg"] == images(str(tmp_path / "*.parquet"))


def test_a_list_keeps_names_that_are_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff.png\n")
    assert images(str(tmp_path / "list.txt")) == [os.fsdecode(b"\xff.png")]


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (17, [16, 1]), (2048, [32] * 64), (40_000, [256] * 156 + [64])])
def test_chunks_are_many_of_a_few_images_and_large_ones_of_many(count: int, sizes: list[int], tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("".join(f"{index}.png\n" for index in range(count)))
    chunks = sources.find_chunks([str(tmp_path / "l.txt")])
    assert [chunk.count for chunk in chunks] == sizes
    assert [int(Path(image).stem) for chunk in chunks for image in chunk.images] == list(range(count))
    again = sources.find_chunks([str(tmp_path / "l.txt")], chunks[1:])
    assert [image for chunk in again for image in chunk.images] == list(chunks[0].images)  # what is known is left out
    assert len({sources.part_name(number, chunk) for number, chunk in enumerate(chunks)}) == len(chunks)
    assert [sources.Chunk.from_json(chunk.to_json()) for chunk in chunks] == chunks


def test_the_order_is_that_of_the_sources(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    pq.write_table(pa.table({"bytes": [b"1", b"2", b"3"]}), tmp_path / "t.parquet", row_group_size=2)
    found = sources.find_chunks([str(tmp_path / name) for name in ("a.png", "t.parquet", "b.png", "t.parquet")])
    assert [(Path(chunk.name).name, chunk.group, chunk.count) for chunk in found] == [
        ("a.png", 0, 1),
        ("t.parquet", 0, 2),
        ("t.parquet", 1, 1),
        ("b.png", 0, 1),
    ]


@pytest.mark.parametrize(("rows", "pieces"), [(5, [5]), (256, [256]), (600, [256, 256, 88]), (40_000, [2500] * 16)])
def test_a_large_row_group_is_cut_into_few_pieces(rows: int, pieces: list[int], tmp_path: Path) -> None:
    pq.write_table(pa.table({"bytes": [b"x"] * rows}), tmp_path / "t.parquet", row_group_size=10**6)
    chunks = sources.find_chunks([str(tmp_path / "t.parquet")])
    assert [chunk.rows for chunk in chunks] == pieces and [chunk.first for chunk in chunks] == [sum(pieces[:index]) for index in range(len(pieces))]
    assert [sources.Chunk.from_json(chunk.to_json()) for chunk in chunks] == chunks


def test_answers_of_a_job_are_none_of_its_sources(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("in.parquet", "out/part-000000-00000000.parquet"):
        pq.write_table(pa.table({"path": [f"{name}.png"]}), tmp_path / name)
    (chunk,) = sources.find_chunks([str(tmp_path)], (), tmp_path / "out")
    assert chunk.images == ("in.parquet.png",)
    assert len(sources.find_chunks([str(tmp_path / "out")])[0].images) == 1  # of another job they may be


def test_a_table_that_changed_since_the_job_began_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "t.parquet"
    pq.write_table(pa.table({"bytes": [b"1", b"2"]}), place)
    known = sources.find_chunks([str(place)])
    assert sources.find_chunks([str(place)], known) == []
    for others in ([b"1", b"3"], [b"1", b"2", b"3"]):
        pq.write_table(pa.table({"bytes": others}), place)
        with pytest.raises(InputError, match="another one than when the job began"):
            sources.find_chunks([str(place)], known)


WRONG = {
    "nothing/*.parquet": "no file matches",
    "empty.txt": "this list is empty",
    "missing.txt": "this list of images cannot be read (No such file or directory)",
    "folder": "expected a folder of images",
    "nothing/*.png": "no image",
    "mistyped": "there is no such file or folder",
    "mistyped.png": "there is no such file or folder",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_source_is_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError) as raised:
        sources.find_chunks([str(tmp_path / name)])
    assert WRONG[name] in str(raised.value) and name in str(raised.value)


@pytest.mark.parametrize(
    "line", ["1", "null", "[]", "{}", '{"images": []}', '{"images": [1, "x"]}', '{"images": "x"}', '{"table": "t", "rows": "1"}', '{"other": 1}', "{"]
)
def test_a_line_that_is_no_chunk_is_refused(line: Any) -> None:
    with pytest.raises(ValueError):  # json's own among them
        sources.Chunk.from_json(line)
