"""Rows of answers as Parquet: `path`, `answer`, `error`. One of the last two is null."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from edgeport_runtime.errors import ImageError, InputError, first_line
from edgeport_runtime.many_files import AS_NAMED, facts
from edgeport_runtime.predictions import Answer, Prediction
from edgeport_runtime.result_files import as_file

LABEL = [("label", pa.string()), ("index", pa.int64()), ("score", pa.float64())]
# By the task; the others' answers are files, whose bytes a row holds.
KINDS = {
    "classification": pa.struct([*LABEL, ("top", pa.list_(pa.struct(LABEL)))]),
    "detection": pa.list_(pa.struct([*LABEL, ("box", pa.list_(pa.float64()))])),
    "embedding": pa.list_(pa.float32()),
    "tensors": pa.string(),
}
Row = dict[str, Any]


def schema(task: str) -> pa.Schema:
    """The columns for a task's answers."""
    return pa.schema([("path", pa.string()), ("answer", KINDS.get(task, pa.binary())), ("error", pa.string())])


def row(name: str, answer: Answer | ImageError) -> Row:
    """One row. A name that is no UTF-8 is written with escapes, since Parquet's strings are UTF-8."""
    error = _utf8(str(answer)) if isinstance(answer, ImageError) else None
    return {"path": _utf8(name), "answer": None if isinstance(answer, ImageError) else _value(answer), "error": error}


def _utf8(text: str) -> str:
    return text.encode("utf-8", AS_NAMED).decode("utf-8", "backslashreplace")


def _value(answer: Answer) -> Any:
    """As `KINDS` has it."""
    if isinstance(answer, np.ndarray):
        return answer
    found = facts(answer)
    if found is None:
        return as_file(answer)
    return found if isinstance(answer, Prediction) else found["detections"] if "detections" in found else json.dumps(found["values"])


def write_rows(some: Iterable[Sequence[Row]], place: Path, task: str, about: Mapping[str, str]) -> None:
    """A file that is there whole or not at all. `some`: rows as they come, each lot a row group. `about`: facts for the file's own metadata.

    Raises InputError.
    """
    columns = schema(task).with_metadata({f"edgeport.{key}": value for key, value in about.items()})
    part = place.with_name(f".{place.name}.{uuid4().hex}")  # on a network drive others may write the same file at this moment
    try:
        with part.open("wb") as file:
            with pq.ParquetWriter(file, columns, compression="zstd") as writer:
                for rows in some:
                    writer.write_table(pa.Table.from_pylist(list(rows), schema=columns))
            file.flush()
            os.fsync(file.fileno())  # or a loss of power could leave an empty file under the name
        part.replace(place)
    except OSError as error:
        raise InputError(f"{place}: the answers cannot be written ({first_line(error)}); free some space there, and go on with --resume") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def count_rows(place: Path) -> tuple[int, int] | None:
    """How many rows a file has, and how many of them are errors, without reading them; None if it is not there, or torn."""
    try:
        with pq.ParquetFile(place) as table:
            found = table.metadata
            groups = [found.row_group(group) for group in range(found.num_row_groups)]
            errors = [group.column(group.num_columns - 1) for group in groups]  # the last column; it must outlive its statistics, which point into it
            if not all(each.is_stats_set for each in errors):
                return None
            return found.num_rows, found.num_rows - sum(each.statistics.null_count for each in errors)
    except (OSError, pa.ArrowException):
        return None


def read_rows(place: Path) -> list[Row]:
    """All of them. Raises InputError."""
    try:
        with pq.ParquetFile(place) as table:
            rows: list[Row] = table.read().to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{place}: the answers of an earlier call cannot be read ({first_line(error)}); delete this file, and go on with --resume") from error
    return rows
