"""The ranges of activations, gathered in one pass whose memory does not grow with the number of images.

For every float value of the graph that may be quantized: the exact minimum and maximum, and a histogram whose span doubles when a value
falls outside. From these four kinds of ranges are derived, and the search takes the one with the smallest measured error:

- minmax: nothing clips.
- percentile: 99.99 % of the values lie inside, the rest clips.
- entropy: the clipping whose 8-bit version keeps the distribution best (Kullback-Leibler divergence; Migacz 2017, "8-bit inference with TensorRT").
- squares: the clipping with the least squared error of clipping and rounding together.

onnxruntime's own percentile and entropy calibration keep every activation: some 30 MB an image for ResNet18.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeport_export.network.image_hash import shape_and_bytes
from edgeport_export.rewrites.graph import Ranges
from edgeport_runtime import Contract, Example
from edgeport_runtime.engine import Arrays
from edgeport_runtime.images import pixel_batches

from .macs import session_with_outputs

METHODS = ("minmax", "percentile", "entropy", "squares")
BINS = 2048  # on each side of zero
ENTROPY_LEVELS = 128  # that entropy reduces a distribution to
SHARES = np.linspace(1.0, 0.1, 46)  # of an extreme, at which squares looks
TURNS = 2  # in which both limits settle
STEPS = 255  # between the lowest and the highest number of 8 bits
TAIL = 1e-4 / 2  # share of the values beyond each percentile limit
CALIBRATION_BATCH = 4  # all activations of ResNet18 at 224 are 50 MB an image
MOST_VALUES = 2**16  # of one batch of one activation that enter its histogram, evenly taken; the extremes are always exact


@dataclass(kw_only=True)
class Histogram:
    """Counts of values in 2 * BINS equal bins over -span..span."""

    low: float = 0.0
    high: float = 0.0
    span: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * BINS, np.int64))

    def add(self, values: NDArray[Any]) -> None:
        """Take in one batch of values; NaN and infinities are left out."""
        flat = values.ravel()
        low, high = float(flat.min(initial=0.0)), float(flat.max(initial=0.0))
        if not (np.isfinite(low) and np.isfinite(high)):
            flat = flat[np.isfinite(flat)]
            low, high = float(flat.min(initial=0.0)), float(flat.max(initial=0.0))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._stretch(max(-low, high))
        if self.span:
            taken = flat[:: max(1, -(-flat.size // MOST_VALUES))]
            bins = ((taken / self.span + 1) * BINS).astype(np.int64)
            self.counts += np.bincount(np.clip(bins, 0, 2 * BINS - 1), minlength=2 * BINS)

    def _stretch(self, peak: float) -> None:
        """Double the span until `peak` lies inside: two neighboring bins become one."""
        if not self.span and peak:
            self.span = float(2.0 ** np.ceil(np.log2(peak)))
        while peak > self.span:
            halved = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([np.zeros(BINS // 2, np.int64), halved, np.zeros(BINS // 2, np.int64)])
            self.span *= 2

    def range(self, method: str) -> tuple[float, float]:
        """Lowest and highest value that is not clipped. Zero always lies inside."""
        if method == "minmax" or not self.span:
            return self.low, self.high
        if method == "squares":
            return self._least_squares()
        if method == "percentile":
            share = np.cumsum(self.counts) / max(1, self.counts.sum())
            edges = np.linspace(-self.span, self.span, 2 * BINS + 1)
            first, last = int(np.searchsorted(share, TAIL)), int(np.searchsorted(share, 1 - TAIL))
        else:
            edges = np.linspace(-self.span, self.span, 2 * BINS + 1)
            reach = self._entropy_reach()
            first, last = BINS - reach, BINS + reach - 1
        return min(0.0, max(self.low, float(edges[first]))), max(0.0, min(self.high, float(edges[last + 1])))

    def _least_squares(self) -> tuple[float, float]:
        """Either limit chosen for the other one, in turns, from the extremes on."""
        low, high = self.low, self.high
        for _ in range(TURNS):
            high = float(min(np.unique(self.high * SHARES)[::-1], key=lambda limit: self._squared_error(low, limit)))
            low = float(min(np.unique(self.low * SHARES), key=lambda limit: self._squared_error(limit, high)))
        return low, high

    def _squared_error(self, low: float, high: float) -> float:
        """Of all values, each in the middle of its bin, if they are rounded to the steps between these limits. Zero, in the middle bin, is exact."""
        step, middles = (high - low) / STEPS, (np.arange(2 * BINS) + 0.5 - BINS) * self.span / BINS
        rounded = np.clip(np.round(middles / step), round(low / step), round(high / step)) * step
        error = self.counts * np.square(rounded - middles)
        return float(error.sum() - error[BINS])

    def _entropy_reach(self) -> int:
        """Number of bins from zero at which clipping loses least, by Kullback-Leibler divergence of the magnitudes."""
        magnitudes = self.counts[BINS:] + self.counts[:BINS][::-1]
        magnitudes[0] = magnitudes[1]  # the zeros that ReLU makes would outweigh everything, and zero is exact in any case
        reaches = np.unique(np.linspace(ENTROPY_LEVELS, BINS, 64).astype(int))
        return int(min(reaches, key=lambda reach: _clipping_divergence(magnitudes, int(reach))))


def _clipping_divergence(magnitudes: NDArray[np.int64], reach: int) -> float:
    """How much the distribution differs once it is clipped at `reach` bins and told apart in ENTROPY_LEVELS levels only."""
    kept = magnitudes[:reach].astype(np.float64)
    clipped = kept.copy()
    clipped[-1] += magnitudes[reach:].sum()
    group = np.arange(reach) * ENTROPY_LEVELS // reach
    occupied = kept > 0
    sums, sizes = np.bincount(group, weights=kept, minlength=ENTROPY_LEVELS), np.bincount(group, weights=occupied, minlength=ENTROPY_LEVELS)
    coarse = np.where(occupied, (sums / np.maximum(sizes, 1))[group], 0.0)
    if not coarse.any():
        return float("inf")
    p, q = clipped + 1e-9, coarse + 1e-9
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p * np.log(p / q)))  # Kullback-Leibler divergence


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the calibration images did to the graph. `histograms`: by value name. `images`: number of different ones.

    `sha256`: over the shape and pixels of every image.
    """

    histograms: Mapping[str, Histogram]
    images: int
    sha256: str
    _found: dict[str, Ranges] = field(default_factory=dict, init=False, repr=False, compare=False)

    def ranges(self, method: str) -> Ranges:
        """The range of every value."""
        if method not in self._found:
            self._found[method] = {name: histogram.range(method) for name, histogram in self.histograms.items()}
        return self._found[method]


def pixel_arrays(contract: Contract, examples: Sequence[Example], size_px: tuple[int, int] | None = None) -> Iterator[Arrays]:
    """The examples' pixels through the runtime's own image code, a few at a time, as the graph takes them. Raises ImageError.

    `size_px`: (height, width) instead of the contract's own.
    """
    sources = [example.source for example in examples]
    for _, pixels, _ in pixel_batches(sources, contract, size_px=size_px, prepared_at_once=CALIBRATION_BATCH):
        yield {contract.inputs[0].name: pixels}


def calibrate(
    model: onnx.ModelProto, values: Sequence[str], contract: Contract, examples: Sequence[Example], advance: Callable[[int], None] = lambda done: None
) -> Calibration:
    """Run the examples through the float graph and record `values`. Raises ImageError for unreadable images.

    `advance`: called with the number of images that are done.
    """
    session = session_with_outputs(model, list(values))
    histograms = {name: Histogram() for name in values}
    digest, different = hashlib.sha256(), set[bytes]()
    for arrays in pixel_arrays(contract, examples):
        pixels = arrays[contract.inputs[0].name]
        digest.update(shape_and_bytes(pixels))
        for name, value in zip(values, session.run(list(values), arrays), strict=True):
            histograms[name].add(value)
        different |= {hashlib.sha256(image.tobytes()).digest()[:8] for image in pixels}  # a copy teaches nothing
        advance(len(pixels))
    return Calibration(histograms=histograms, images=len(different), sha256=digest.hexdigest())


@dataclass(frozen=True, kw_only=True)
class Clipped:
    """The share of one value's activations, 0..1, that lie outside its range. `layer`: the node that makes it."""

    layer: str
    value: str
    share: float


def clipping(model: onnx.ModelProto, ranges: Ranges, contract: Contract, examples: Sequence[Example]) -> list[Clipped]:
    """What clips on images that were not calibrated with, worst first."""
    layers = {out: node.name for node in model.graph.node for out in node.output}
    names = list(ranges)
    session = session_with_outputs(model, names)
    outside, total = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for arrays in pixel_arrays(contract, examples):
        for name, value in zip(names, session.run(names, arrays), strict=True):
            low, high = ranges[name]
            outside[name] += int(np.count_nonzero((value < low) | (value > high)))
            total[name] += value.size
    shares = {name: outside[name] / max(1, total[name]) for name in names}
    return [Clipped(layer=layers.get(name, name), value=name, share=shares[name]) for name in sorted(names, key=lambda each: -shares[each])]
