"""How far a variant's outputs are from the float graph's.

An output may join values of different scale: a detector's has boxes in pixels beside scores in 0..1. In one sum over both, the boxes would hide
that the scores collapsed (30.8 dB together, -13.4 dB for the scores alone). So the error is taken for each part of like scale, and the worst counts.
Parts are what the graph joins at its end. Channels that one layer gives are one part: a feature that hardly ever fires weighs little.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeport_export.rewrites.graph import GraphEditor
from edgeport_runtime import Contract
from edgeport_runtime.tasks import find_task

from .joined_scales import APART, PASSING

FOLDS, LEAST_FOLDS = 10, 3  # parts of the images, of which one is left out at a time


def agreement(expected: Sequence[NDArray[Any]], got: Sequence[NDArray[Any]]) -> float:
    """The share of equal entries, 0..1. An image whose output has another size, as boxes above a threshold have, agrees nowhere."""
    same = sum(int(np.count_nonzero(a == b)) for a, b in zip(expected, got, strict=True) if a.shape == b.shape)
    return same / max(1, sum(each.size for each in expected))


def sqnr_db(expected: Sequence[NDArray[Any]], got: Sequence[NDArray[Any]], parts: Sequence[NDArray[Any]] | None = None) -> float:
    """Signal over error, in dB. Each list: (N, …), images along the first axis. `parts`: for each array the number of each value's part, if there are
    several; the worst group of parts of like scale counts.

    The signal is what differs from image to image: a constant part, such as the bias of a depth in meters, would hide any error. If a size
    occurs once, the signal is what differs from the output's mean. An error that is no number counts as infinite; so does another size.
    """
    if any(a.shape != b.shape for a, b in zip(expected, got, strict=True)):
        return float("-inf")
    signals = [np.square(each).ravel() for each in _varying(expected)]
    errors = [np.square(a.astype(np.float64) - b.astype(np.float64)).ravel() for a, b in zip(expected, got, strict=True)]
    signal, error = np.concatenate(signals), np.concatenate(errors)
    if parts is None:
        return _decibels(signal.sum(), error.sum())
    which = np.concatenate([each.ravel() for each in parts]).astype(np.int64)
    counts, signal, error = (np.bincount(which, weights=values) for values in (np.ones(which.size), signal, error))
    groups = scale_groups(np.sqrt(signal / np.maximum(counts, 1)))
    return min(_decibels(signal[group].sum(), error[group].sum()) for group in groups)


def standard_error_db(count: int, sqnr_of: Callable[[list[int]], float]) -> float | None:
    """How far a figure would move with other images of the same kind, by leaving out a part of them at a time (the jackknife of Quenouille and Tukey).

    `count`: number of images or runs. `sqnr_of`: the figure of those with the given indices. None with fewer than LEAST_FOLDS parts, or if a part alone has no
    error or an infinite one.
    """
    folds = min(FOLDS, count)
    if folds < LEAST_FOLDS:
        return None
    found = [sqnr_of([index for index in range(count) if index % folds != fold]) for fold in range(folds)]
    return float(np.sqrt((folds - 1) * np.var(found))) if np.isfinite(found).all() else None


def _decibels(signal: float, error: float) -> float:
    if not error:
        return float("inf")
    return float(10 * np.log10(signal / error)) if signal and np.isfinite(signal) and np.isfinite(error) else float("-inf")


def finite_db(decibels: float) -> float:
    """Rounded, and within what JSON and a reader can take: the error of a layer on which no output depends is nothing at all, an infinite ratio."""
    return round(float(np.clip(decibels, -999.0, 999.0)), 2)


def scale_groups(scales: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Indices of parts, in groups of like scale: between one group and the next lies a gap of APART. What never changes joins the largest."""
    scales = np.where(np.isfinite(scales) & (scales > 0), scales, scales.max(initial=0.0))
    order = np.argsort(scales, kind="stable")
    gaps = np.flatnonzero(scales[order][1:] > APART * scales[order][:-1]) + 1
    return [np.sort(group) for group in np.split(order, gaps)]


def _varying(expected: Sequence[NDArray[Any]]) -> list[NDArray[np.float64]]:
    """Each array without what is the same in all images of its size; a size that occurs once, without its mean."""
    sizes: dict[tuple[int, ...], list[NDArray[np.float64]]] = {}
    for each in expected:
        sizes.setdefault(each.shape[1:], []).append(each.astype(np.float64))
    alike = {size: np.concatenate(rows) for size, rows in sizes.items()}
    middle = {size: rows.mean(axis=0) if len(rows) > 1 else rows.mean() for size, rows in alike.items()}
    return [each.astype(np.float64) - middle[each.shape[1:]] for each in expected]


def with_parts(model: onnx.ModelProto, contract: Contract) -> tuple[onnx.ModelProto, list[str]]:
    """The graph, giving for each value of an output the number of the part that it comes from, and the names of outputs that have parts.

    The first output of a task with an answer is one thing: logits, pixels, scores of classes.
    """
    unknown = contract.outputs[1:] if find_task(contract.task).first_answers else contract.outputs
    editor, joined = GraphEditor.of_copy(model), []
    for output in unknown:
        parts = list(dict.fromkeys(_parts(editor, output.name)))
        if len(parts) > 1 and output.dtype == "float32":
            joined.append(output.name)
            for number, part in enumerate(parts):
                _number(editor, f"{output.name}.part{number}", part, float(number))
    return editor.model, joined


def _parts(editor: GraphEditor, value: str) -> Iterator[str]:
    """The values that are joined and laid out until they are `value`; itself if it is nothing of that kind."""
    node = editor.producer(value, *PASSING)
    if node is None:
        yield value
        return
    for each in node.input if node.op_type == "Concat" else node.input[:1]:
        yield from _parts(editor, each)


def _number(editor: GraphEditor, prefix: str, part: str, number: float) -> None:
    """Let what joins and lays out a part read its number instead."""
    readers = [node for node in editor.readers[part] if node.op_type in PASSING and (node.op_type == "Concat" or node.input[0] == part)]
    made = editor.builder(prefix)
    zero = made.add("Mul", [part, made.constant(".zero", np.array(0, np.float32))], ".zeros")
    numbered = made.add("Add", [zero, made.constant(".number", np.array(number, np.float32))], ".numbers")
    for node in readers:
        editor.set_inputs(node, [numbered if each == part else each for each in node.input])
    editor.append(made.nodes)
