"""True boxes from a folder with COCO's annotations: `annotations.json` beside the images, or the folder `images`."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .average_precision import TrueBoxes
from .errors import InputError
from .regular_files import read_text

ANNOTATIONS = "annotations.json"
LARGEST_SIDE = 1e6  # pixels
Found = TypeVar("Found")


def coco_examples(folder: Path, labels: Sequence[str]) -> list[tuple[Path, TrueBoxes]]:
    """Every image that the annotations list, in their order, with its boxes. Categories are found among `labels` by name.

    Raises InputError if the file cannot be read, or has an image that is not there, or a category that is no label.
    """
    return _read(folder, lambda path, found: _examples(path, found, labels))


def coco_labels(folder: Path) -> tuple[str, ...]:
    """The names of the categories, in the order of their numbers. Raises InputError."""
    return _read(folder, lambda path, found: tuple(str(each["name"]) for each in sorted(found["categories"], key=lambda each: each["id"])))


def _read(folder: Path, use: Callable[[Path, dict[str, Any]], Found]) -> Found:
    path = folder / ANNOTATIONS
    try:
        return use(path, json.loads(read_text(path)))
    except OSError as error:
        raise InputError(f"{path}: expected COCO's annotations beside the images, but they cannot be read ({error.strerror})") from error
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise InputError(f"{path}: these are no annotations in COCO's form ({type(error).__name__}: {error})") from error


def _examples(path: Path, found: dict[str, Any], labels: Sequence[str]) -> list[tuple[Path, TrueBoxes]]:
    names = {each["id"]: str(each["name"]) for each in found["categories"]}
    rows: dict[Any, list[tuple[list[float], int, bool]]] = {each["id"]: [] for each in found["images"]}
    if len(rows) < len(found["images"]) or len(names) < len(found["categories"]):
        raise InputError(f"{path}: two images or two categories have the same id")
    for number, each in enumerate(found["annotations"]):
        try:
            image, name = rows[each["image_id"]], names[each["category_id"]]
            left, top, width, height = (_finite(side) for side in each["bbox"])
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise InputError(
                f"{path}: annotation {number} needs an image_id and a category_id that are listed, and a bbox of four numbers, got {str(each)[:100]}"
            ) from error
        if name not in labels:
            raise InputError(f"{path}: the category {name!r} is no label of the model, which has {', '.join(labels[:10]) or 'none'}")
        image.append(([left, top, left + width, top + height], labels.index(name), bool(each.get("iscrowd", 0))))
    return [(_image(path.parent, each["file_name"]), _truth(rows[each["id"]])) for each in found["images"]]


def _finite(side: Any) -> float:
    if isinstance(side, str | bool) or not abs(side) <= LARGEST_SIDE:  # not a number, too
        raise ValueError
    return float(side)


def _truth(rows: Sequence[tuple[list[float], int, bool]]) -> TrueBoxes:
    boxes = np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4)
    return TrueBoxes(boxes=boxes, classes=np.array([index for _, index, _ in rows], np.int64), crowd=np.array([crowd for _, _, crowd in rows], bool))


def _image(folder: Path, name: str) -> Path:
    for parent in (folder, folder / "images"):
        path = parent / name
        if path.resolve().is_relative_to(folder.resolve()) and path.is_file():  # annotations of strangers name no other files of this machine
            return path
    raise InputError(f"{folder}: the image {name} of the annotations is neither there nor in its folder images")
