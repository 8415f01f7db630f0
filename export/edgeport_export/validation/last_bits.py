"""What the last bits of the weights decide: rounding, thresholds and order among nearly equal values.

A network that rounds, sorts or compares jumps where a value lies on the edge. On which side it falls there is decided by the last bit of float32,
in PyTorch as in any other engine. So a difference proves nothing if the float64 network itself gives both answers,
once with its weights and once with weights that differ in their last bits. An answer is sound if it is the exact one for some weights nearby:
Wilkinson's backward error (Rounding Errors in Algebraic Processes, 1963).
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeport_export.errors import NetworkFailure
from edgeport_export.network.reference import TorchReference
from edgeport_runtime.engine import Arrays

DRAWS = 8  # networks nearby
NOISE_DRAWS = 4
LAST_BIT = 2.0**-23  # of float32, relative
RELATIVE_CHANGE = 2.0**-21  # at most, of each weight and input: 4 units in the last place of float32


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """The smallest and the largest answer of the networks nearby, for each value of an output. float64, of the output's shape."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def beyond(self, got: NDArray[Any]) -> NDArray[np.float64]:
        """How far each value lies outside; 0 inside, infinity for NaN."""
        values = got.astype(np.float64)
        outside: NDArray[np.float64] = np.maximum(np.maximum(self.low - values, values - self.high), 0.0)
        return np.nan_to_num(outside, nan=np.inf, posinf=np.inf)


def envelopes(reference: TorchReference, runs: Sequence[Arrays], seed: int = 0) -> list[dict[str, Envelope]]:
    """For each of `runs` (inputs by name), the envelope of each output: the float64 network, and DRAWS more that are nearby."""
    answers = [[reference.double.run(arrays)] for arrays in runs]
    for draw in range(DRAWS):
        generator = torch.Generator().manual_seed(seed + draw)
        nearby = _Nearby(reference, generator)
        for arrays, found in zip(runs, answers, strict=True):
            with suppress(NetworkFailure):  # a network may check its own values
                found.append(nearby.run(arrays))
    return [{name: _envelope([each[name] for each in found]) for name in found[0]} for found in answers]


def last_bit_noise(reference: TorchReference, runs: Sequence[Arrays], seed: int = 100) -> list[dict[str, float]]:
    """For each of `runs`, by output: how far the float64 network moves if its weights and inputs change by up to LAST_BIT of themselves. That is the largest
    distance of each draw, root mean square over NOISE_DRAWS. Over 45 networks that is 0.12 to 1.2 times PyTorch's own distance (docs/noise.md).
    """
    exact = [reference.double.run(arrays) for arrays in runs]
    squares: list[dict[str, float]] = [dict.fromkeys(found, 0.0) for found in exact]
    for draw in range(NOISE_DRAWS):
        nearby = _Nearby(reference, torch.Generator().manual_seed(seed + draw), LAST_BIT)
        for arrays, truth, found in zip(runs, exact, squares, strict=True):
            with suppress(NetworkFailure):
                moved = nearby.run(arrays)
                for name, value in truth.items():
                    if moved[name].shape == value.shape:
                        found[name] += float(np.square(np.nan_to_num(np.abs(moved[name].astype(np.float64) - value))).max(initial=0.0)) / NOISE_DRAWS
    return [{name: float(np.sqrt(square)) for name, square in found.items()} for found in squares]


def _envelope(answers: Sequence[NDArray[Any]]) -> Envelope:
    """Of those with the first one's shape: a network may give as many rows as it finds."""
    alike = np.stack([each.astype(np.float64) for each in answers if each.shape == answers[0].shape])
    return Envelope(low=alike.min(axis=0), high=alike.max(axis=0))


class _Nearby(TorchReference):
    """The network in float64 with weights and inputs that differ in their last bits, by up to `change` of themselves."""

    def __init__(self, reference: TorchReference, generator: torch.Generator, change: float = RELATIVE_CHANGE) -> None:
        super().__init__(reference.unrun, reference.contract, torch.float64)
        self._generator, self._change = generator, change
        with torch.no_grad():
            for value in (*self.network.parameters(), *self.network.buffers()):
                if value.is_floating_point() and not torch.equal(value, value.round()):  # whole numbers may be positions or counts
                    value.copy_(self._nudged(value))

    def _input(self, value: Tensor, index: int) -> Tensor:
        made = super()._input(value, index)
        return self._nudged(made) if made.is_floating_point() else made

    def _nudged(self, value: Tensor) -> Tensor:
        return value * (1 + self._change * (2 * torch.rand(value.shape, generator=self._generator, dtype=torch.float64) - 1))
