"""Integer weights that give back what rounding costs, at no cost when the network runs.

Most of what int8 loses on a trained network is the rounding of its weights. With float weights and rounded activations, EfficientNet-Lite0 is 21 dB
from float; with weights rounded to the nearest step as well, 14 dB. So the products are rounded in the graph's order, each for what it reads in the network in
which all before it are rounded already.

1. Weights: compensated rounding (`compensated_rounding`) with the second moments of what the product reads. If an offset will be fitted, without their
   mean, because the offset makes up for that.
2. One gain and one offset for each row, by least squares against the float network. The gain goes into the row's step, the offset into the bias.
   What is compared is what the next operator sees: ReLU6 cuts off most of a sum's range, and a line through all of it fits the part that counts badly.
   A row keeps gain 1 and its own bias if the line is no better on the positions that were looked at.
3. Images are read until there are enough positions for each input (see `Effort`): a convolution finds thousands in one image, a linear layer one.
   Only moments are kept, beside a few positions for rule 2, so memory does not grow with the number of images. Products that read the same value share
   a pass.
4. A linear layer with more than MOST_INPUTS inputs is rounded to the nearest step, because its moments would not fit into memory, and so is a product
   that reads numbers that are none. Rule 2 applies.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeport_export.network.image_hash import shape_and_bytes
from edgeport_export.quantization.calibration import CALIBRATION_BATCH, pixel_arrays
from edgeport_export.quantization.qdq import shaped, with_pairs
from edgeport_export.quantization.variants import Names, QuantizableGraph
from edgeport_export.rewrites.graph import GraphEditor, Ranges
from edgeport_runtime import Example
from edgeport_runtime.engine import Arrays

from .compensated_rounding import compensated
from .frontier import Frontier, run_from
from .product_sums import ProductSums
from .recovered_weights import Recovered, RecoveredWeights
from .rounded_network import RoundedNetwork

SEED = 0
MOST_INPUTS = 8192  # whose moments are 0.5 GB
MOST_BYTES = 2**27  # of pixels
TOGETHER = 8  # batches that are run in one session
FITTED = 512  # positions of each batch that rule 2 looks at
STEPS = 4  # of rule 2: which positions lie inside the window depends on the line
LEAST_INSIDE = 100  # positions that tell a line
SHARES = np.linspace(1.0, 0.6, 17)  # of the step with which the largest weight is not cut off
GAINS = (0.5, 1.5)  # a row whose gain lies beyond hardly varies, or the network is lost before it

Window = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is looked at for each product: `images` at least, and until there are `per_input` positions for each of its inputs."""

    images: int
    per_input: int


# EfficientNet-Lite0: 22.0 dB in 14 s
EFFORTS = {"quick": Effort(images=24, per_input=1), "thorough": Effort(images=96, per_input=4)}


class Moments:
    """What is known of one product's inputs, and some of them with what the float network makes there."""

    def __init__(self, sums: ProductSums) -> None:
        groups, _, inputs = sums.rows.shape
        self.inputs, self.images, self.count = inputs, 0, 0
        self.shift = np.zeros((groups, 1, inputs), np.float32)  # taken off all inputs: large means would drown the products in float32
        self.total = np.zeros((groups, inputs))
        self.products = np.zeros((groups, inputs, inputs)) if inputs <= MOST_INPUTS else None
        self.kept: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []

    def enough(self, effort: Effort) -> bool:
        """Rule 3."""
        return self.images >= effort.images and self.count >= effort.per_input * self.inputs

    def add(self, inputs: NDArray[np.float32], outputs: NDArray[np.float32]) -> None:
        """Take in what `ProductSums.sampled` gives."""
        if not self.count:
            self.shift = inputs.mean(axis=1, keepdims=True)
        self.count += inputs.shape[1]
        if self.products is not None:
            moved = inputs - self.shift
            self.total += moved.sum(axis=1, dtype=np.float64)
            self.products += moved.swapaxes(1, 2) @ moved
        every = -(-inputs.shape[1] // FITTED)
        self.kept.append((inputs[:, ::every], outputs[:, ::every]))

    def second(self, *, about_mean: bool) -> NDArray[np.float64]:
        """The inputs' covariance, or the mean of their products.

        The fewer positions there are, the more only the diagonal counts: in 16 images, a thousand inputs seem to make up for anything. This is the
        shrinkage of Ledoit and Wolf 2004; the diagonal weighs as much as one position for each input.
        """
        assert self.products is not None
        found, mean = self.products / self.count, self.total / self.count
        found = found - mean[:, :, None] * mean[:, None, :]
        if not about_mean:
            mean = mean + self.shift[:, 0]
            found = found + mean[:, :, None] * mean[:, None, :]
        return found * np.where(np.eye(self.inputs, dtype=bool), 1.0, self.count / (self.count + self.inputs))


def recover(
    graph: QuantizableGraph,
    integer: Names,
    ranges: Ranges,
    images: Sequence[Arrays],
    effort: Effort = EFFORTS["quick"],
    goes_on: Callable[[int, int], bool] = lambda done, total: True,
    seed: int = SEED,
) -> Recovered:
    """Round the weights of the products in `integer` for each other.

    `images`: what the network reads meanwhile, in batches, as `images_to_round_with` gives them. `goes_on`: asked with the number of products that are
    done, and of all, whether to go on. Those that are left keep their own weights. `seed`: for the positions that are drawn.
    """
    editor, context = shaped(graph.model, graph.contract, integer, ranges, graph.target)
    network = RoundedNetwork(editor.model, with_pairs(editor.model, context, graph.target), context.products)
    generator, found = np.random.default_rng(seed), dict[str, RecoveredWeights]()
    first = images[: -(-effort.images // CALIBRATION_BATCH)]
    rounded, exact = Frontier(network.rounded, first), Frontier(network.exact, first)
    for names in _together(network):
        if not goes_on(len(found), len(network.products)):
            break
        rounded.move_to([network.reads(names[0])])
        exact.move_to([network.products[name].given for name in names])
        for name, moments in _observed(network, names, (rounded, exact), images, effort, generator).items():
            sums = network.products[name]
            found[name] = _recovered(network.exact, sums, moments, _window(network.exact, sums, context.ranges), graph.target.largest_weight)
            network.replace(name, found[name].weights, found[name].added)
    return found


def _together(network: RoundedNetwork) -> list[list[str]]:
    """Rule 3: the products that read the same value."""
    groups: dict[str, list[str]] = {}
    for name in network.products:
        groups.setdefault(network.reads(name), []).append(name)
    return list(groups.values())


def _observed(
    network: RoundedNetwork,
    names: list[str],
    frontiers: tuple[Frontier, Frontier],
    images: Sequence[Arrays],
    effort: Effort,
    generator: np.random.Generator,
) -> dict[str, Moments]:
    """What the rounded network reads and the exact one makes there. What the frontiers do not hold is run from the pixels on, if it takes that many."""
    read, made = [network.reads(names[0])], [network.products[name].made for name in names]
    found = {name: Moments(network.products[name]) for name in names}
    held = min(len(each.values) for each in frontiers)
    for given, values in zip(*(frontier.run(which)[:held] for frontier, which in zip(frontiers, (read, made), strict=True)), strict=True):
        _take_in(network, found, given[0], values, generator)
    while held < len(images) and not all(each.enough(effort) for each in found.values()):
        more = images[held : held + TOGETHER]
        for given, values in zip(run_from(network.rounded, more, read), run_from(network.exact, more, made), strict=True):
            _take_in(network, found, given[0], values, generator)
        held += len(more)
    return found


def _take_in(network: RoundedNetwork, found: dict[str, Moments], given: NDArray[Any], made: list[NDArray[Any]], generator: np.random.Generator) -> None:
    for (name, moments), values in zip(found.items(), made, strict=True):
        moments.add(*network.products[name].sampled(given, values, generator))
        moments.images += len(given)


def _window(editor: GraphEditor, sums: ProductSums, ranges: Ranges) -> Window:
    """Rule 2: the part of the sums' range that is not cut off before the next operator that does more than that, or lays values out."""
    value, low, high = sums.made, -np.inf, np.inf
    while True:
        least, most = ranges.get(value, (-np.inf, np.inf))
        low, high = max(low, least), min(high, most)
        reader = editor.only_reader(value)
        if reader is None or reader.op_type not in ("Relu", "Clip", "Transpose", "Reshape") or not editor.are_constants(reader.input[1:]):
            return low, high
        if reader.op_type == "Relu":
            low = max(low, 0.0)
        elif reader.op_type == "Clip":
            limits = [float(editor.array(name).max()) if name else None for name in (*reader.input[1:], "", "")]
            low, high = max(low, low if limits[0] is None else limits[0]), min(high, high if limits[1] is None else limits[1])
        value = reader.output[0]


def _recovered(editor: GraphEditor, sums: ProductSums, moments: Moments, window: Window, largest: int) -> RecoveredWeights:
    """Rules 1 and 2 for one product."""
    if moments.products is None or not np.isfinite(moments.products).all():
        steps = best_steps(sums.rows, np.ones(sums.rows.shape[::2]), largest)
        integers = np.clip(np.round(sums.rows / steps[:, :, None]), -largest, largest)
    else:
        second = moments.second(about_mean=sums.added_by is not None and moments.count >= LEAST_INSIDE)
        steps = best_steps(sums.rows, np.diagonal(second, axis1=1, axis2=2), largest)
        integers = compensated(sums.rows, second, steps, largest)
    rows = integers * steps[:, :, None]
    if sums.added_by is None:
        return RecoveredWeights(before=sums.weights, weights=sums.as_weights(rows), added=None)
    inputs, wanted = (np.concatenate(each, axis=1) for each in zip(*moments.kept, strict=True))
    got, aim = (_by_position(each) for each in (inputs @ rows.swapaxes(1, 2).astype(np.float32), wanted))
    gain, offset = fitted(got, aim, sums.added(editor), window)
    return RecoveredWeights(before=sums.weights, weights=sums.as_weights(rows * gain.reshape(steps.shape)[:, :, None]), added=offset.astype(np.float32))


def best_steps(rows: NDArray[np.float64], squares: NDArray[np.float64], largest: int) -> NDArray[np.float64]:
    """Rule 1: for each row (groups, rows) the step with the least squared error, if each weight goes to its nearest.

    `squares`: how much the error of each input's weight counts (groups, inputs).
    """
    peaks = np.abs(rows).max(axis=2)
    widest = np.where(peaks > 0, peaks, 1.0) / largest
    best, least = widest, np.full(peaks.shape, np.inf)
    for share in SHARES:
        steps = share * widest
        error = np.clip(np.round(rows / steps[:, :, None]), -largest, largest) * steps[:, :, None] - rows
        found = (np.square(error) * squares[:, None]).sum(axis=2)
        better = found < least
        best, least = np.where(better, steps, best), np.where(better, found, least)
    return best


def _by_position(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """(groups, positions, rows) as (positions, rows of all groups)."""
    return values.swapaxes(0, 1).reshape(values.shape[1], -1).astype(np.float64)


def fitted(
    got: NDArray[np.float64], wanted: NDArray[np.float64], added: NDArray[np.float64], window: Window
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rule 2: gain and offset (rows) that bring `got` (positions, rows) nearest to `wanted` inside the window, by Gauss-Newton steps.

    `added`: the offset that there is without a fit.
    """
    low, high = window
    target = np.clip(wanted, low, high)

    def error(gain: NDArray[np.float64], offset: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.square(np.clip(gain * got + offset, low, high) - target).mean(axis=0))

    best = (np.ones(got.shape[1]), added)
    least, line, gain, offset = error(*best), wanted, np.ones(got.shape[1]), added
    for _ in range(STEPS):
        inside = (line > low) & (line < high)
        count = np.maximum(inside.sum(axis=0), 1)
        middle, aim = (got * inside).sum(axis=0) / count, (target * inside).sum(axis=0) / count
        spread, together = (np.square(got - middle) * inside).sum(axis=0), ((got - middle) * (target - aim) * inside).sum(axis=0)
        told = inside.sum(axis=0) >= LEAST_INSIDE
        gain = np.where(told & (spread > 0), np.clip(together / np.where(spread > 0, spread, 1.0), *GAINS), gain)
        offset = np.where(told, aim - gain * middle, offset)
        found, line = error(gain, offset), gain * got + offset
        better = found < least
        least, best = np.where(better, found, least), (np.where(better, gain, best[0]), np.where(better, offset, best[1]))
    return best


def images_to_round_with(graph: QuantizableGraph, examples: Sequence[Example], seed: int = SEED) -> list[Arrays]:
    """The examples' pixels in batches, in an order of chance, because folders list one class after the other. As many as fit into MOST_BYTES.

    Raises ImageError.
    """
    name, found, left = graph.contract.inputs[0].name, list[Arrays](), MOST_BYTES
    order = np.random.default_rng(seed).permutation(len(examples))
    for arrays in pixel_arrays(graph.contract, [examples[index] for index in order]):
        left -= arrays[name].nbytes
        if found and left < 0:
            break
        found.append(arrays)
    return found


def images_sha256(images: Sequence[Arrays]) -> str:
    """Over the shape and pixels of all batches."""
    digest = hashlib.sha256()
    for arrays in images:
        for pixels in arrays.values():
            digest.update(shape_and_bytes(pixels))
    return digest.hexdigest()
