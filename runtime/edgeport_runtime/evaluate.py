"""Quality on a folder of images: accuracy for a classifier, PSNR for a generator."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import Contract
from .engine import Arrays
from .errors import InputError
from .images import Pixel, Source, describe, image_files, prepare, require_size, stack
from .model import Model, batches

LARGEST_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image with what is true of it: the index of its label, or the image it should become."""

    source: Source
    truth: "int | Source"


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The task's metric over `count` images: "accuracy" in 0..1, "psnr_db" from the mean squared error of all pixels, or one of the user's own.

    For a classifier, `answers` are the chosen classes, and `margins` by how much each led the next, over the range of its logits.
    """

    metric: str
    value: float
    count: int
    answers: tuple[int, ...] = ()
    margins: tuple[float, ...] = ()

    def __str__(self) -> str:
        if self.metric == "accuracy":
            return f"{self.value:.2%} accuracy"
        return f"{self.value:.2f} dB PSNR" if self.metric == "psnr_db" else f"{self.value:.4g} {self.metric}"


def psnr_db(squared_error: float, elements: int) -> float:
    """Peak signal-to-noise ratio for levels in 0..255."""
    return float(10 * np.log10(255.0**2 * elements / squared_error)) if squared_error else float("inf")


def measure(contract: Contract, run: Callable[[Pixel], Arrays], examples: Sequence[Example], step: Callable[[int], None] = lambda done: None) -> Quality:
    """Feed every example through `run` (uint8 (N, H, W, C) -> outputs), at one batch per image size, and score the answers."""
    if not examples:
        raise InputError("nothing to evaluate: there are no images")
    _require_metric(contract)
    answers, margins = [0] * len(examples), [0.0] * len(examples)
    squared_error, elements = 0.0, 0
    batch = min(LARGEST_BATCH, contract.largest_batch)
    for start in range(0, len(examples), batch):
        part = examples[start : start + batch]
        for group, output in _outputs(contract, run, part):
            for index, answer in zip(group, output, strict=True):
                if contract.task == "classification":
                    answers[start + index], margins[start + index] = int(answer.argmax()), margin(answer)
                    continue
                wanted = prepare(part[index].truth, contract.pixels)  # type: ignore[arg-type]
                if wanted.shape != answer.shape:
                    raise InputError(f"{describe(part[index].source)}: the output is {answer.shape}, but its target image is {wanted.shape}")
                squared_error += float(np.sum(np.square(answer.astype(np.float64) - wanted.astype(np.float64))))
                elements += answer.size
        step(len(part))
    if contract.task == "image-to-image":
        return Quality(metric="psnr_db", value=psnr_db(squared_error, elements), count=len(examples))
    right = sum(answer == example.truth for answer, example in zip(answers, examples, strict=True))
    return Quality(metric="accuracy", value=right / len(examples), count=len(examples), answers=tuple(answers), margins=tuple(margins))


def _require_metric(contract: Contract) -> None:
    if contract.task not in ("classification", "image-to-image"):
        raise InputError(f"a model of the task {contract.task!r} has no metric that edgeport knows")


def margin(logits: NDArray[Any]) -> float:
    """By how much the largest of (classes,) leads the next, over their range; 0..1."""
    ordered = np.sort(logits.astype(np.float64))
    return float((ordered[-1] - ordered[-2]) / (ordered[-1] - ordered[0])) if len(ordered) > 1 and ordered[-1] > ordered[0] else 0.0


def _outputs(contract: Contract, run: Callable[[Pixel], Arrays], part: Sequence[Example]) -> Iterator[tuple[list[int], NDArray[Any]]]:
    arrays = [prepare(example.source, contract.pixels) for example in part]
    for example, array in zip(part, arrays, strict=True):
        require_size(array.shape, contract, describe(example.source))
    for group in batches([array.shape for array in arrays], len(arrays)):
        yield group, run(stack([arrays[index] for index in group]))[contract.outputs[0].name]


def folder_examples(contract: Contract, folder: Path) -> list[Example]:
    """A classifier's folder holds one folder per label; a generator's holds `input` and `target` with equal file names.

    Raises InputError where the layout is another, a folder is no label of the model, or the model's task has no truth to compare with.
    """
    _require_metric(contract)
    if contract.task == "image-to-image":
        inputs, targets = image_files(folder / "input"), {path.name: path for path in image_files(folder / "target")}
        missing = [path.name for path in inputs if path.name not in targets]
        if missing:
            raise InputError(f"{folder / 'target'}: no target image for {', '.join(missing[:5])}")
        return [Example(source=path, truth=targets[path.name]) for path in inputs]
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")) if folder.is_dir() else []
    unknown = [path.name for path in classes if path.name not in contract.labels]
    if not classes or unknown:
        came = f"{', '.join(unknown[:5])} which {'is' if len(unknown) == 1 else 'are'} no label" if unknown else "no folders"
        raise InputError(f"{folder}: expected one folder of images per label ({', '.join(contract.labels[:10])}), got {came}")
    return [Example(source=file, truth=contract.labels.index(path.name)) for path in classes for file in image_files(path)]


def evaluate(model: Model, folder: str | Path, step: Callable[[int], None] = lambda done: None) -> Quality:
    """Accuracy or PSNR of a loaded model on a folder; `folder:PATH` and `PATH` mean the same."""
    examples = folder_examples(model.contract, Path(str(folder).removeprefix("folder:")))
    return measure(model.contract, model.raw, examples, step)
