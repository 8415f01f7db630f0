"""Quality on held-out examples: PyTorch, fp32 and int8 side by side, and how many answers changed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeport_export.errors import ExportError
from edgeport_export.import_string import imported, name_of
from edgeport_export.network.image_hash import pixels_sha256
from edgeport_export.network.reference import TorchReference
from edgeport_runtime import Contract, Example, Quality
from edgeport_runtime.engine import Arrays, Engine
from edgeport_runtime.evaluation import measure
from edgeport_runtime.images import Pixel, prepare
from edgeport_runtime.scorers import SHARES, margin, metric_unit
from edgeport_runtime.tasks import find_task

MOST_CHANGED = 50  # images with a changed label that the evidence lists
TIE = 1e-4  # of the logits' range: two classes closer than this may change places by rounding alone
# every output over all examples (an array, or a list if sizes differ), and their truths -> a number, the larger the better
Metric = Callable[[Mapping[str, Any], Sequence[Any]], float]
Advance = Callable[[int], None]  # called with the number of images that are done


def load_metric(name: str) -> Metric:
    """The function that `my.module:function` names. Raises ExportError."""
    try:
        found = imported(name) if ":" in name else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ExportError(f"{name}: the metric cannot be imported ({error})") from error
    if found is not None and not callable(found):
        raise ExportError(f"{name}: expected a function that takes outputs and truths, got {type(found).__name__}")
    if found is None:
        raise ExportError(f"expected a metric as my.module:function, got {name!r}")
    metric: Metric = found
    return metric


@dataclass(frozen=True, kw_only=True)
class QualityReport:
    """Each engine's quality, by its name; "torch" is PyTorch.

    `changed`: for classifiers, the number of labels that differ from PyTorch's. `non_tie_changes`: those of them for which PyTorch's two best
    classes were further apart than TIE. `unseen`: outputs that the task's own metric does not see. `truths`: the classes of the images, if they are such.
    `pixels_sha256`: by index, of those images that `to_dict` lists, see `pixels_sha256`. `numbers`: the images' places among all held-out images.
    """

    qualities: Mapping[str, Quality]
    changed: Mapping[str, int]
    non_tie_changes: Mapping[str, int]
    unseen: int = 0
    truths: tuple[int, ...] = ()
    pixels_sha256: Mapping[int, str] = field(default_factory=dict)
    numbers: Sequence[int] | None = None

    def drop(self, precision: str) -> float:
        """The loss against PyTorch, in the unit that `unit` names. Negative if quality rose."""
        return drop(self.qualities["torch"], self.qualities[precision])

    def to_dict(self) -> dict[str, Any]:
        """For the evidence."""
        first = self.qualities["torch"]
        return {
            "metric": first.metric,
            "count": first.count,
            "values": {name: each.value for name, each in self.qualities.items()},
            **({} if first.at_50 is None else {"at_50": {name: each.at_50 for name, each in self.qualities.items()}}),
            **({} if first.ssim is None else {"ssim": {name: each.ssim for name, each in self.qualities.items()}}),
            "changed": dict(self.changed),
            "changed_images": {name: self._changed_images(name) for name in self.changed},
        }

    def _changed_images(self, name: str) -> list[dict[str, Any]]:
        """The images whose label an engine changes, those of which PyTorch was surest first, at most MOST_CHANGED. Margins: of the logits' range, 0..1."""
        first, other = self.qualities["torch"], self.qualities[name]
        return [
            {
                "image": i if self.numbers is None else self.numbers[i],
                "torch": first.answers[i],
                "answer": other.answers[i],
                "truth": self.truths[i] if self.truths else None,
                "torch_margin": round(first.margins[i], 6),
                "margin": round(other.margins[i], 6),
                **({"pixels_sha256": self.pixels_sha256[i]} if i in self.pixels_sha256 else {}),
            }
            for i in _changed(first, other)[:MOST_CHANGED]
        ]


def _changed(first: Quality, other: Quality) -> list[int]:
    """Indices of the images with other answers, those of which `first` was surest before the others."""
    return sorted((i for i, answer in enumerate(other.answers) if answer != first.answers[i]), key=lambda i: -first.margins[i])


def drop(before: Quality, after: Quality) -> float:
    """Percentage points of accuracy or mean IoU, dB of PSNR, or units of the user's own metric."""
    lost = 0.0 if before.value == after.value else before.value - after.value  # two infinite PSNRs are equal
    return 100 * lost if before.metric in SHARES else lost


def unit(quality: Quality) -> str:
    """The unit of a drop in this quality."""
    return metric_unit(quality.metric) or f"of {quality.metric}"


def too_few_examples(quality: Quality, max_drop: float) -> bool:
    """Whether one answer weighs more than the whole budget: twelve images cannot tell half a point of accuracy."""
    return quality.metric == "accuracy" and 100 / max(1, quality.count) > max_drop


def metric_is_sufficient(quality: Quality, unseen: int, max_drop: float) -> bool:
    """Whether the metric decides alone: it can tell the budget, and sees every output, as a user's own does. `unseen`: by the task's own."""
    return not too_few_examples(quality, max_drop) and (unseen == 0 or metric_unit(quality.metric) is None)


def unseen_outputs(contract: Contract) -> int:
    """Outputs that the task's own metric does not see: all but the first, unless answers are made of all of them."""
    return len(contract.outputs) - 1 if find_task(contract.task).first_answers else 0


class QualityEvaluator:
    """Evaluates engines on the same examples as PyTorch, which runs once. `metric`: the user's own with its name, else the task's. `numbers`: the examples'
    places among all held-out images, if they are a part of them.

    Raises ExportError if there is neither, or if the truth of a classifier's image is none of its classes.
    """

    def __init__(self, reference: TorchReference, examples: Sequence[Example], metric: tuple[str, Metric] | None = None, numbers: range | None = None) -> None:
        contract = reference.contract
        if metric is None and find_task(contract.task).metric is None:
            raise ExportError(f"a model of the task {contract.task!r} has no metric that edgeport knows: name one with --metric my.module:function")
        if metric is None and find_task(contract.task).answers_are_labels:
            _require_classes(contract, examples)
        self.contract = contract
        self.reference = reference
        self.examples = examples
        self.metric = metric
        self.numbers = range(len(examples)) if numbers is None else numbers

    @cached_property
    def torch(self) -> Quality:
        """PyTorch's quality."""
        return self._measure(self.reference.pixels, lambda done: None)

    def every_second(self, first: int) -> "QualityEvaluator":
        """On half of the examples, from the one with the index `first` on: folders list one class after the other."""
        return QualityEvaluator(self.reference, self.examples[first::2], self.metric, self.numbers[first::2])

    def measure(self, engine: Engine, advance: Advance = lambda done: None) -> Quality:
        """The engine's quality, through the runtime's own image code."""
        return self._measure(lambda pixels: engine.run({self.contract.inputs[0].name: pixels}), advance)

    def evaluate(self, engines: Mapping[str, Engine], advance: Advance = lambda done: None) -> QualityReport:
        """Every engine beside PyTorch."""
        qualities = {"torch": self.torch, **{name: self.measure(engine, advance) for name, engine in engines.items()}}
        moved = {name: _changed(self.torch, qualities[name]) for name in engines if self.torch.answers}
        listed = {i for indices in moved.values() for i in indices[:MOST_CHANGED]}
        return QualityReport(
            qualities=qualities,
            changed={name: len(indices) for name, indices in moved.items()},
            non_tie_changes={name: sum(self.torch.margins[i] > TIE for i in indices) for name, indices in moved.items()},
            unseen=unseen_outputs(self.contract),
            truths=_classes(self.examples) if moved else (),
            pixels_sha256={i: pixels_sha256(prepare(self.examples[i].source, self.contract.pixels)) for i in sorted(listed)},
            numbers=self.numbers,
        )

    def _measure(self, run: Callable[[Pixel], Arrays], advance: Advance) -> Quality:
        if self.metric is None:
            return measure(self.contract, run, self.examples, advance)
        rows: list[Arrays] = []
        for example in self.examples:
            rows.append(run(prepare(example.source, self.contract.pixels)[None]))
            advance(1)
        outputs = {each.name: joined([row[each.name] for row in rows]) for each in self.contract.outputs}
        name, value = self.metric[0], self._own_metric(outputs)
        answers: list[int] = []
        margins: list[float] = []
        if find_task(self.contract.task).answers_are_labels:  # changed labels are counted whatever the metric is
            logits = outputs[self.contract.outputs[0].name]
            answers, margins = [int(row.argmax()) for row in logits], [margin(row) for row in logits]
        return Quality(metric=name, value=value, count=len(self.examples), answers=tuple(answers), margins=tuple(margins))

    def _own_metric(self, outputs: Mapping[str, Any]) -> float:
        assert self.metric is not None
        name, function = self.metric
        try:
            value = float(function(outputs, [example.truth for example in self.examples]))
        except Exception as error:  # the user's own code
            raise ExportError(f"the metric {name} failed ({type(error).__name__}: {error})") from error
        if not math.isfinite(value):
            raise ExportError(f"the metric {name} gave {value}: expected a finite number, the larger the better")
        return value


def quality_evaluator(reference: TorchReference, held_out: Sequence[Example], metric: str | Metric | None) -> QualityEvaluator | None:
    """None if there are no images to evaluate on, or no metric. Raises ExportError for a metric without images, or one that fails on PyTorch."""
    if metric is not None and not held_out:
        raise ExportError("a metric was named, but there are no held-out images with their truth to apply it to")
    if not held_out or (metric is None and find_task(reference.contract.task).metric is None):
        return None
    own = None if metric is None else (metric, load_metric(metric)) if isinstance(metric, str) else (name_of(metric), metric)
    evaluator = QualityEvaluator(reference, held_out, own)
    if own is not None:
        _ = evaluator.torch  # a metric that fails should say so before anything else is made
    return evaluator


def joined(rows: list[NDArray[Any]]) -> NDArray[Any] | list[NDArray[Any]]:
    """One array over all examples; if their sizes differ, a list of what each gave."""
    return np.concatenate(rows) if len({row.shape[1:] for row in rows}) == 1 else rows


def _classes(examples: Sequence[Example]) -> tuple[int, ...]:
    """The truths, if each is the index of a class; a metric of the user's own may take others."""
    found = tuple(int(each.truth) for each in examples if isinstance(each.truth, int | np.integer))
    return found if len(found) == len(examples) else ()


def _require_classes(contract: Contract, examples: Sequence[Example]) -> None:
    classes = int(contract.outputs[0].shape[-1])
    unknown = [each.truth for each in examples if not (isinstance(each.truth, int | np.integer) and 0 <= each.truth < classes)]
    if unknown:
        raise ExportError(f"the truth of a held-out image must be the index of its class, 0 to {classes - 1}, got {unknown[0]!r}")
