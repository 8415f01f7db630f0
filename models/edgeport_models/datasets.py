"""Data sets as three disjoint parts: `train`, `calibration` and `test`, each a sequence of examples.

`digits`, `photos`, `scenes`: made of what ships inside scikit-learn. `cifar10`: downloaded by torchvision. `folder:PATH`: images of your own.
"""

import hashlib
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeport_runtime import Example, InputError
from edgeport_runtime.coco import coco_examples, coco_labels
from edgeport_runtime.decoding import convert, decode
from edgeport_runtime.images import image_files
from edgeport_runtime.tasks import TruthKind

from .errors import DataError
from .scenes import Made, scenes

Part = Sequence[Example]
Photo = NDArray[np.uint8]

DATA_SETS = ("digits", "photos", "scenes", "cifar10")
LEARNT_FROM: dict[str, tuple[TruthKind, ...]] = {"digits": ("label",), "photos": ("image",), "scenes": ("boxes", "mask"), "cifar10": ("label",)}
DIGITS_TEST = 360  # the last images, written by other people than the rest
DIGITS_CALIBRATION = 160
DIGITS_PX = 32
NOISE_SIGMA = 25.0  # levels
TRAIN_PATCH_PX, TILE_PX = 32, 128
TRAIN_PATCHES, CALIBRATION_PATCHES = 2000, 24
CIFAR_CALIBRATION = 1000
TRAIN_SCENES, CALIBRATION_SCENES, TEST_SCENES = 6000, 128, 300


@dataclass(frozen=True, kw_only=True)
class Data:
    """One data set. `labels` is empty if the truth of an example is an image; of masks, the first one is the background's."""

    name: str
    labels: tuple[str, ...]
    train: Part
    calibration: Part
    test: Part


def load_data(name: str, *, truth: TruthKind = "label") -> Data:
    """Load a data set by name, with what is to be learnt of each image. Raises DataError."""
    if name.startswith("folder:"):
        folders: dict[TruthKind, Callable[[Path], Data]] = {"label": _class_folder, "image": _photo_folder, "boxes": _coco_folder}
        if truth not in folders:
            raise DataError(f"{name}: folders hold no masks to learn from; this network learns from scenes")
        return folders[truth](Path(name.removeprefix("folder:")))
    if name not in LEARNT_FROM:
        raise DataError(f"expected one of {', '.join(DATA_SETS)} or folder:PATH as data, got {name!r}")
    if truth not in LEARNT_FROM[name]:
        wanted = {"label": "labeled images", "image": "pairs of images", "boxes": "images with boxes", "mask": "images with masks"}[truth]
        known = ", ".join(each for each, kinds in LEARNT_FROM.items() if truth in kinds)
        raise DataError(f"this network learns from {wanted} ({known}{', or folder:PATH' if truth != 'mask' else ''}), not from {name!r}")
    loaders: dict[str, Callable[[], Data]] = {"digits": _digits, "photos": _photos, "cifar10": _cifar10}
    return _scenes(truth) if name == "scenes" else loaders[name]()


def require_demo_packages(what: str) -> None:
    """Raises DataError with the command that installs the extra `demo`."""
    for package in ("sklearn", "scipy"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise DataError(f"{what} needs scikit-learn and scipy, and {package} cannot be imported ({error}): pip install 'edgeport[demo]'") from error


def _digits() -> Data:
    """1,797 digits of 8x8 gray levels 0..16, drawn as white on black RGB images of 32x32."""
    require_demo_packages("the data set `digits`")
    from sklearn.datasets import load_digits

    digits = load_digits()
    gray = (digits.images * (255 / 16)).astype(np.uint8)
    side = (DIGITS_PX, DIGITS_PX)
    examples = [
        Example(source=Image.fromarray(image).resize(side, Image.Resampling.BICUBIC).convert("RGB"), truth=int(label))
        for image, label in zip(gray, digits.target, strict=True)
    ]
    split = len(examples) - DIGITS_TEST
    return Data(
        name="digits",
        labels=tuple(str(label) for label in digits.target_names),
        train=examples[: split - DIGITS_CALIBRATION],
        calibration=examples[split - DIGITS_CALIBRATION : split],
        test=examples[split:],
    )


def _scenes(truth: TruthKind) -> Data:
    """Digits on photographs: those of other writers, on another photograph, are held out. `truth`: "boxes" or "mask"."""
    require_demo_packages("the data set `scenes`")
    from sklearn.datasets import load_digits, load_sample_images

    digits, (china, flower) = load_digits(), load_sample_images().images
    glyphs = (digits.images * (255 / 16)).astype(np.uint8)
    writers = np.split(np.arange(len(glyphs)), [len(glyphs) - DIGITS_TEST - DIGITS_CALIBRATION, len(glyphs) - DIGITS_TEST])

    def part(index: int, photo: Photo, count: int, *, varied: bool) -> Part:
        made = scenes(glyphs[writers[index]], digits.target[writers[index]], photo, count, seed=index, varied=varied)
        return Made(count, lambda place: Example(source=made[place].image, truth=made[place].boxes if truth == "boxes" else made[place].mask))

    names = tuple(str(label) for label in digits.target_names)
    return Data(
        name="scenes",
        labels=names if truth == "boxes" else ("background", "digit"),
        train=part(0, china, TRAIN_SCENES, varied=True),
        calibration=part(1, china, CALIBRATION_SCENES, varied=True),
        test=part(2, flower, TEST_SCENES, varied=False),
    )


def _photos() -> Data:
    """Two photographs of 427x640 with noise added: `china` to learn from (its right fifth for calibration), `flower` held out."""
    require_demo_packages("the data set `photos`")
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    edge = china.shape[1] * 4 // 5
    return Data(
        name="photos",
        labels=(),
        train=random_patches(china[:, :edge], TRAIN_PATCHES, TRAIN_PATCH_PX, seed=1, recolor=True),
        calibration=random_patches(china[:, edge:], CALIBRATION_PATCHES, min(TILE_PX, china.shape[1] - edge), seed=2, recolor=True),
        test=tiles(flower, seed=3),
    )


def add_noise(clean: Photo, generator: np.random.Generator) -> Photo:
    """Gaussian noise of NOISE_SIGMA levels, rounded and clipped to 0..255: uint8 (H, W, C)."""
    noisy: Photo = np.clip(np.rint(clean + generator.normal(0, NOISE_SIGMA, clean.shape)), 0, 255).astype(np.uint8)
    return noisy


def random_patches(photo: Photo, count: int, side_px: int, *, seed: int, recolor: bool) -> list[Example]:
    """`count` pairs of a noisy square and its clean original, cut at random places.

    `recolor`: channels change places and some are inverted, without which a network that learns from one photograph
    knows only its colors (24.9 dB instead of 28.0 dB on the other one, at equal training).
    """
    generator = np.random.default_rng(seed)
    height, width = photo.shape[0] - side_px, photo.shape[1] - side_px
    if height < 0 or width < 0:
        raise DataError(f"expected photographs of at least {side_px}x{side_px} pixels, got {photo.shape[0]}x{photo.shape[1]}")
    corners = [(int(generator.integers(height + 1)), int(generator.integers(width + 1))) for _ in range(count)]
    squares = [np.ascontiguousarray(photo[y : y + side_px, x : x + side_px]) for y, x in corners]
    if recolor:
        squares = [_recolored(square, generator) for square in squares]
    return [Example(source=add_noise(square, generator), truth=square) for square in squares]


def _recolored(square: Photo, generator: np.random.Generator) -> Photo:
    shuffled = square[:, :, generator.permutation(3)]
    inverted: Photo = np.where(generator.integers(0, 2, 3).astype(bool), 255 - shuffled, shuffled).astype(np.uint8)
    return inverted


def tiles(photo: Photo, *, seed: int, side_px: int = TILE_PX) -> list[Example]:
    """The photograph in squares that do not overlap, each with noise; what is left at the edges is dropped."""
    generator = np.random.default_rng(seed)
    corners = [(y, x) for y in range(0, photo.shape[0] - side_px + 1, side_px) for x in range(0, photo.shape[1] - side_px + 1, side_px)]
    squares = [np.ascontiguousarray(photo[y : y + side_px, x : x + side_px]) for y, x in corners]
    return [Example(source=add_noise(square, generator), truth=square) for square in squares]


def _cifar10() -> Data:
    from torchvision.datasets import CIFAR10

    root = Path(os.environ.get("EDGEPORT_DATA", Path.home() / ".cache" / "edgeport"))
    try:
        train, test = (CIFAR10(root, train=train, download=True) for train in (True, False))
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"CIFAR-10 could not be downloaded to {root} ({error}); put its extracted folder there, or set EDGEPORT_DATA to where it lies"
        ) from error
    learnt = [Example(source=image, truth=int(label)) for image, label in zip(train.data, train.targets, strict=True)]
    held = [Example(source=image, truth=int(label)) for image, label in zip(test.data, test.targets, strict=True)]
    return Data(name="cifar10", labels=tuple(train.classes), train=learnt[:-CIFAR_CALIBRATION], calibration=learnt[-CIFAR_CALIBRATION:], test=held)


def _part_of(path: Path, root: Path) -> str:
    """Which part a file belongs to, by a hash of its name, so that it never moves when others come or go: 80, 10 and 10 %."""
    digest = hashlib.sha256(path.relative_to(root).as_posix().encode()).digest()[0]
    return "train" if digest < 205 else "calibration" if digest < 230 else "test"


def _class_folder(root: Path) -> Data:
    classes = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")) if root.is_dir() else []
    if not classes:
        raise DataError(f"{root}: expected one folder of images per class, but there {'are no folders in it' if root.is_dir() else 'is no such folder'}")
    parts: dict[str, list[Example]] = {"train": [], "calibration": [], "test": []}
    for label, folder in enumerate(classes):
        for path in folder_images(folder):
            parts[_part_of(path, root)].append(Example(source=path, truth=label))
    return Data(name=f"folder:{root}", labels=tuple(path.name for path in classes), **parts)


def _coco_folder(root: Path) -> Data:
    """Images with COCO's annotations."""
    parts: dict[str, list[Example]] = {"train": [], "calibration": [], "test": []}
    try:
        labels = coco_labels(root)
        for path, boxes in coco_examples(root, labels):
            parts[_part_of(path, root)].append(Example(source=path, truth=boxes))
    except InputError as error:
        raise DataError(str(error)) from error
    return Data(name=f"folder:{root}", labels=labels, **parts)


def _photo_folder(root: Path) -> Data:
    parts: dict[str, list[Example]] = {"train": [], "calibration": [], "test": []}
    for index, path in enumerate(folder_images(root)):
        photo = np.array(convert(decode(path), "RGB"), dtype=np.uint8)
        part = _part_of(path, root)
        if min(photo.shape[:2]) < TRAIN_PATCH_PX:
            raise DataError(f"{path}: expected photographs of at least {TRAIN_PATCH_PX}x{TRAIN_PATCH_PX} pixels, got {photo.shape[0]}x{photo.shape[1]}")
        parts[part] += (
            random_patches(photo, 16, TRAIN_PATCH_PX, seed=index, recolor=False)
            if part == "train"
            else tiles(photo, seed=index, side_px=min(TILE_PX, *photo.shape[:2]))
        )
    return Data(name=f"folder:{root}", labels=(), **parts)


def folder_images(folder: Path) -> list[Path]:
    """The images directly in a folder, sorted by name. Raises DataError if there are none."""
    try:
        return image_files(folder)
    except InputError as error:
        raise DataError(str(error)) from error
