"""Parquet files as sources: a column of paths, or the images' own files row by row."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from edgeport_runtime.decoding import ImageSource
from edgeport_runtime.errors import ImageError, InputError, first_line
from edgeport_runtime.regular_files import what_is

COLUMNS = "a column `path` of strings, and `bytes` of binary if it holds the files, or `image` with both in it"
BUFFER = 2**20  # bytes of a column that are read at once, however large its row group is
Column = tuple[str, str]  # a column, and a field of it or ""
Named = tuple[str, ImageSource | ImageError]  # an image and what to call it


@dataclass(frozen=True, kw_only=True)
class TableFacts:
    """`footer`: a hash of the file's description. `paths`: of a table of paths; None if it holds files. `groups`: rows of each row group."""

    name: str
    footer: str
    paths: Sequence[str] | None
    groups: Sequence[int]


def read_table(name: str) -> TableFacts:
    """Raises InputError."""
    try:
        with _opened(name) as table:
            paths, files = _columns(table.schema_arrow, name)
            listed = None if files is not None else _paths(table, name, paths)
            groups = [table.metadata.row_group(group).num_rows for group in range(table.metadata.num_row_groups)]
            return TableFacts(name=name, footer=_footer(name), paths=listed, groups=groups)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{name}: this Parquet file cannot be read ({first_line(error)}); name another one, or mend it") from error


def _opened(name: str) -> Any:
    kind = what_is(name)
    if kind != "a file":  # a pipe would be waited for
        raise InputError(f"{name}: expected a Parquet file, but {f'this is {kind}' if kind else 'there is no such file'}")
    return pq.ParquetFile(name, buffer_size=BUFFER)


def _footer(name: str) -> str:
    """Sizes, places and statistics of all columns stand in it, so another content has the same one only if it was written without statistics."""
    with open(name, "rb") as file:  # noqa: PTH123  # a regular file, which was opened before
        end = file.seek(0, 2)
        file.seek(max(0, end - 8))
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(0, end - 8 - length))
        return hashlib.sha256(file.read()).hexdigest()[:16]


def _columns(schema: pa.Schema, name: str) -> tuple[Column | None, Column | None]:
    """The columns of paths and of files; one of them may be None. Raises InputError."""
    kinds: dict[Column, Any] = {}
    for field in (each for each in schema if schema.names.count(each.name) == 1 and "." not in each.name):
        kinds |= {(field.name, each.name): each.type for each in field.type} if pa.types.is_struct(field.type) else {(field.name, ""): field.type}
    texts = [each for each in (("path", ""), ("image", "path"), ("image", "")) if each in kinds and _is(kinds[each], "string")]
    files = [each for each in (("bytes", ""), ("image", "bytes"), ("image", "")) if each in kinds and _is(kinds[each], "binary")]
    if not texts and not files:
        raise InputError(f"{name}: expected {COLUMNS}; its columns are {', '.join(f'{each.name} ({each.type})' for each in schema) or 'none'}")
    return next(iter(texts), None), next(iter(files), None)


def _is(kind: Any, name: str) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(getattr(pa.types, f"is_{each}")(kind) for each in (name, f"large_{name}", f"{name}_view"))


def _values(batch: Any, column: Column) -> list[Any]:
    found = batch.column(column[0])
    values: list[Any] = (pc.struct_field(found, column[1]) if column[1] else found).to_pylist()
    return values


def _paths(table: Any, name: str, column: Column | None) -> list[str]:
    assert column is not None  # or it would hold files
    found = [path for batch in table.iter_batches(columns=[".".join(filter(None, column))]) for path in _values(batch, column)]
    for row, path in enumerate(found):
        if not path:
            raise InputError(f"{name}: row {row} has no path; remove this row, or give it one")
    return found


def read_rows_of(name: str, footer: str, group: int, first: int, rows: int, at_once: int) -> Iterator[list[Named]]:
    """Images of a row group from row `first` on, `at_once` at a time. A name is the row's path, or the Parquet file and the number of the row in it, from 0.

    Raises InputError if the file is another one than it was.
    """
    try:
        with _opened(name) as table:
            if _footer(name) != footer:
                raise InputError(f"{name}: this Parquet file is another one than when the job began; begin another job with another --out")
            paths, files = _columns(table.schema_arrow, name)
            before = sum(table.metadata.row_group(each).num_rows for each in range(group))
            columns = [".".join(filter(None, each)) for each in (paths, files) if each]
            place = 0
            for batch in table.iter_batches(batch_size=at_once, row_groups=[group], columns=columns):
                wanted = batch.slice(max(0, first - place), max(0, first + rows - max(first, place)))
                number = before + max(first, place)
                place += len(batch)
                if len(wanted):
                    yield list(_named(wanted, paths, files, name, number))
                if place >= first + rows:
                    return
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{name}: this Parquet file cannot be read any more ({first_line(error)})") from error


def _named(batch: Any, paths: Column | None, files: Column | None, name: str, number: int) -> Iterator[Named]:
    assert files is not None  # or the chunk would hold paths
    named: Sequence[str | None] = _values(batch, paths) if paths else [None] * len(batch)
    for row, (path, file) in enumerate(zip(named, _values(batch, files), strict=True), number):
        called = path or f"{name}#{row}"
        yield called, file if file is not None else path or ImageError(f"{called}: this row holds no file and no path")
