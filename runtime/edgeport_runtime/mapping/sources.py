"""Which images there are: files, folders, globs, lists, and Parquet with paths or with the files themselves, cut into chunks."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from edgeport_runtime.errors import InputError, first_line
from edgeport_runtime.images import SUFFIXES
from edgeport_runtime.many_files import AS_NAMED, find_files
from edgeport_runtime.regular_files import open_regular, what_is

from .tables import TableFacts, read_table

LIST, TABLE = ".txt", ".parquet"
CHUNKS = 64  # of a small source, so that all workers have some
FEWEST, MOST = 16, 256  # images of a chunk: not too many files of a large source, and not too much work that a crash takes back
PIECES = 16  # of a row group at most: what is before a piece has to be read over


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Images that one worker answers in one go, and whose rows are one file.

    `images`: paths. Empty if the images are `rows` rows of a Parquet file, `table`, from row `first` of its row group `group` on. `footer`: a hash of the
    file's own description, by which another file of that name is noticed.
    """

    images: tuple[str, ...] = ()
    table: str = ""
    footer: str = ""
    group: int = 0
    first: int = 0
    rows: int = 0

    @property
    def count(self) -> int:
        """How many images it has."""
        return len(self.images) or self.rows

    @property
    def name(self) -> str:
        """A path to tell the chunk by: its first image's, or its table's."""
        return self.images[0] if self.images else self.table

    def to_json(self) -> str:
        """One line."""
        if self.images:
            return json.dumps({"images": self.images})
        return json.dumps({"table": self.table, "footer": self.footer, "group": self.group, "first": self.first, "rows": self.rows})

    @classmethod
    def from_json(cls, line: str) -> "Chunk":
        """What `to_json` gave. Raises ValueError for anything else."""
        found = json.loads(line)
        kinds = {"images": list, "table": str, "footer": str, "group": int, "first": int, "rows": int}
        if not isinstance(found, dict) or any(type(value) is not kinds.get(key) for key, value in found.items()):
            raise ValueError("a line of it is no chunk of images")
        chunk = cls(**{**found, "images": tuple(found.get("images", ()))})
        if not chunk.count or not all(isinstance(each, str) for each in chunk.images):
            raise ValueError("a line of it is a chunk without images")
        return chunk


def find_chunks(given: Sequence[str], known: Sequence[Chunk] = (), out: Path | None = None) -> list[Chunk]:
    """All images of the sources that `known` chunks do not have, in order, each path once. `out`: a folder of answers, which are no sources.

    Raises InputError for a source that cannot be read, or a Parquet file that is another one than in `known`.
    """
    images = {_key(image) for chunk in known for image in chunk.images}
    footers = {_key(chunk.table): chunk.footer for chunk in known if chunk.table}
    found: list[str | TableFacts] = []
    for each in given:
        for entry in _entries(each, out):
            path = _key(entry if isinstance(entry, str) else entry.name)
            if isinstance(entry, TableFacts):
                if footers.get(path, entry.footer) != entry.footer:
                    raise InputError(f"{entry.name}: this Parquet file is another one than when the job began; begin another job with another --out")
                found += [] if path in footers else [entry]
                footers[path] = entry.footer
            elif path not in images:
                found.append(entry)
                images.add(path)
    return list(_cut(found))


def _key(name: str) -> str:
    """The same for all spellings of a path. Links stay what they are: two names of one file are two images."""
    return os.path.abspath(name)  # noqa: PTH100


def _cut(found: Sequence[str | TableFacts]) -> Iterator[Chunk]:
    """Into chunks, in order."""
    size = min(max(-(-sum(isinstance(each, str) for each in found) // CHUNKS), FEWEST), MOST)
    run: list[str] = []
    for each in found:
        if isinstance(each, str):
            run.append(each)
        if run and (len(run) == size or isinstance(each, TableFacts)):
            yield Chunk(images=tuple(run))
            run = []
        if isinstance(each, TableFacts):
            for group, rows in enumerate(each.groups):
                piece = max(-(-rows // PIECES), MOST)
                for first in range(0, rows, piece):
                    yield Chunk(table=each.name, footer=each.footer, group=group, first=first, rows=min(piece, rows - first))
    if run:
        yield Chunk(images=tuple(run))


def _entries(given: str, out: Path | None) -> Iterator[str | TableFacts]:
    """Paths of images, and Parquet files that hold images."""
    tables = _tables(given)
    if out is not None:
        answers = out.resolve()
        tables = [name for name in tables if answers not in Path(name).resolve().parents]
    for name in tables:
        if name.lower().endswith(LIST):
            yield from _listed(name)
            continue
        facts = read_table(name)
        yield from facts.paths if facts.paths is not None else [facts]
    if not tables:
        if what_is(given) is None and not has_magic(given):
            raise InputError(f"{given}: there is no such file or folder")
        yield from (str(file.path) for file in find_files([given]))


def _tables(given: str) -> list[str]:
    """The lists and Parquet files that a source names: itself, what a pattern for them finds, or those of a folder without images."""
    path = Path(given)
    if what_is(path) == "a folder":
        if any(file.suffix.lower() in SUFFIXES for file in path.rglob("*")):
            return []
        return [str(file) for file in sorted(path.rglob(f"*{TABLE}"))]
    if path.suffix.lower() not in (LIST, TABLE):
        return []
    if what_is(path) is None and has_magic(given):
        found = sorted(glob(given, recursive=True))  # noqa: PTH207  # a pattern may begin anywhere
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
        raise InputError(f"{name}: this list of images cannot be read ({first_line(error)}); name a text file with a path in each line") from error
    found = [line for line in (each.removeprefix("\ufeff") for each in lines) if line.strip()]
    if not found:
        raise InputError(f"{name}: expected a path of an image in each line, but this list is empty")
    return found


def part_name(number: int, chunk: Chunk) -> str:
    """The name of the file of a chunk's rows. The same images have the same name, whoever answers them and however often."""
    return f"part-{number:06d}-{hashlib.sha256(chunk.to_json().encode()).hexdigest()[:8]}{TABLE}"
