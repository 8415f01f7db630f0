"""A job in its folder: which images it has, who answers them, and what is left to do. Whoever dies, the folder says where to go on.

    _job.jsonl                     whose answers these are, then a line for each chunk of images
    part-000012-1a2b3c4d.parquet   the rows of chunk 12, there whole or not at all
    _begun/part-000012-….txt       how often that chunk was begun, while its rows are not there
    _lock                          held by the one process that deals the chunks out

A chunk's rows have one name, whoever writes them, so no image can have two rows. Readers of Parquet pass over names that begin with `_`.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeport_runtime.errors import InputError, first_line
from edgeport_runtime.file_lock import locked
from edgeport_runtime.regular_files import open_regular, what_is

from .answers import count_rows
from .sources import Chunk, find_chunks, part_name

JOB, BEGUN, LOCK = "_job.jsonl", "_begun", "_lock"
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


@dataclass(frozen=True, kw_only=True)
class Part:
    """One chunk of a job, and where its rows are written."""

    folder: Path
    number: int
    chunk: Chunk

    @property
    def place(self) -> Path:
        """The file of the rows."""
        return self.folder / part_name(self.number, self.chunk)

    @property
    def notes(self) -> Path:
        """Where it is noted how often this was begun."""
        return self.folder / BEGUN / f"{self.place.stem}.txt"

    def rows(self) -> tuple[int, int] | None:
        """How many rows there are, and how many of them are errors; None if they have to be made."""
        found = count_rows(self.place)
        return found if found is not None and found[0] == self.chunk.count else None


@dataclass(frozen=True, kw_only=True)
class Job:
    """`folder`: of the answers. `parts`: all, in order; a part's number is its place among them."""

    folder: Path
    answering: Answering
    parts: Sequence[Part]

    @property
    def images(self) -> int:
        """How many there are."""
        return sum(part.chunk.count for part in self.parts)

    def left(self) -> list[Part]:
        """The parts without rows, or with errors among them, which are tried again."""
        rows = [(part, part.rows()) for part in self.parts]
        return [part for part, found in rows if found is None or found[1]]

    def save(self) -> None:
        """Write `_job.jsonl`, whole or not at all. Raises InputError."""
        place, part = self.folder / JOB, self.folder / f"_{JOB}.part"
        lines = [json.dumps({"kind": KIND, **asdict(self.answering)}), *(each.chunk.to_json() for each in self.parts)]
        try:
            (self.folder / BEGUN).mkdir(parents=True, exist_ok=True)
            with part.open("w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
            part.replace(place)
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise InputError(f"{self.folder}: the answers cannot be written there ({first_line(error)}); name another folder with --out") from error

    def tidy(self) -> None:
        """Remove what workers had begun to write when they were killed. Nobody writes any more: all parts are there."""
        for path in self.folder.glob(".part-*"):
            with suppress(OSError):
                path.unlink()

    def strangers(self) -> list[Path]:
        """Files of rows that belong to no part: readers of the folder would take them for answers."""
        own = {part.place.name for part in self.parts}
        return sorted(path for path in self.folder.glob("*.parquet") if not path.name.startswith(("_", ".")) and path.name not in own)


def find_job(folder: Path, sources: Sequence[str], answering: Answering, *, resume: bool) -> Job:
    """A new job, or with `resume` the one that is in the folder, with what its sources have got since. Nothing is written.

    Raises InputError if the folder holds something else, or another bundle's answers.
    """
    there = what_is(folder)
    if there not in (None, "a folder"):
        raise InputError(f"{folder}: expected a folder for the answers, but this is {there}; name another one with --out")
    names = {path.name for path in folder.iterdir()} if there else set()
    used = bool(names - {BEGUN, LOCK, f"_{JOB}.part"})  # of a beginning that failed
    if used and not resume:
        raise InputError(f"{folder} is not empty, and answers are never written over others; name another folder with --out, or go on in it with --resume")
    known, base = _stored(folder, answering) if used else ([], answering.base)
    chunks = [*known, *find_chunks(sources, known, folder)]
    if base != answering.base and not all(Path(name).is_absolute() for chunk in chunks for name in chunk.images or [chunk.table]):
        raise InputError(f"{folder}: this job was begun in {base}, to which its paths are relative; go on there")
    return Job(folder=folder, answering=answering, parts=[Part(folder=folder, number=number, chunk=chunk) for number, chunk in enumerate(chunks)])


def _stored(folder: Path, answering: Answering) -> tuple[list[Chunk], str]:
    """The chunks of the job that is in the folder, and where it was begun. Raises InputError if it is none, or not this one."""
    try:
        with open_regular(folder / JOB) as file:  # of any length
            found = json.loads(file.readline())
            if found.get("kind") != KIND:
                raise ValueError(f"it is of the kind {found.get('kind')!r}")
            chunks = [Chunk.from_json(line.decode()) for line in file]
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{folder}: there is no job of `edgeport-run map` to go on with ({first_line(error)}); name another folder with --out") from error
    same: dict[str, Any] = {key: value for key, value in asdict(answering).items() if key != "base"}
    for key, value in same.items():
        if found.get(key) != value:
            raise InputError(f"{folder}: this job was begun with {key} {found.get(key)!r}, and now it is {value!r}; go on with the same, or name another --out")
    return chunks, str(found.get("base"))


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder for this process alone, until the end of the context or of the process. Raises InputError if another one holds it."""
    is_new, lock = what_is(folder) is None, ExitStack()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_free = lock.enter_context(locked(folder / LOCK))
    except OSError as error:
        raise InputError(f"{folder}: the answers cannot be written there ({first_line(error)}); name another folder with --out") from error
    try:
        with lock:
            if not is_free:
                raise InputError(f"{folder}: another process answers into this folder; wait until it has ended, or name another folder with --out")
            yield
    finally:
        if is_new:
            with suppress(OSError):  # something was begun in it
                folder.rmdir()
