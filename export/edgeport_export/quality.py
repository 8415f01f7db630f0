"""Quality on held-out examples: PyTorch, fp32 and int8 side by side, and how many answers changed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeport_runtime import Contract, Quality
from edgeport_runtime.engine import Arrays, Engine
from edgeport_runtime.evaluate import Example, margin, measure
from edgeport_runtime.images import Pixel, prepare

from .errors import ExportError
from .imports import imported
from .wrap import Reference

TIE = 1e-4  # of the logits' range: two classes closer than this may change places by rounding alone
METRIC_TASKS = ("classification", "image-to-image")  # those with a metric that edgeport knows
# every output over all examples (an array, or a list where sizes differ), and their truths -> a number, the larger the better
Metric = Callable[[Mapping[str, Any], Sequence[Any]], float]
Step = Callable[[int], None]


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
class Judgement:
    """Each engine's metric, and for classifiers (others have no entry) how many labels differ from PyTorch's. `decided`: those that were no tie in PyTorch.

    `outputs`: that the network has.
    """

    qualities: Mapping[str, Quality]
    changed: Mapping[str, int]
    decided: Mapping[str, int]
    outputs: int = 1

    def drop(self, precision: str) -> float:
        """What the precision costs against PyTorch, in the unit of `Jury.unit`. Negative where it gained."""
        return drop(self.qualities["torch"], self.qualities[precision])

    def to_dict(self) -> dict[str, Any]:
        first = self.qualities["torch"]
        return {
            "metric": first.metric,
            "count": first.count,
            "values": {name: each.value for name, each in self.qualities.items()},
            "changed": dict(self.changed),
        }


def _joined(rows: list[NDArray[Any]]) -> NDArray[Any] | list[NDArray[Any]]:
    """One array over all examples; a list of what each gave where their sizes differ."""
    return np.concatenate(rows) if len({row.shape[1:] for row in rows}) == 1 else rows


def drop(before: Quality, after: Quality) -> float:
    """Percentage points of accuracy, dB of PSNR, or units of the user's own metric."""
    lost = before.value - after.value
    return 100 * lost if before.metric == "accuracy" else lost


def unit(quality: Quality) -> str:
    """What a drop in this quality is counted in."""
    return {"accuracy": "points", "psnr_db": "dB"}.get(quality.metric, f"of {quality.metric}")


def blind(quality: Quality, max_drop: float) -> bool:
    """Whether one answer weighs more than the whole budget: twelve images cannot tell half a point of accuracy."""
    return quality.metric == "accuracy" and 100 / max(1, quality.count) > max_drop


def trusted(quality: Quality, outputs: int, max_drop: float) -> bool:
    """Whether the metric decides alone: it can tell the budget, and looks at every output. A task's own metric looks at the first one."""
    return not blind(quality, max_drop) and (outputs == 1 or quality.metric not in ("accuracy", "psnr_db"))


class Jury:
    """Judges engines on the same examples as PyTorch, which is asked once. `metric`: the user's own, else the task's.

    Raises ExportError where there is neither, or where the truth of a classifier's image is none of its classes.
    """

    def __init__(self, contract: Contract, reference: Reference, examples: Sequence[Example], metric: tuple[str, Metric] | None = None) -> None:
        if metric is None and contract.task not in METRIC_TASKS:
            raise ExportError(f"a model of the task {contract.task!r} has no metric that edgeport knows: name one with --metric my.module:function")
        classes = contract.outputs[0].shape[-1]
        strange = [each.truth for each in examples if not (isinstance(each.truth, int | np.integer) and 0 <= each.truth < int(classes))]
        if metric is None and contract.task == "classification" and strange:
            raise ExportError(f"the truth of a held-out image must be the index of its class, 0 to {int(classes) - 1}, got {strange[0]!r}")
        self.contract = contract
        self.reference = reference
        self.examples = examples
        self.metric = metric

    @cached_property
    def torch(self) -> Quality:
        return self._measure(self.reference.pixels, lambda done: None)

    def measure(self, engine: Engine, step: Step = lambda done: None) -> Quality:
        """The engine's quality, through the runtime's own image code."""
        return self._measure(lambda pixels: engine.run({self.contract.inputs[0].name: pixels}), step)

    def _measure(self, run: Callable[[Pixel], Arrays], step: Step) -> Quality:
        if self.metric is None:
            return measure(self.contract, run, self.examples, step)
        name, function = self.metric
        rows: list[Arrays] = []
        for example in self.examples:
            rows.append(run(prepare(example.source, self.contract.pixels)[None]))
            step(1)
        outputs = {each.name: _joined([row[each.name] for row in rows]) for each in self.contract.outputs}
        try:
            value = float(function(outputs, [example.truth for example in self.examples]))
        except Exception as error:  # the user's own code
            raise ExportError(f"the metric {name} failed ({type(error).__name__}: {error})") from error
        if not math.isfinite(value):
            raise ExportError(f"the metric {name} gave {value}: expected a finite number, the larger the better")
        answers: list[int] = []
        margins: list[float] = []
        if self.contract.task == "classification":  # whatever the metric counts, labels are told beside it
            logits = outputs[self.contract.outputs[0].name]
            answers, margins = [int(row.argmax()) for row in logits], [margin(row) for row in logits]
        return Quality(metric=name, value=value, count=len(self.examples), answers=tuple(answers), margins=tuple(margins))

    def judge(self, engines: Mapping[str, Engine], step: Step = lambda done: None) -> Judgement:
        """Every engine beside PyTorch."""
        qualities = {"torch": self.torch, **{name: self.measure(engine, step) for name, engine in engines.items()}}
        first = self.torch.answers
        moved = {name: [i for i, answer in enumerate(qualities[name].answers) if answer != first[i]] for name in engines if first}
        return Judgement(
            qualities=qualities,
            changed={name: len(indices) for name, indices in moved.items()},
            decided={name: sum(self.torch.margins[i] > TIE for i in indices) for name, indices in moved.items()},
            outputs=len(self.contract.outputs),
        )
