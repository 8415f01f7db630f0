"""Parity: is the fp32 variant as close to the truth as PyTorch itself, at every size it promises?

Truth is the network in float64. PyTorch's own distance from it, over the whole sweep, is the floor; the variant may reach
FACTOR times that. So the tolerance is derived from the network, not guessed. A deep network with small outputs has a floor
a hundred times that of a shallow one, and a fixed number would be blind for one and unfair to the other.

PyTorch may be lucky, though, and single inputs may be much noisier than the sweep. So where the variant would fail, noise is measured there a second
time: how far the float64 network moves if its weights change by their last bit. The larger of the two is the floor of that input.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeport_export.network.size_sweep import own_sizes
from edgeport_export.tracing.shape_guards import ShapeGuard
from edgeport_export.tracing.valid_ranges import explained
from edgeport_runtime import Contract

# Times PyTorch's own distance. On ResNet18 one median-sized weight changed by 1 % gives 10 to 40 times the floor in most layers, but under
# twice in layer2: a change as small as that in such a place is not seen.
FACTOR = 4.0
PLAIN = 0.0  # the factor of an image of one color
MOST_SHOWN = 3  # failures in a message
ROUNDING = 1e-5  # of the range: a failure below is a longer sum, not another function; it fails all the same
LEAST_FLOOR = 2.0**-23  # one unit in the last place of float32: a shallow network is luckier than it can promise


@dataclass(frozen=True, kw_only=True)
class Case:
    """One point of the sweep for one output: largest distances from float64, over the range of the output there, or over its largest size if that is more.

    `note`: a peculiarity of the run; `fault`: why the outputs cannot be compared. None without. `factor`: how much stronger its inputs are
    than those of the sweep, PLAIN for an image of one color. `unsteady`: number of values that the last bits of the weights decide (`last_bits`).
    The variant's distance of these is how far they lie outside of what the network gives with its last bits changed; PyTorch's distance is that of
    the others. `noise`: how far the float64 network itself moves there if its weights change by their last bit, measured where the variant would fail.

    Over the range *there*, because it differs: mobilenet_v3_small's logits span 0.13 at 32x32 and 0.99 at 256x177. Measured by one range
    for all, a small image could hide an error, while a large one looked noisier than it is.
    """

    output: str
    sizes: Mapping[str, int]
    torch_error: float
    onnx_error: float
    note: str | None = None
    fault: str | None = None
    factor: float = 1.0
    unsteady: int = 0
    noise: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The sweep of one variant. True if at least one case was compared and every one is within FACTOR of the floor.

    `floors`: for each output the root mean square of PyTorch's distances. `ranges`: largest minus smallest value of the output.
    """

    cases: tuple[Case, ...]
    floors: Mapping[str, float]
    ranges: Mapping[str, float]

    def allowed(self, output: str) -> float:
        """The largest distance over the range that the output may have."""
        return FACTOR * max(self.floors[output], LEAST_FLOOR)

    def ratio(self, case: Case) -> float:
        """The variant's distance over PyTorch's own, pooled over the sweep, or over the noise at this input if that is more."""
        return case.onnx_error / max(self.floors[case.output], case.noise, LEAST_FLOOR)

    def failures(self) -> list[Case]:
        return [case for case in self.cases if case.fault or not self.ratio(case) <= FACTOR]

    @property
    def worst(self) -> float:
        """The largest distance from float64 over the range, of all outputs and sizes."""
        return max((case.onnx_error for case in self.cases), default=math.inf)

    def axes_at_fault(self) -> list[str]:
        """Axes at whose other sizes the variant fails, while it holds at the first point of the sweep."""
        first, failed = self.cases[0], [case for case in self.failures() if case.factor == 1]
        if first in failed:
            return []
        return [axis for axis in first.sizes if any(case.sizes[axis] != first.sizes[axis] for case in failed)]

    def __bool__(self) -> bool:
        return bool(self.cases) and not self.failures()

    def __str__(self) -> str:
        """The worst in a few lines: one failure of onnxruntime is told once, not once for each size."""
        lines = [f"  FAILED {line}" for line in self._lines()]
        more = [f"  and {len(lines) - MOST_SHOWN} more"] if len(lines) > MOST_SHOWN else []
        return "\n".join([self._head(), *lines[:MOST_SHOWN], *more])

    def full_text(self) -> str:
        """Every failure, for a log."""
        return "\n".join([self._head(), *(f"  FAILED {self._line(case)}" for case in self.failures())])

    def _head(self) -> str:
        noise = max(self.floors.values())
        unsteady = sum(case.unsteady for case in self.cases if self.ratio(case) <= FACTOR)
        told = f"; {unsteady} values lie where a rounding, threshold or order is decided by the last bits of the weights" if unsteady else ""
        return f"parity at {len(self.cases)} points: largest difference {self.worst:.1e} of the output's range (PyTorch itself: {noise:.1e}){told}"

    def _lines(self) -> list[str]:
        shown = self._shown()
        faults: dict[str, list[Case]] = {}
        for case in shown:
            if case.fault is not None:
                faults.setdefault(case.fault, []).append(case)
        others = sorted((case for case in shown if case.fault is None), key=self.ratio, reverse=True)
        return [*(self._line(cases[0], len(cases) - 1) for cases in faults.values()), *map(self._line, others)]

    def _shown(self) -> list[Case]:
        """The failures, without an image alone if its whole batch failed."""
        failed = self.failures()
        whole = [(case.output, dict(case.sizes)) for case in failed if not case.note]
        return [case for case in failed if not case.note or (case.output, dict(case.sizes)) not in whole]

    def _line(self, case: Case, others: int = 0) -> str:
        where = f"{case.output} at {dict(case.sizes)}" + (f", {case.note}" if case.note else "") + (f", and at {others} more points" if others else "")
        return f"{where}: {case.fault or f'{case.onnx_error:.1e}, {self.ratio(case):.3g} times the noise of PyTorch itself, {FACTOR:g} allowed'}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "passed": bool(self),
            "worst": self.worst,
            "factor": FACTOR,
            "floors": dict(self.floors),
            "ranges": dict(self.ranges),
            "cases": [
                {
                    **{"output": case.output, "sizes": dict(case.sizes), "note": case.note, "fault": case.fault, "factor": case.factor},
                    **{"unsteady": case.unsteady, "noise": case.noise, "torch": case.torch_error, "onnx": case.onnx_error},
                }
                for case in self.cases
            ],
        }


def remedy(parity: Parity, contract: Contract, guards: Sequence[ShapeGuard]) -> str:
    """What to do about a sweep that failed: the ranges in which the graph is right, or the axes to leave out."""
    failed = [dict(case.sizes) for case in parity.failures()]
    why = explained(guards, contract, failed, [dict(case.sizes) for case in parity.cases if dict(case.sizes) not in failed])
    if why:
        return f"{why}; "
    if all(case.factor == PLAIN for case in parity.failures()):
        return "it is right where the network finds something to select: let it give a number of its own where it finds nothing; "
    if all(case.factor != 1 for case in parity.failures()):
        return "it is right for ordinary inputs, but not for far stronger or weaker ones: look for a function that loses its digits in a tail; "
    axes = parity.axes_at_fault()
    if parity.worst < ROUNDING:
        there = f", or leave {', '.join(axes)} out of the dynamic axes" if axes else ""
        return f"differences this small are rounding: onnxruntime computes in another order than PyTorch; add a long sum in parts{there}; "
    if own_sizes(contract) in failed:
        return "it is wrong at its own size already: look for order among equal values (topk, sort), or what the network keeps from one call to the next; "
    return f"it is right at its own size, but not at others of {', '.join(axes)}: leave these out of the dynamic axes; " if axes else ""
