"""A job in its folder: which images it has, who answers them, and what is left to do. Whoever dies, the folder says where to go on.

    _job.jsonl                     whose answers these are, then a line for each chunk of images
    part-000012-1a2b3c4d.parquet   the rows of chunk 12, there whole or not at all
    _begun/part-000012-….txt       how often that chunk was begun, while its rows are not there

A chunk's rows have one name, whoever writes them, so no image can have two rows. Readers of Parquet pass over names that begin with `_`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeport_runtime.errors import InputError, first_line
from edgeport_runtime.regular_files import open_regular, what_is

from .answers import count_rows
from .sources import Chunk, find_chunks

JOB, BEGUN = "_job.jsonl", "_begun"
KIND = "edgeport-run map 1"  # another number for a folder that this version would misread


@dataclass(frozen=True, kw_only=True)
class Answering:
    """Whose answers a folder holds; a job goes on only with the same.

    `model`: see `many_files.fingerprint`. `task`: the contract's. `top`, `min_score`: of an answer. `base`: the folder to which paths of images are
    relative.
    """

    model: str
    task: str
    top: int
    min_score: float | None
    base: str

    def to_json(self) -> dict[str, Any]:
        """A mapping of JSON's own types."""
        return {"kind": KIND, "model": self.model, "task": self.task, "top": self.top, "min_score": self.min_score, "base": self.base}


@dataclass(frozen=True, kw_only=True)
class Job:
    """`folder`: of the answers. `chunks`: all, in order; a chunk's number is its place among them."""

    folder: Path
    answering: Answering
    chunks: Sequence[Chunk] = field(default_factory=list)

    @property
    def images(self) -> int:
        """How many there are."""
        return sum(chunk.count for chunk in self.chunks)

    def place(self, number: int) -> Path:
        """The file of a chunk's rows."""
        return self.folder / self.chunks[number].part(number)

    def begun(self, number: int) -> Path:
        """Where it is noted how often a chunk was begun."""
        return self.folder / BEGUN / f"{self.place(number).stem}.txt"

    def rows(self, number: int) -> tuple[int, int] | None:
        """How many rows of a chunk there are, and how many are errors; None if they have to be made."""
        found = count_rows(self.place(number))
        return found if found is not None and found[0] == self.chunks[number].count else None

    def left(self) -> list[int]:
        """The numbers of the chunks without rows, or with errors among them, which are tried again."""
        rows = map(self.rows, range(len(self.chunks)))
        return [number for number, found in enumerate(rows) if found is None or found[1]]


def begin(folder: Path, sources: Sequence[str], answering: Answering, *, resume: bool) -> Job:
    """A new job, or with `resume` the one that is in the folder, with what its sources have got since.

    Raises InputError if the folder holds something else, or another bundle's answers.
    """
    there = what_is(folder)
    if there not in (None, "a folder"):
        raise InputError(f"{folder}: expected a folder for the answers, but this is {there}; name another one with --out")
    used = there is not None and any(folder.iterdir())
    if used and not resume:
        raise InputError(f"{folder} is not empty, and answers are never written over others; name another folder with --out, or go on in it with --resume")
    known = _stored(folder, answering) if used else []
    job = Job(folder=folder, answering=answering, chunks=[*known, *find_chunks(sources, known)])
    lines = [json.dumps(answering.to_json()), *(chunk.to_json() for chunk in job.chunks)]
    part = folder / f".{JOB}"
    try:
        (folder / BEGUN).mkdir(parents=True, exist_ok=True)
        part.write_text("\n".join([*lines, ""]), encoding="utf-8")
        part.replace(folder / JOB)
    except OSError as error:
        raise InputError(f"{folder}: the answers cannot be written there ({first_line(error)}); name another folder with --out") from error
    return job


def _stored(folder: Path, answering: Answering) -> list[Chunk]:
    """The chunks of the job that is in the folder. Raises InputError if it is none, or not this one."""
    try:
        with open_regular(folder / JOB) as file:  # of any length
            found = json.loads(file.readline())
            if found.get("kind") != KIND:
                raise ValueError(f"it is of the kind {found.get('kind')!r}")
            chunks = [Chunk.from_json(line.decode()) for line in file]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{folder}: there is no job of `edgeport-run map` to go on with ({first_line(error)}); name another folder with --out") from error
    for key, value in answering.to_json().items():
        if found.get(key) != value:
            raise InputError(f"{folder}: this job was begun with {key} {found.get(key)!r}, and now it is {value!r}; go on with the same, or name another --out")
    return chunks
