"""Ranges chosen value by value.

One kind of ranges fits most values of a network. Where one value has rare large numbers that mean nothing, and another has rare large numbers that
decide, none fits both. So each value tries its range of every kind, and keeps the one with which the outputs come nearest to the float network's.

1. The network in which it tries them has float weights and rounded activations, so weights that are wrong do not hide the difference.
2. Scales and zero points are inputs of one session: a try takes one run, and nothing is built.
3. The values whose kinds of ranges differ most come first, because time may be up before the last. Each is chosen with those before it in place.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from edgeport_export.quantization.qdq import shaped, with_pairs
from edgeport_export.quantization.variants import Probes, QuantizableGraph
from edgeport_export.rewrites.graph import GraphEditor, Ranges
from edgeport_runtime.engine import Arrays

from .frontier import session_of_pairs
from .rounded_network import RoundedNetwork

LEAST_DIFFERENCE = 1.02  # between the widest and the narrowest range of a value; below, there is nothing to choose
Pair = tuple[str, str]  # names of a scale and its zero point
Range = tuple[float, float]


def ranges_by_value(
    graph: QuantizableGraph, kinds: Mapping[str, Ranges], start: str, images: Probes, goes_on: Callable[[int, int], bool] = lambda done, total: True
) -> Ranges:
    """The ranges of the kind `start`, in which some values have those of another kind.

    `kinds`: kind -> the ranges of all values. `images`: by which values choose. `goes_on`: asked with the number of values that are done, and of all.
    """
    network = RangedNetwork(graph, kinds[start])
    chosen = dict(kinds[start])
    fed: dict[str, NDArray[Any]] = {}
    nearest = network.sqnr_db(images, fed)
    disputed = _disputed(network.pairs, kinds)
    for done, (pair, values) in enumerate(disputed.items()):
        if not goes_on(done, len(disputed)):
            break
        tries = {kind: fed | network.inputs(pair, ranges[values[0]]) for kind, ranges in kinds.items() if kind != start}
        for kind, tried in tries.items():
            found = network.sqnr_db(images, tried)
            if found > nearest:
                nearest, fed = found, tried
                chosen |= {value: kinds[kind][value] for value in values}
    return chosen


def _disputed(pairs: Mapping[Pair, Sequence[str]], kinds: Mapping[str, Ranges]) -> dict[Pair, Sequence[str]]:
    """Rule 3: the values of each scale, where there is something to choose."""
    found, differences = dict[Pair, Sequence[str]](), dict[Pair, float]()
    for pair, values in pairs.items():
        widths = [ranges[values[0]][1] - ranges[values[0]][0] for ranges in kinds.values()]
        if np.isfinite(widths).all() and min(widths) > 0 and max(widths) > LEAST_DIFFERENCE * min(widths):
            found[pair], differences[pair] = values, max(widths) / min(widths)
    return {pair: found[pair] for pair in sorted(found, key=lambda each: -differences[each])}


def _calibrated(value: str, made: Ranges, ranges: Ranges) -> str | None:
    """The calibrated value whose range `value` has: itself, or the one that a pass has given another shape and a longer name. `made`: ranges with those of
    the passes."""
    base = value
    while base not in ranges and "." in base:
        base = base.rpartition(".")[0]
    return base if base in ranges and made.get(value) == ranges[base] else None


class RangedNetwork:
    """Rules 1 and 2. `pairs`: scale and zero point -> the calibrated values that are rounded with them."""

    def __init__(self, graph: QuantizableGraph, ranges: Ranges) -> None:
        everything = frozenset(graph.quantizable)
        editor, context = shaped(graph.model, graph.contract, everything, ranges, graph.target)
        model = RoundedNetwork(editor.model, with_pairs(editor.model, context, graph.target), context.products).rounded.model
        constants = GraphEditor(model).constants
        self.pairs: dict[Pair, list[str]] = {}
        for node in [each for each in model.graph.node if each.op_type == "QuantizeLinear"]:
            if any(name not in constants or constants[name].dims for name in node.input[1:]):
                continue  # attention's rows have steps that are computed while it runs
            base = _calibrated(node.input[0], context.ranges, ranges)
            if base is not None:
                self.pairs.setdefault((node.input[1], node.input[2]), []).append(base)
        self._zeros = {pair: helper.tensor_dtype_to_np_dtype(constants[pair[1]].data_type) for pair in self.pairs}
        for name in {each for pair in self.pairs for each in pair}:
            model.graph.input.append(helper.make_tensor_value_info(name, constants[name].data_type, []))
        self._session = session_of_pairs(model)

    def inputs(self, pair: Pair, found: Range) -> Arrays:
        """The scale and the zero point of a range, as onnxruntime's quantizer computes them."""
        limits, (low, high) = np.iinfo(self._zeros[pair]), (min(found[0], 0.0), max(found[1], 0.0))
        scale = (high - low) / (limits.max - limits.min)
        zero = np.clip(round(limits.min - low / scale), limits.min, limits.max)
        return {pair[0]: np.array(scale, np.float32), pair[1]: np.array(zero, self._zeros[pair])}

    def sqnr_db(self, images: Probes, fed: Arrays) -> float:
        """Of the outputs with these scales and zero points; the others are those of the ranges in the beginning."""
        names = list(images.expected[0])
        return images.sqnr_db([dict(zip(names, self._session.run(names, {**arrays, **fed}), strict=True)) for arrays in images.arrays])
