"""Answers and pictures as files: where they go, whose they are, and that none is written over."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .decoding import decode
from .errors import InputError
from .image_limits import ImageLimits
from .model import Model
from .predictions import Answer, Detections, FloatMap, Segmentation
from .regular_files import read_text
from .tasks import find_task

SIGN = ".answered-by"  # in a folder of answers: whose they are


@dataclass(frozen=True, kw_only=True)
class File:
    """One image, and the name of its result below the folder for results."""

    path: Path
    name: Path


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where files are written, by the image's path: `answers`, and `pictures` of them. Empty if none are asked for."""

    answers: Mapping[Path, Path]
    pictures: Mapping[Path, Path]

    def lack(self, path: Path) -> bool:
        """Whether a file of this image is not there yet."""
        return any(path in each and not each[path].exists() for each in (self.answers, self.pictures))


def find_places(model: Model, files: Sequence[File], *, folder: Path | None, drawn: Path | None, resume: bool) -> Places:
    """`folder`: for answers that are files. `drawn`: for pictures of answers. Raises InputError if a file would be written over another one."""
    suffix = find_task(model.contract.task).file_suffix or ".png"
    answers = {} if folder is None else _places(files, folder, suffix, "--out", resume=resume)
    pictures = {} if drawn is None else _places(files, drawn, ".png", "--draw", resume=resume)
    if set(answers.values()) & set(pictures.values()):
        raise InputError(f"{drawn}: a picture would overwrite its answer there; name another folder with --draw than with --out")
    return Places(answers=answers, pictures=pictures)


def _places(files: Sequence[File], folder: Path, suffix: str, option: str, *, resume: bool) -> dict[Path, Path]:
    """Where each answer is written: the file's place in the folder that was given, with the answer's suffix."""
    places = {file.path: folder / file.name.with_suffix(suffix) for file in files}
    if len(set(places.values())) < len(places):
        raise InputError("two of the images have the same name, so one result would overwrite the other; predict them in two calls")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder, but this is a file; name another one with {option}")
    taken = [place for place in places.values() if place.exists()]
    if taken and not resume:
        raise InputError(
            f"{taken[0]} exists already, and a result is never written over a file; name another folder with {option}, or go on in it with --resume"
        )
    return places


def require_own(sign: Path, model: str, option: str) -> None:
    """Raises InputError if the folder holds another's answers, which nobody could tell apart afterwards."""
    try:
        found = read_text(sign, errors="replace").strip() if sign.exists() else model
    except OSError as error:
        raise InputError(f"{sign}: whose answers are in this folder cannot be read ({error.strerror}); name another folder with {option}") from error
    if found != model:
        raise InputError(f"{sign.parent}: it holds answers of another bundle, precision or tile size; name another folder with {option}")


def leave_sign(sign: Path, model: str, option: str) -> None:
    """Say in the folder whose answers it holds. Raises InputError if that cannot be written."""
    if sign.exists():
        return
    try:
        sign.parent.mkdir(parents=True, exist_ok=True)
        sign.write_text(f"{model}\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{sign.parent}: the results cannot be written ({error.strerror}); name another folder with {option}") from error


def draw(answer: Answer, source: Path, place: Path | None, min_score: float | None, limits: ImageLimits) -> None:
    """If there is a place for it, and it is free."""
    if place is None or place.exists():
        return
    from .drawing import drawn

    image = decode(source, limits)
    write(answer.draw(image, min_score) if isinstance(answer, Detections) and min_score is not None else drawn(answer, image), place, "--draw")


def write(answer: Answer, place: Path, option: str = "--out") -> Path:
    """Under a name of its own first, so that a torn file is never taken for an answer."""
    part = place.with_name(f".{place.stem}.part{place.suffix}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(as_file(answer))
        part.replace(place)
    except OSError as error:
        raise InputError(f"{place}: the result cannot be written ({error.strerror}); name another folder with {option}") from error
    return place


def as_file(answer: Answer) -> bytes:
    """What the file of an answer holds: PNG of images and masks, .npy of maps and embeddings."""
    file = io.BytesIO()
    if isinstance(answer, np.ndarray | FloatMap):
        np.save(file, answer if isinstance(answer, np.ndarray) else answer.at_source())
    else:
        assert isinstance(answer, Segmentation | Image.Image)  # others are rows
        (answer.to_image() if isinstance(answer, Segmentation) else answer).save(file, "PNG")
    return file.getvalue()
