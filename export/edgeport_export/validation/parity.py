"""Parity: is the fp32 variant as close to the truth as PyTorch itself, at every size it promises?

Truth is the network in float64. PyTorch's own distance from it, over the whole sweep, is the floor; the variant may reach
FACTOR times that. So the tolerance is derived from the network, not guessed. A deep network with small outputs has a floor
a hundred times that of a shallow one, and a fixed number would be blind for one and unfair to the other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeport_export.network.reference import TorchReference
from edgeport_export.network.size_sweep import MEMORY_BUDGET_BYTES, Sizes, measured_cost, own_sizes, sweep_inputs, sweep_sizes
from edgeport_export.network.wrapper import compared_outputs
from edgeport_export.progress import ProgressCallback, no_progress
from edgeport_export.rewrites.names import LEVELS_SUFFIX, levels_name
from edgeport_export.tracing.shape_guards import ShapeGuard, sizes_to_try
from edgeport_export.tracing.valid_ranges import explained
from edgeport_runtime import Contract, SessionOptions
from edgeport_runtime.device import open_session
from edgeport_runtime.engine import Arrays
from edgeport_runtime.errors import first_line

# Times PyTorch's own distance. On ResNet18 one median-sized weight changed by 1 % gives 10 to 40 times the floor in most layers, but under
# twice in layer2: a change as small as that in such a place is not seen.
FACTOR = 4.0
_Row = tuple[Sizes, str | None, str, NDArray[Any], NDArray[Any], NDArray[Any] | str]  # sizes, note, output, float64, float32, the variant's
MOST_SHOWN = 3  # failures in a message
LEAST_SHARE = 0.1  # of the whole range: a point's own range counts from here up, or two logits that happen to be equal would make any noise infinite
ROUNDING = 1e-5  # of the range: a failure below is a longer sum, not another function; it fails all the same
LEAST_FLOOR = 2.0**-23  # one unit in the last place of float32 at the top of the range: a shallow network is luckier than it can promise


@dataclass(frozen=True, kw_only=True)
class Case:
    """One point of the sweep for one output: largest distances from float64, over the range of the output there.

    `note`: a peculiarity of the run; `fault`: why the outputs cannot be compared. None without.

    Over the range *there*, because it differs: mobilenet_v3_small's logits span 0.13 at 32x32 and 0.99 at 256x177. Measured by one range
    for all, a small image could hide an error, while a large one looked noisier than it is.
    """

    output: str
    sizes: Mapping[str, int]
    torch_error: float
    onnx_error: float
    note: str | None = None
    fault: str | None = None


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
        """The variant's distance over PyTorch's own, pooled over the sweep."""
        return case.onnx_error / max(self.floors[case.output], LEAST_FLOOR)

    def failures(self) -> list[Case]:
        return [case for case in self.cases if case.fault or not self.ratio(case) <= FACTOR]

    @property
    def worst(self) -> float:
        """The largest distance from float64 over the range, of all outputs and sizes."""
        return max((case.onnx_error for case in self.cases), default=math.inf)

    def axes_at_fault(self) -> list[str]:
        """Axes at whose other sizes the variant fails, while it holds at the first point of the sweep."""
        first, failed = self.cases[0], self.failures()
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
        return f"parity at {len(self.cases)} points: largest difference {self.worst:.1e} of the output's range (PyTorch itself: {noise:.1e})"

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
                {"output": c.output, "sizes": dict(c.sizes), "note": c.note, "fault": c.fault, "torch": c.torch_error, "onnx": c.onnx_error} for c in self.cases
            ],
        }


def full_sweep(reference: TorchReference, guards: Sequence[ShapeGuard] = ()) -> list[Sizes]:
    """The sizes to compare at: corners and inside of the ranges, and sizes at which a guard that tracing froze does not hold."""
    cost = measured_cost(reference.network, reference.contract)
    return [*sweep_sizes(reference.contract, cost), *sizes_to_try(guards, reference.contract, cost, MEMORY_BUDGET_BYTES)]


def remedy(parity: Parity, contract: Contract, guards: Sequence[ShapeGuard]) -> str:
    """What to do about a sweep that failed: the ranges in which the graph is right, or the axes to leave out."""
    failed = [dict(case.sizes) for case in parity.failures()]
    why = explained(guards, contract, failed, [dict(case.sizes) for case in parity.cases if dict(case.sizes) not in failed])
    if why:
        return f"{why}; "
    axes = parity.axes_at_fault()
    if parity.worst < ROUNDING:
        there = f", or leave {', '.join(axes)} out of the dynamic axes" if axes else ""
        return f"differences this small are rounding: onnxruntime computes in another order than PyTorch; add a long sum in parts{there}; "
    if own_sizes(contract) in failed:
        return "it is wrong at its own size already: look for order among equal values (topk, sort), or what the network keeps from one call to the next; "
    return f"it is right at its own size, but not at others of {', '.join(axes)}: leave these out of the dynamic axes; " if axes else ""


def with_levels(model: bytes, contract: Contract) -> bytes:
    """The same graph with the values before rounding as outputs, so that parity can compare them."""
    hidden = [levels_name(each.name) for each in contract.outputs if each.kind == "pixels"]
    if not hidden:
        return model
    proto = onnx.load_from_string(model)
    present = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in hidden if name not in present)
    return bytes(proto.SerializeToString())


def measure_parity(
    reference: TorchReference, model: bytes, *, sizes: Sequence[Sizes] | None = None, seed: int = 0, progress: ProgressCallback = no_progress
) -> Parity:
    """Run PyTorch in float32 and float64, and the fp32 variant as it ships (all optimizations), at `sizes`; None is the whole sweep.

    If a point has a batch, its last image is also run alone: it must give what it gave among the others.
    Raises NetworkFailure if PyTorch itself fails at one of the sizes.
    """
    contract = reference.contract
    names = compared_outputs(contract)
    session = open_session(with_levels(model, contract), SessionOptions())
    rows: list[_Row] = []
    points = full_sweep(reference) if sizes is None else sizes
    for index, point in enumerate(points):
        progress("parity with PyTorch", index, len(points))
        arrays = sweep_inputs(contract, point, seed + index)
        exact, single = reference.double.run(arrays), reference.run(arrays)
        rows += [(point, None, name, exact[name], single[name], got) for name, got in _run(session, names, arrays).items()]
        if point.get("batch", 1) > 1:
            last = {each.name: arrays[each.name][-1:] if each.shape[0] == "batch" else arrays[each.name] for each in contract.inputs}
            alone = _run(session, names, last)
            rows += [(point, "the last image alone", name, exact[name][-1:], single[name][-1:], alone[name]) for name in _rowwise(names, contract)]
    return _compared(names, rows)


def _rowwise(names: Sequence[str], contract: Contract) -> list[str]:
    """Compared values whose first axis is the batch: those that can be looked at one image at a time."""
    return [name for name, each in zip(names, contract.outputs, strict=True) if each.shape and each.shape[0] == "batch"]


def _run(session: Any, names: Sequence[str], arrays: Arrays) -> dict[str, NDArray[Any] | str]:
    """The outputs, or in words why there are none: a graph that fails at some size is a finding, not an accident."""
    try:
        return dict(zip(names, session.run(list(names), arrays), strict=True))
    except Exception as error:  # onnxruntime's exceptions derive from Exception directly
        return dict.fromkeys(names, f"onnxruntime failed: {first_line(error)}")


def _compared(names: Sequence[str], rows: Sequence[_Row]) -> Parity:
    rows = [(sizes, note, name, *map(_countable, (exact, rounded)), _countable(got)) for sizes, note, name, exact, rounded, got in rows]
    whole = {name: _range([exact for _, _, output, exact, _, _ in rows if output == name], name) for name in names}
    cases = []
    for sizes, note, name, exact, rounded, got in rows:
        extent = 255.0 if name.endswith(LEVELS_SUFFIX) else max(float(exact.max() - exact.min()), LEAST_SHARE * whole[name])
        fault = got if isinstance(got, str) else None if got.shape == exact.shape else f"the shape is {got.shape}, PyTorch's {exact.shape}"
        cases.append(
            Case(
                output=name,
                sizes=sizes,
                note=note,
                torch_error=_distance(rounded, exact) / extent,
                onnx_error=math.inf if isinstance(got, str) or fault else _distance(got, exact) / extent,
                fault=fault,
            )
        )
    floors = {name: _pooled([case.torch_error for case in cases if case.output == name]) for name in names}
    return Parity(cases=tuple(cases), floors=floors, ranges=whole)


def _countable(value: Any) -> Any:
    """Arrays of bool and of small integers as float64, in which differences neither fail nor wrap around."""
    return value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype.kind in "biu" else value


def _pooled(errors: Sequence[float]) -> float:
    return math.sqrt(sum(error**2 for error in errors) / max(1, len(errors)))


def _range(values: Sequence[NDArray[Any]], name: str) -> float:
    if name.endswith(LEVELS_SUFFIX):
        return 255.0
    return float(max(value.max() for value in values) - min(value.min() for value in values)) or 1.0


def _distance(got: NDArray[Any], exact: NDArray[Any]) -> float:
    distance = float(np.max(np.abs(got.astype(np.float64) - exact.astype(np.float64)), initial=0.0))
    return distance if math.isfinite(distance) else math.inf
