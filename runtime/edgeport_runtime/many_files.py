"""Predicting many files: answers in order as they come, an error row for a file that cannot be read, and going on where an earlier call stopped."""

import csv
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from glob import glob, has_magic  # a pattern may begin anywhere
from pathlib import Path
from typing import Any, Literal

from .bundle import Bundle
from .contract import Contract
from .errors import ImageError, InputError
from .images import SUFFIXES, image_files
from .json_text import printable
from .model import Model
from .predictions import Answer, Detections, Prediction, Values
from .regular_files import read_text, what_is
from .result_files import SIGN, File, draw, find_places, leave_sign, require_own, write
from .tasks import find_task

Format = Literal["text", "jsonl", "csv"]
AS_NAMED = "surrogateescape"  # a file name need not be UTF-8, and is written as it is
CHUNK, FILES = 64, 8  # images whose answers are in memory; fewer if they are files, since the scores of a mask are large
COLUMNS = ("image", "label", "index", "score", "found", "out", "error", "model")


def fingerprint(model: Model) -> str:
    """The bundle and the variant that answer: the beginning of the manifest's hash, and the precision."""
    return model.precision if model.bundle is None else signature(model.bundle, model.precision)


def signature(bundle: Bundle, precision: str) -> str:
    """As `fingerprint`, of a bundle that is not loaded."""
    return f"{bundle.sha256[:12]} {precision}"


def require_answers(contract: Contract, *, top: int, min_score: float | None) -> None:
    """Raises InputError if answers of this model cannot be asked for like that."""
    if top < 1:
        raise InputError(f"top is the number of classes to list, a whole number of at least 1, got {top}")
    if min_score is not None and not (0 <= min_score <= 1 and find_task(contract.task).needs_head):
        raise InputError(f"--min-score is for detectors, and in 0..1, got {min_score:g} for the task {contract.task!r}")


def find_files(given: Sequence[str]) -> list[File]:
    """Files, folders (with the folders in them) and globs, in the order given, each once. Raises InputError for what is not there."""
    found: dict[Path, File] = {}
    for each in given:
        path = Path(each)
        if what_is(path) == "a folder":
            files = [File(path=file, name=file.relative_to(path)) for file in image_files(path, nested=True)]
        elif has_magic(each) and what_is(path) is None:
            matched = glob(each, recursive=True)  # noqa: PTH207  # a pattern may begin at the root
            matches = sorted(path for path in map(Path, matched) if path.suffix.lower() in SUFFIXES)
            if not matches:
                raise InputError(f"{each}: no image ({', '.join(SUFFIXES)}) matches")
            files = [File(path=file, name=Path(file.name)) for file in matches]
        else:
            files = [File(path=path, name=Path(path.name))]
        for file in files:
            found.setdefault(file.path, file)
    return list(found.values())


class Rows:
    """Rows on stdout or in a file, one for each image, written as they come. `form`: "text" is for people. `model`: who answers, see `fingerprint`."""

    def __init__(self, form: Format, out: Path | None, *, resume: bool, model: str = "") -> None:
        self.form, self.model, self.done = form, model, set[str]()
        self._stream: Any = sys.stdout
        self._out = out
        if out is None:
            if form == "csv":
                self._line(_csv(COLUMNS))
            return
        there = what_is(out)
        if there is not None and not resume:
            raise InputError(f"{out} exists already, and a result is never written over a file; name another one with --out, or go on in it with --resume")
        if there not in (None, "a file"):
            raise InputError(f"{out}: expected a file of rows, but this is {there}; name another file with --out")
        kept = self._kept(out) if there else []
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            self._stream = out.open("w", encoding="utf-8", errors=AS_NAMED, newline="")
        except OSError as error:
            raise InputError(f"{out}: the results cannot be written ({error.strerror}); name another file with --out") from error
        for line in kept or ([_csv(COLUMNS)] if form == "csv" else []):
            self._line(line)

    def _kept(self, out: Path) -> list[str]:
        """Whole lines of an earlier call. The last one may be torn, and rows with an error are tried again."""
        kept = []
        text = _earlier(out)
        begin = '{"image"' if self.form == "jsonl" else COLUMNS[0]
        if not text.startswith(begin) and not begin.startswith(text):
            raise InputError(f"{out}: this file does not begin as rows of results in the form {self.form} do; name another file with --out")
        for number, (line, row) in enumerate(_records(text, self.form)):
            if row is None and not (self.form == "csv" and number == 0 and line == _csv(COLUMNS)):
                raise InputError(f"{out}: line {number + 1} is no row of results in the form {self.form}; name another file with --out")
            if row is not None and row.get("model", self.model) != self.model:
                raise InputError(f"{out}: line {number + 1} was answered by another bundle or precision; name another file with --out")
            if row is None or not row.get("error"):
                kept.append(line)
            if row is not None and not row.get("error"):
                self.done.add(str(row["image"]))
        return kept

    def write(self, row: dict[str, Any]) -> None:
        row = row | {"model": self.model}
        if self.form == "csv":
            found = {key: row[key] for key in ("detections", "values") if key in row}
            row["found"] = json.dumps(found, ensure_ascii=False) if found else ""
            self._line(_csv([row.get(column, "") for column in COLUMNS]))
        elif self.form == "jsonl":
            self._line(_json(row))
        elif "error" in row:
            print(f"edgeport-run: {printable(row['error'])}", file=sys.stderr)
        else:
            self._line(f"{printable(_in_words(row))}\n")

    def _line(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()  # a row that was written is there, whatever happens next
        except BrokenPipeError:
            raise
        except OSError as error:
            place = "the output" if self._out is None else f"{self._out}: the results"
            remedy = "" if self._out is None else ", and go on with --resume"
            raise InputError(f"{place} cannot be written ({error.strerror}); free some space there{remedy}") from error

    def close(self) -> None:
        if self._stream is not sys.stdout:
            with suppress(OSError):  # of a disk that is full, which was told
                self._stream.close()


def _in_words(row: Mapping[str, Any]) -> str:
    """For people, in one line."""
    image = row["image"]
    if "top" in row:
        return f"{image}: " + "  ".join(f"{each['label']} {each['score']:.3f}" for each in row["top"])
    return f"{image} -> {row['out']}" if "out" in row else f"{image}: {_found(row)}"


def _found(row: Mapping[str, Any]) -> str:
    """Boxes, or the named values."""
    if "detections" in row:
        boxes = (f"{each['label']} {each['score']:.2f} at {','.join(f'{side:.0f}' for side in each['box'])}" for each in row["detections"])
        return "; ".join(boxes) or "nothing found"
    named = {**row["values"]["values"], **row["values"]["points"]}
    return "  ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value[0]:.0f},{value[1]:.0f}" for name, value in named.items())


def _csv(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def _json(row: Mapping[str, Any]) -> str:
    """One line. A file name that is no UTF-8 is written with escapes, because JSON is UTF-8."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(row)
    return text + "\n"


def _records(text: str, form: Format) -> list[tuple[str, dict[str, Any] | None]]:
    """The records that an earlier call wrote, each with its row, None if it is none. The last one is left out if it is torn."""
    whole = text[: text.rfind("\n") + 1]
    if form == "jsonl":
        return [(f"{line}\n", _row_of_json(line)) for line in whole.split("\n")[:-1]]
    try:
        found = list(csv.reader(io.StringIO(whole, newline="")))  # a name may hold a line break
    except csv.Error:  # a field of more than 131,072 characters, which no row has
        return [(whole, None)]
    torn = len(found) > 1 and len(found[-1]) < len(COLUMNS)
    return [(_csv(values), _row_of_csv(values)) for values in (found[:-1] if torn else found)]


def _earlier(out: Path) -> str:
    """What an earlier call wrote."""
    try:
        return read_text(out, errors=AS_NAMED)
    except OSError as error:
        raise InputError(f"{out}: the rows of an earlier call cannot be read ({error.strerror}); name another file with --out") from error


def _row_of_json(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and "image" in row else None


def _row_of_csv(values: Sequence[str]) -> dict[str, Any] | None:
    return dict(zip(COLUMNS, values, strict=True)) if len(values) == len(COLUMNS) and values[0] != COLUMNS[0] else None


def predict_files(
    model: Model,
    files: Sequence[File],
    rows: Rows,
    *,
    folder: Path | None,
    top: int,
    resume: bool,
    tile_px: int | None = None,
    drawn: Path | None = None,
    min_score: float | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Answer every file, in order; return how many could not be answered.

    `folder`: for answers that are files: images and masks as PNG, maps and embeddings as .npy. `drawn`: for pictures of the answers. `resume`: what is
    there is left out. `tile_px`: see `Model.batch`; such answers are written one by one, since they are large. `min_score`: detections below it are
    left out of rows and pictures; pictures begin at 0.3 if it is None.
    Raises InputError if an answer would be written over a file, or beside those of another model.
    """
    places = find_places(model, files, folder=folder, drawn=drawn, resume=resume)
    signature = f"{rows.model}{'' if tile_px is None else f' tiles of {tile_px} px'}"
    signs = [(each / SIGN, option) for each, option in ((folder, "--out"), (drawn, "--draw")) if each is not None]
    for sign, option in signs:
        require_own(sign, signature, option)
    todo = [file for file in files if places.lack(file.path) or (folder is None and str(file.path) not in rows.done)]
    failed, before = 0, len(files) - len(todo)
    at_once = 1 if tile_px is not None else CHUNK if folder is None else FILES
    for start in range(0, len(todo), at_once):
        progress(before + start)
        chunk = todo[start : start + at_once]
        for file, answer in zip(chunk, model.batch([file.path for file in chunk], tile_px=tile_px, top=top, errors="return"), strict=True):
            failed += isinstance(answer, ImageError)
            if not isinstance(answer, ImageError):
                for sign, option in signs:
                    leave_sign(sign, signature, option)
                answer = answer.at_least(min_score) if isinstance(answer, Detections) and min_score is not None else answer
                draw(answer, file.path, places.pictures.get(file.path), min_score, model.image_limits)
            if str(file.path) not in rows.done:
                rows.write({"image": str(file.path), **_facts(answer, places.answers.get(file.path))})
    progress(len(files))
    return failed


def _facts(answer: Answer | ImageError, place: Path | None) -> dict[str, Any]:
    """What a row holds beside the image's name. An answer that is a file is written."""
    if isinstance(answer, ImageError):
        return {"error": str(answer)}
    found = facts(answer)
    if found is None:
        assert place is not None  # the caller names a folder for such tasks
        return {"out": str(place if place.exists() else write(answer, place))}
    return found


def facts(answer: Answer) -> dict[str, Any] | None:
    """An answer as JSON holds it; None if it is a file."""
    if isinstance(answer, Prediction):
        return asdict(answer)
    if isinstance(answer, Detections):
        return {"detections": [asdict(each) for each in answer]}
    if isinstance(answer, Values):
        arrays = {name: each.tolist() for name, each in answer.arrays.items()}
        return {"values": {"values": dict(answer.values), "points": dict(answer.points), "units": dict(answer.units), "arrays": arrays}}
    return None
