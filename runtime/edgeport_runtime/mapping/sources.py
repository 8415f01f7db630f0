"""Which images there are: files, folders, globs, lists, and Parquet with paths or with the files themselves, cut into chunks."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from edgeport_runtime.decoding import ImageSource
from edgeport_runtime.errors import ImageError, InputError, first_line
from edgeport_runtime.images import SUFFIXES
from edgeport_runtime.many_files import AS_NAMED, find_files
from edgeport_runtime.regular_files import open_regular, what_is

LIST, TABLE = ".txt", ".parquet"
AT_ONCE = 64  # images whose files and answers are in memory
FEWEST, MOST = 16, 256  # images of a chunk: many chunks of a small source, so that all workers have some, and few files of a large one
COLUMNS = "a column `path` of strings, and `bytes` of binary if it holds the files, or `image` with both in it"


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Images that one worker answers in one go, and whose rows are one file.

    `images`: paths. Empty if the chunk is a row group, with the number `group`, of the Parquet file `table`, which has `rows` rows.
    """

    images: tuple[str, ...] = ()
    table: str = ""
    group: int = 0
    rows: int = 0

    @property
    def count(self) -> int:
        """How many images it has."""
        return len(self.images) or self.rows

    def to_json(self) -> str:
        """One line."""
        return json.dumps({"images": self.images} if self.images else {"table": self.table, "group": self.group, "rows": self.rows})

    @classmethod
    def from_json(cls, line: str) -> "Chunk":
        """What `to_json` gave. Raises ValueError, KeyError or TypeError."""
        found = json.loads(line)
        return cls(images=tuple(found["images"])) if "images" in found else cls(table=found["table"], group=int(found["group"]), rows=int(found["rows"]))

    def part(self, number: int) -> str:
        """The name of the file of its rows. The same images have the same name, whoever answers them and however often."""
        return f"part-{number:06d}-{hashlib.sha256(self.to_json().encode()).hexdigest()[:8]}{TABLE}"


def find_chunks(given: Sequence[str], known: Sequence[Chunk] = ()) -> list[Chunk]:
    """All images of the sources that `known` chunks do not have, each path once. Raises InputError for a source that cannot be read."""
    images: dict[str, None] = {}
    groups: dict[Chunk, None] = {}
    for each in given:
        tables = _tables(each)
        for name in tables:
            paths, found = (_listed(name), []) if name.lower().endswith(LIST) else _of_table(name)
            images |= dict.fromkeys(paths)
            groups |= dict.fromkeys(found)
        if not tables:
            images |= dict.fromkeys(str(file.path) for file in find_files([each]))
    old = {image for chunk in known for image in chunk.images}
    left = [image for image in images if image not in old]
    size = min(max(-(-len(left) // AT_ONCE), FEWEST), MOST)
    chunks = [Chunk(images=tuple(left[start : start + size])) for start in range(0, len(left), size)]
    return chunks + [chunk for chunk in groups if chunk not in set(known)]


def _tables(given: str) -> list[str]:
    """The lists and Parquet files that a source names: itself, what a pattern for them finds, or those of a folder without images."""
    path = Path(given)
    if what_is(path) == "a folder":
        if any(file.suffix.lower() in SUFFIXES for file in path.rglob("*")):
            return []
        return [str(file) for file in sorted(path.rglob(f"*{TABLE}"))]
    if path.suffix.lower() not in (LIST, TABLE):
        return []
    if what_is(path) is None and "*" in given:
        found = sorted(str(file) for file in Path(path.anchor or ".").glob(str(path.relative_to(path.anchor) if path.anchor else path)))
        if not found:
            raise InputError(f"{given}: no file matches")
        return found
    return [given]


def _listed(name: str) -> list[str]:
    """The paths of a list, one in each line."""
    try:
        with open_regular(name) as file:  # of any length
            lines = [line.rstrip(b"\r\n").decode("utf-8", AS_NAMED) for line in file]
    except OSError as error:
        raise InputError(f"{name}: this list of images cannot be read ({first_line(error)})") from error
    found = [line for line in lines if line.strip()]
    if not found:
        raise InputError(f"{name}: expected a path of an image in each line, but this list is empty")
    return found


def _of_table(name: str) -> tuple[list[str], list[Chunk]]:
    """The paths of a Parquet file, or its row groups if it holds the files themselves."""
    try:
        with pq.ParquetFile(name) as table:
            paths, files = _columns(table.schema_arrow, name)
            if files is not None:
                rows = [table.metadata.row_group(group).num_rows for group in range(table.metadata.num_row_groups)]
                return [], [Chunk(table=name, group=group, rows=count) for group, count in enumerate(rows) if count]
            assert paths is not None  # one of both is there
            return [each for batch in table.iter_batches(columns=[paths]) for each in _flat(batch, paths).to_pylist() if each], []
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{name}: this Parquet file cannot be read ({first_line(error)})") from error


def _columns(schema: pa.Schema, name: str) -> tuple[str | None, str | None]:
    """The columns of paths and of files, as `a` or `a.b`; one may be None. Raises InputError."""
    kinds: dict[str, Any] = {}
    for field in schema:
        kinds |= {f"{field.name}.{each.name}": each.type for each in field.type} if pa.types.is_struct(field.type) else {field.name: field.type}
    texts = [each for each in ("path", "image.path", "image") if each in kinds and _is(kinds[each], "string")]
    files = [each for each in ("bytes", "image.bytes", "image") if each in kinds and _is(kinds[each], "binary")]
    if not texts and not files:
        raise InputError(f"{name}: expected {COLUMNS}; its columns are {', '.join(map(str, schema.names))}")
    return next(iter(texts), None), next(iter(files), None)


def _is(kind: Any, name: str) -> bool:
    return any(getattr(pa.types, f"is_{each}{name}")(kind) for each in ("", "large_"))


def _flat(batch: Any, column: str) -> Any:
    """A column, or a field of one."""
    first, _, field = column.partition(".")
    found = batch.column(first)
    return pc.struct_field(found, field) if field else found


def read_chunk(chunk: Chunk) -> Iterator[list[tuple[str, ImageSource | ImageError]]]:
    """Its images by name, some at once. A name is the path that was given, or the Parquet file and the row's number in it, from 0.

    Raises InputError if the Parquet file is another one than it was.
    """
    if chunk.images:
        for start in range(0, chunk.count, AT_ONCE):
            yield [(image, image) for image in chunk.images[start : start + AT_ONCE]]
        return
    try:
        with pq.ParquetFile(chunk.table) as table:
            yield from _rows(table, chunk)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{chunk.table}: this Parquet file cannot be read any more ({first_line(error)})") from error


def _rows(table: Any, chunk: Chunk) -> Iterator[list[tuple[str, ImageSource | ImageError]]]:
    if chunk.group >= table.metadata.num_row_groups or table.metadata.row_group(chunk.group).num_rows != chunk.rows:
        raise InputError(f"{chunk.table}: its row groups are others than when the job began; begin another one with another --out")
    paths, files = _columns(table.schema_arrow, chunk.table)
    assert files is not None  # or the chunk would hold paths
    number = sum(table.metadata.row_group(group).num_rows for group in range(chunk.group))
    for batch in table.iter_batches(batch_size=AT_ONCE, row_groups=[chunk.group], columns=[each for each in (paths, files) if each]):
        named: Sequence[str | None] = _flat(batch, paths).to_pylist() if paths else [None] * len(batch)
        found: list[tuple[str, ImageSource | ImageError]] = []
        for path, file in zip(named, _flat(batch, files).to_pylist(), strict=True):
            name = path or f"{chunk.table}#{number}"
            found.append((name, file if file is not None else path or ImageError(f"{name}: this row holds no file and no path")))
            number += 1
        yield found
