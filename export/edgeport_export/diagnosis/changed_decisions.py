"""Decision parity: every image whose label another model changes, with how sure both were; for images made by a model, the patches that differ most.

As data that a report can show: JSON, and the pixels as PNG files.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeport_export.quantization.budget import Budget
from edgeport_export.quantization.label_changes import CLEAR, LEAST_CLEAR, LabelChanges, label_changes, margins, share_interval
from edgeport_runtime import Contract
from edgeport_runtime.decoding import describe
from edgeport_runtime.images import prepare_target
from edgeport_runtime.json_text import strict_json
from edgeport_runtime.scorers import psnr_db
from edgeport_runtime.similarity import structural_similarity
from edgeport_runtime.tasks import find_task

from .inputs import InputCase

PATCH = 32  # pixels: the side of a patch that is looked at by itself
MOST_PATCHES = 16
Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """`right` of `images` labels. `interval`: of the share, 95 %, after Wilson."""

    right: int
    images: int

    @property
    def interval(self) -> tuple[float, float]:
        return share_interval(self.right, self.images)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.right / self.images:.2f} % ({100 * low:.1f} to {100 * high:.1f})"


@dataclass(frozen=True, kw_only=True)
class ChangedLabel:
    """One image. `margin_before`, `margin_after`: between the two best probabilities of each side, 0..1. `truth`: None if it is not known."""

    image: str
    before: int
    after: int
    margin_before: float
    margin_after: float
    truth: int | None
    case: int
    row: int


@dataclass(frozen=True, kw_only=True)
class LabelParity:
    """The labels of two classifiers on the same images. `before`, `after`: accuracies, None without truths. `budget`: what may be lost.

    True if the second loses no more accuracy than allowed; without truths, or with too few to tell, if it changes no more clear labels than allowed.
    One that gains more than it might lose must keep the clear labels, too, or it is another network.
    """

    changes: LabelChanges
    changed: tuple[ChangedLabel, ...]
    before: Accuracy | None
    after: Accuracy | None
    budget: Budget
    names: tuple[str, str] = ("the first", "the second")

    @property
    def can_tell_accuracy(self) -> bool:
        """Whether one image weighs no more than the whole budget."""
        return self.before is not None and 100 / self.before.images <= self.budget.max_drop

    @property
    def decides(self) -> bool:
        """Whether there are enough images to decide by labels at all."""
        return self.can_tell_accuracy or self.changes.clear >= LEAST_CLEAR

    def __bool__(self) -> bool:
        if self.can_tell_accuracy and self.before is not None and self.after is not None:
            lost = 100 * (self.before.right - self.after.right) / self.before.images
            if abs(lost) <= self.budget.max_drop or lost > 0:
                return lost <= self.budget.max_drop
        return self.changes.percent <= self.budget.max_changed

    def __str__(self) -> str:
        rule = f"{self.budget.max_drop:g} points may be lost" if self.can_tell_accuracy else f"{self.budget.max_changed:g} % of the clear ones may change"
        head = "FAILED labels" if self.decides and not self else "labels"
        first, second = self.names
        told = f"accuracy {self.before} of {first}, {self.after} of {second}; " if self.before is not None else ""
        more = f"; {rule}" if self.decides else f"; too few to decide by, {LEAST_CLEAR} clear ones are needed"
        return f"{head}: {told}{second} {self.changes}, clear from {CLEAR:g} between the two best probabilities{more}"


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One square of `PATCH` pixels in an output image. `psnr_db`: of the second side against the first."""

    image: str
    top: int
    left: int
    psnr_db: float
    case: int
    row: int


@dataclass(frozen=True, kw_only=True)
class ImageParity:
    """The pixels that two generators make. `psnr_db`, `ssim`: of the second against the first; None for images that are too small.

    `truth_before_db`, `truth_after_db`: PSNR of each against the targets; None without. `patches`: those that differ most, worst first.
    `budget`: what may be lost. True if, with targets, no more than that is.
    """

    psnr_db: float
    ssim: float | None
    truth_before_db: float | None
    truth_after_db: float | None
    patches: tuple[Patch, ...]
    budget: Budget
    names: tuple[str, str] = ("the first", "the second")

    @property
    def decides(self) -> bool:
        return self.truth_before_db is not None

    def __bool__(self) -> bool:
        if self.truth_before_db is None or self.truth_after_db is None:
            return True
        return self.truth_before_db - self.truth_after_db <= self.budget.max_drop

    def __str__(self) -> str:
        similar = "" if self.ssim is None else f", SSIM {self.ssim:.5f}"
        first, second = self.names
        text = f"pixels: {second} is {self.psnr_db:.2f} dB from {first}{similar}"
        if self.truth_before_db is None:
            return text
        loss = f"{first} is {self.truth_before_db:.2f} dB from the targets, {second} {self.truth_after_db:.2f}; {self.budget.max_drop:g} dB may be lost"
        return f"{'' if self else 'FAILED '}{text}; {loss}"


TaskParity = LabelParity | ImageParity


def task_parity(
    contract: Contract,
    cases: Sequence[InputCase],
    before: Sequence[Array],
    after: Sequence[Array],
    budget: Budget,
    names: tuple[str, str] = ("the first", "the second"),
) -> TaskParity | None:
    """By the task's own measure, on images. `before`, `after`: the first output of each side for each case. `names`: of both. None for tasks without one."""
    task = find_task(contract.task)
    if task.answers_are_labels and before[0].ndim == 2:
        return replace(_labels(cases, before, after, budget), names=names)
    return replace(_images(contract, cases, before, after, budget), names=names) if contract.outputs[0].kind == "pixels" else None


def _labels(cases: Sequence[InputCase], before: Sequence[Array], after: Sequence[Array], budget: Budget) -> LabelParity:
    changed, right, truths = [], [0, 0], 0
    for number, (case, first, second) in enumerate(zip(cases, before, after, strict=True)):
        sure = margins(first), margins(second)
        for row, example in enumerate(case.examples):
            was, now = int(first[row].argmax()), int(second[row].argmax())
            truth = None if example.truth is None else int(example.truth)  # type: ignore[arg-type]  # of a classifier
            truths, right = truths + (truth is not None), [right[0] + (was == truth), right[1] + (now == truth)]
            if was != now:
                told = {"margin_before": float(sure[0][row]), "margin_after": float(sure[1][row])}
                changed.append(ChangedLabel(image=describe(example.source), before=was, after=now, **told, truth=truth, case=number, row=row))
    known = truths == sum(len(case.examples) for case in cases) and truths > 0
    accuracies = [Accuracy(right=each, images=truths) if known else None for each in right]
    return LabelParity(
        changes=label_changes(before, after),
        changed=tuple(sorted(changed, key=lambda each: -each.margin_before)),
        before=accuracies[0],
        after=accuracies[1],
        budget=budget,
    )


def _images(contract: Contract, cases: Sequence[InputCase], before: Sequence[Array], after: Sequence[Array], budget: Budget) -> ImageParity:
    errors = np.zeros(3)  # squared: of the second against the first, and of each against the targets
    elements, similarities, patches, targets = 0, [], [], True
    for number, (case, first, second) in enumerate(zip(cases, before, after, strict=True)):
        levels = [np.rint(each) for each in (first, second)]
        for row, example in enumerate(case.examples):
            was, now = levels[0][row], levels[1][row]
            errors[0] += float(np.sum(np.square(was - now)))
            elements += was.size
            similarities.append(structural_similarity(now, was))
            patches += _patches(describe(example.source), was, now, number, row)
            targets = targets and example.truth is not None
            if targets:
                truth = prepare_target(example.truth, contract.pixels, was.shape)
                errors[1:] += [float(np.sum(np.square(each - truth))) for each in (was, now)]
    found = [each for each in similarities if each is not None]
    return ImageParity(
        psnr_db=psnr_db(errors[0], elements),
        ssim=sum(found) / len(found) if found else None,
        truth_before_db=psnr_db(errors[1], elements) if targets else None,
        truth_after_db=psnr_db(errors[2], elements) if targets else None,
        patches=tuple(sorted(patches, key=lambda each: each.psnr_db)[:MOST_PATCHES]),
        budget=budget,
    )


def _patches(image: str, was: Array, now: Array, case: int, row: int) -> list[Patch]:
    found = []
    for top in range(0, was.shape[0], PATCH):
        for left in range(0, was.shape[1], PATCH):
            first, second = (each[top : top + PATCH, left : left + PATCH] for each in (was, now))
            decibels = psnr_db(float(np.sum(np.square(first - second))), first.size)
            if math.isfinite(decibels):
                found.append(Patch(image=image, top=top, left=left, psnr_db=decibels, case=case, row=row))
    return found


def changed_items(parity: TaskParity) -> Sequence[ChangedLabel | Patch]:
    """What changed, the surest or the worst first."""
    return parity.changed if isinstance(parity, LabelParity) else parity.patches


def write_changes(folder: Path, parity: TaskParity, contract: Contract, cases: Sequence[InputCase], before: Sequence[Array], after: Sequence[Array]) -> None:
    """`changes.json` with every changed decision, and for each a PNG: the image as the network saw it, or both sides' patch beside each other."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    items = changed_items(parity)
    for number, item in enumerate(items):
        file = f"{number:03d}.png"
        if isinstance(item, ChangedLabel):
            shown = cases[item.case].arrays[contract.inputs[0].name][item.row]
            named = {side: _label(contract, getattr(item, side)) for side in ("before", "after", "truth")}
        else:
            cut = (slice(item.top, item.top + PATCH), slice(item.left, item.left + PATCH))
            shown, named = np.concatenate([np.rint(side[item.case][item.row][cut]) for side in (before, after)], axis=1), {}
        Image.fromarray(shown.astype(np.uint8).squeeze()).save(folder / file)
        rows.append({**asdict(item), **named, "file": file})
    kind = "labels" if isinstance(parity, LabelParity) else "patches"
    (folder / "changes.json").write_text(strict_json({"kind": kind, "passed": bool(parity), "summary": str(parity), "changes": rows}) + "\n")


def _label(contract: Contract, index: int | None) -> str | None:
    return None if index is None else contract.labels[index] if contract.labels else str(index)
