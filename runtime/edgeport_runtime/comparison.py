"""Comparing two arrays: one frozen, truthy result with its metrics, its worst place and the tolerance it was held to."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .manifest import Tolerance


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far `actual` is from `expected`. True if it is within the tolerance.

    NaN, infinities that are not in both, another shape or zero elements never pass.
    `worst`: index of the largest difference; `snr_db`: signal over difference, inf if equal. `fault`: why the arrays cannot be compared, if so.
    """

    name: str
    elements: int
    max_abs: float
    rms: float
    snr_db: float
    worst: tuple[int, ...]
    tolerance: Tolerance
    fault: str | None = None

    def __bool__(self) -> bool:
        within = self.max_abs <= self.tolerance.max_abs and (self.tolerance.rms is None or self.rms <= self.tolerance.rms)
        return self.fault is None and self.elements > 0 and within

    def __str__(self) -> str:
        if self.fault is not None:
            return f"{self.name}: {self.fault}"
        text = f"{self.name}: largest difference {self.max_abs:.3g} at {self.worst} ({self.tolerance.max_abs:.3g} allowed)"
        return text if self.tolerance.rms is None else f"{text}, rms {self.rms:.3g} ({self.tolerance.rms:.3g} allowed)"


def compare(name: str, actual: NDArray[Any], expected: NDArray[Any], tolerance: Tolerance) -> Comparison:
    """Compare two arrays of one shape elementwise in float64, whatever their dtypes."""
    fault = None
    if actual.shape != expected.shape:
        fault = f"expected shape {expected.shape}, got {actual.shape}"
    elif expected.size == 0:
        fault = "nothing was compared: the output has no elements"
    if fault is not None:
        return not_compared(name, tolerance, fault)
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf: equal infinities are no difference
        difference = np.where(a == b, 0.0, np.abs(a - b))
    bad = ~np.isfinite(difference)
    if bad.any():
        fault = f"{int(bad.sum())} of {bad.size} values are NaN or infinite on one side"
    worst = tuple(int(i) for i in np.unravel_index(int(np.argmax(np.where(bad, np.inf, difference))), difference.shape))
    rms = float(np.sqrt(np.mean(np.square(difference))))
    return Comparison(
        name=name, elements=difference.size, max_abs=float(difference[worst]), rms=rms, snr_db=_snr_db(b, rms), worst=worst, tolerance=tolerance, fault=fault
    )


def not_compared(name: str, tolerance: Tolerance, fault: str) -> Comparison:
    """What never passes: there is nothing to compare, for the reason in `fault`."""
    return Comparison(name=name, elements=0, max_abs=math.inf, rms=math.inf, snr_db=-math.inf, worst=(), tolerance=tolerance, fault=fault)


def _snr_db(expected: NDArray[np.float64], rms: float) -> float:
    if rms == 0:
        return math.inf
    signal = float(np.sqrt(np.mean(np.square(expected))))
    return 20 * math.log10(signal / rms) if signal > 0 and math.isfinite(rms) else -math.inf
