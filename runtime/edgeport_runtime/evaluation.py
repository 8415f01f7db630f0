"""Quality on images whose truth is known: accuracy for a classifier, mAP for a detector, mean IoU for a segmentation, PSNR for a generator."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from .contract import Contract
from .decoding import ImageSource, describe, size_px
from .engine import Arrays
from .errors import InputError
from .image_limits import LIMITS, ImageLimits
from .images import Pixel, PixelBatch, are_several, image_files, kind_of, pixel_batches, prepare_mask, prepare_target
from .interpretation import RunOutputs
from .model import Model
from .predictions import Answer
from .regular_files import what_is
from .scorers import SCORERS, Quality
from .tasks import Task, TruthKind, find_task

BATCH = 32  # images that are in memory, and that run at once if the contract allows it
DISTORTION = 0.03  # of the proportions, which is not seen


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image, and its truth if that is known: the index of its label, the image that it should become, the mask of its classes, or its boxes.

    True boxes are a pair (boxes, classes): (n, 4) as left, top, right, bottom in pixels of the upright image, and (n,) indices of labels.

    `source`: a file, bytes, a PIL image or an array, uint8 (H, W, C). Calibration needs no truth.
    """

    source: ImageSource
    truth: "int | ImageSource | tuple[Any, Any] | None" = None


Examples = str | Path | Iterable[Example | ImageSource | tuple[ImageSource, int | ImageSource]]


def measure(
    contract: Contract,
    run: Callable[[Pixel], Arrays],
    examples: Sequence[Example],
    advance: Callable[[int], None] = lambda done: None,
    limits: ImageLimits = LIMITS,
) -> Quality:
    """Feed every example through `run` (uint8 (N, H, W, C) -> outputs), in batches of one image size, and score the first output.

    `advance`: called with the number of images that are done. `limits`: what images may be.
    Raises InputError without examples or their truth, or for a task without a metric.
    """
    if not examples:
        raise InputError("nothing to evaluate: there are no images")
    require_truth(examples)
    truth = _require_metric(contract).truth
    assert truth is not None  # a task with a metric has one
    scorer: Any = SCORERS[truth](len(examples))
    sources = [example.source for example in examples]
    for batch in pixel_batches(sources, contract, prepared_at_once=min(BATCH, contract.largest_batch), limits=limits):
        outputs = run(batch.pixels)
        judged = _answers(outputs, batch, contract) if scorer.takes_answers else outputs[contract.outputs[0].name]
        for index, row in zip(batch.indices, judged, strict=True):
            scorer.add(index, row, _fitted_truth(truth, examples[index], contract, row, limits), describe(sources[index]))
        advance(len(batch.indices))
    quality: Quality = scorer.quality()
    return quality


def _answers(outputs: Arrays, batch: PixelBatch, contract: Contract) -> list[Answer]:
    return find_task(contract.task).interpret(RunOutputs(outputs=outputs, contract=contract, sources_px=batch.sources_px, network_px=batch.pixels.shape[1:3]))


def _fitted_truth(kind: TruthKind, example: Example, contract: Contract, row: NDArray[Any], limits: ImageLimits) -> Any:
    """The truth as the scorer takes it: an image or a mask follows the size of the output, which need not be that of the input."""
    if kind == "image":
        _require_same_view(example, row.shape[:2], limits)
        return prepare_target(example.truth, contract.pixels, row.shape, limits)
    if kind == "mask":
        _require_same_view(example, row.shape[1:], limits)
        return prepare_mask(example.truth, contract.pixels, row.shape[1:], limits)
    return example.truth


def _require_same_view(example: Example, output_px: tuple[int, ...], limits: ImageLimits) -> None:
    """A target may be larger or smaller than its image, but not of other proportions than both image and output. Raises InputError."""
    image, target = size_px(example.source, limits), size_px(example.truth, limits)
    if not _alike(target, image) and not _alike(target, output_px):
        raise InputError(
            f"{describe(example.source)}: its target is {target[0]}x{target[1]} (HxW), but the image is {image[0]}x{image[1]}: these are not the same view, "
            "and fitting one to the other would distort it; cut or resize them alike first"
        )


def _alike(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Whether two (height, width) have the same proportions, but for rounding."""
    return abs(math.log(first[0] * second[1] / (first[1] * second[0]))) <= DISTORTION + 1 / min(*first, *second)


def require_truth(examples: Sequence[Example]) -> None:
    """Raises InputError for an example without truth."""
    without = [each for each in examples if each.truth is None]
    if without:
        raise InputError(f"{len(without)} of {len(examples)} examples have no truth to evaluate them with, the first is {describe(without[0].source)}")


def _require_metric(contract: Contract) -> Task:
    task = find_task(contract.task)
    if task.metric is None:
        raise InputError(f"a model of the task {contract.task!r} has no metric that edgeport knows")
    return task


def read_examples(given: Examples) -> list[Example]:
    """Examples from a folder, or from an iterable of Examples, of images, or of pairs (image, truth).

    Without truth, a folder holds images, in folders of its own if they are. `folder:PATH` and `PATH` mean the same. Raises InputError.
    """
    if isinstance(given, str | Path):
        return [Example(source=path) for path in image_files(folder_path(given), nested=True)]
    if hasattr(given, "dataset") and hasattr(given, "batch_size"):
        raise InputError("a DataLoader gives batches; give its dataset (loader.dataset), made without ToTensor and Normalize")
    if hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, Iterable):  # a torch Dataset
        given = [given[index] for index in range(len(given))]
    if not are_several(given):
        raise InputError(f"expected a folder, or several images or Examples in a list, got {kind_of(given)}")
    return [_example(each) for each in given]


def folder_path(folder: str | Path) -> Path:
    """`folder:PATH` and `PATH` mean the same."""
    return Path(str(folder).removeprefix("folder:"))


def _example(given: Any) -> Example:
    if isinstance(given, Example):
        return given
    if isinstance(given, tuple | list) and len(given) == 2:
        return replace(_example(given[0]), truth=given[1])
    if isinstance(given, str | Path | bytes | bytearray | memoryview | Image.Image) or hasattr(given, "__array__") or hasattr(given, "read"):
        return Example(source=given)
    raise InputError(
        f"expected an Example, an image or a pair (image, truth), got {type(given).__name__}; give arrays as uint8 (H, W, C), "
        "and a dataset without ToTensor and Normalize"
    )


def folder_examples(contract: Contract, folder: Path) -> list[Example]:
    """A classifier's folder holds one folder per label. A detector's holds images and COCO's `annotations.json`. Another's holds `input` and `target`
    with equal file names; a mask may be a .png for a .jpg.

    Raises InputError if the layout is another, a folder is no label of the model, or the model's task has no truth to compare with.
    """
    truth = _require_metric(contract).truth
    if truth == "boxes":
        from .coco import coco_examples

        return [Example(source=path, truth=boxes) for path, boxes in coco_examples(folder, contract.labels)]
    return _labeled(contract, folder) if truth == "label" else _pairs(folder)


def _pairs(folder: Path) -> list[Example]:
    inputs, found = image_files(folder / "input"), image_files(folder / "target")
    targets = {path.stem: path for path in found} | {path.name: path for path in found}
    pairs = [(path, targets.get(path.name) or targets.get(path.stem)) for path in inputs]
    missing = [path.name for path, target in pairs if target is None]
    if missing:
        raise InputError(f"{folder / 'target'}: no target image for {', '.join(missing[:5])}")
    return [Example(source=path, truth=target) for path, target in pairs]


def _labeled(contract: Contract, folder: Path) -> list[Example]:
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")) if folder.is_dir() else []
    if not contract.labels:
        raise InputError(f"{folder}: this model has no labels, so folders cannot name its classes; export it with labels, or give pairs (image, index)")
    unknown = [path.name for path in classes if path.name not in contract.labels]
    if not classes or unknown:
        came = what_is(folder)
        nothing = "no folders" if came == "a folder" else "no such folder" if came is None else came
        came = f"{', '.join(unknown[:5])} which {'is' if len(unknown) == 1 else 'are'} no label" if unknown else nothing
        raise InputError(f"{folder}: expected one folder of images per label ({', '.join(contract.labels[:10])}), got {came}")
    return [Example(source=file, truth=contract.labels.index(path.name)) for path in classes for file in image_files(path)]


def evaluate(model: Model, data: Examples, advance: Callable[[int], None] = lambda done: None) -> Quality:
    """Accuracy or PSNR of a loaded model.

    `data`: a folder in the layout of `folder_examples`, or an iterable of Examples or of pairs (image, truth). `advance`: called with the number
    of images that are done. Raises InputError for other data, or a task without a metric; ImageError for an image that cannot be read.
    """
    return measure(model.contract, model.raw, labeled_examples(data, model.contract), advance, model.image_limits)


def labeled_examples(data: Examples, contract: Contract) -> list[Example]:
    """Examples with their truth, as `evaluate` takes them. Raises InputError."""
    if isinstance(data, str | Path):
        return folder_examples(contract, folder_path(data))
    examples = read_examples(data)
    require_truth(examples)
    return examples
