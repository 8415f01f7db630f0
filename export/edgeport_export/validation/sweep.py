"""Running the sweep: the network in float64 and in float32, and the variant, at every size and on stronger and weaker inputs."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeport_export.network.reference import TorchReference
from edgeport_export.network.size_sweep import MEMORY_BUDGET_BYTES, Sizes, measured_cost, scaled, sweep_inputs, sweep_sizes
from edgeport_export.network.wrapper import compared_outputs
from edgeport_export.progress import ProgressCallback, no_progress
from edgeport_export.rewrites.names import LEVELS_SUFFIX, levels_name
from edgeport_export.tracing.shape_guards import ShapeGuard, sizes_to_try
from edgeport_runtime import Contract, SessionOptions
from edgeport_runtime.device import open_session
from edgeport_runtime.engine import Arrays
from edgeport_runtime.errors import first_line

from .last_bits import Envelope, envelopes, last_bit_noise
from .parity import FACTOR, LEAST_FLOOR, PLAIN, Case, Parity

LEAST_SHARE = 0.1  # of the whole range: a point's own range counts from here up, or two logits that happen to be equal would make any noise infinite
FACTORS = (1 / 16, 16.0)  # weaker and stronger inputs, so that functions are compared in their tails, too
SUSPICIOUS = 8.0  # times the median of PyTorch's own distances: perhaps a jump, which says nothing of the noise elsewhere
SELECTING = {"NonZero", "Compress", "Unique"}  # how many values go on depends on the image: none of a black one, perhaps
ORDERING = {"TopK", "NonMaxSuppression"}  # among the equal values of a plain image any order is right
LARGEST_PLAIN = 0.01  # of the largest value: between numbers that a plain image makes degenerate, and another function
LARGEST_SUSPICIOUS_SHARE = 0.25  # of the runs: beyond it the graph is at fault, or the network is not made for float32

MOST_NOISE = 10.0  # times what is allowed: beyond it a distance is no noise
MOST_NOISY = 6  # inputs at which noise is measured: if more fail, these tell enough

# the runs (by index) whose answers are to be looked at -> for each, the envelope of each output
Envelopes = Callable[[Sequence[int]], Mapping[int, Mapping[str, Envelope]]]
Noises = Callable[[Sequence[int]], Sequence[Mapping[str, float]]]  # the runs -> for each the noise of each output


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One call: where, and with which inputs."""

    sizes: Sizes
    seed: int
    factor: float = 1.0

    def inputs(self, contract: Contract) -> Arrays:
        arrays = sweep_inputs(contract, self.sizes, self.seed)
        return arrays if self.factor == 1 else scaled(contract, arrays, self.factor)

    @property
    def note(self) -> str | None:
        return None if self.factor == 1 else f"inputs {self.factor:g} times as strong"


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One output of one run: the network's in float64 and float32, and the variant's, or in words why there is none.

    `run`: the index of the run. `image`: the image that ran alone, None for the whole batch.
    """

    run: int
    sizes: Sizes
    output: str
    exact: NDArray[Any]
    single: NDArray[Any]
    got: NDArray[Any] | str
    factor: float = 1.0
    note: str | None = None
    image: int | None = None

    def errors(self, extent: float) -> tuple[float, float, str | None]:
        """PyTorch's largest distance from float64 and the variant's, over `extent`, and what cannot be compared."""
        exact, single = _countable(self.exact), _countable(self.single)
        fault = self.got if isinstance(self.got, str) else None if self.got.shape == exact.shape else f"the shape is {self.got.shape}, PyTorch's {exact.shape}"
        onnx_error = math.inf if fault or isinstance(self.got, str) else _largest(_distances(self.got, exact)) / extent
        return _largest(_distances(single, exact)) / extent, onnx_error, fault

    def steady_errors(self, extent: float, envelope: Envelope, limit: float) -> tuple[float, float, int]:
        """The same without the values whose envelope is wider than `limit` (over `extent`): those must lie inside it. Their number is the third."""
        low, high = (side if self.image is None else side[self.image][None] for side in (envelope.low, envelope.high))
        unsteady = (high - low) / extent > limit
        exact = _countable(self.exact)
        apart = np.where(unsteady, Envelope(low=low, high=high).beyond(_countable(self.got)), _distances(self.got, exact))
        return _largest(np.where(unsteady, 0.0, _distances(self.single, exact))) / extent, _largest(apart) / extent, int(unsteady.sum())


def full_sweep(reference: TorchReference, guards: Sequence[ShapeGuard] = ()) -> list[Sizes]:
    """The sizes to compare at: corners and inside of the ranges, and sizes at which a guard that tracing froze does not hold."""
    cost = measured_cost(reference.network, reference.contract)
    return [*sweep_sizes(reference.contract, cost), *sizes_to_try(guards, reference.contract, cost, MEMORY_BUDGET_BYTES)]


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

    If a point has a batch, its last image is also run alone: it must give what it gave among the others. At the second size, which is a batch at
    the contract's own, inputs are also scaled by FACTORS. A network that selects values is also run on plain black and white.
    Raises NetworkFailure if PyTorch itself fails at one of the sizes.
    """
    contract = reference.contract
    names = compared_outputs(contract)
    session = open_session(with_levels(model, contract), SessionOptions())
    points = full_sweep(reference) if sizes is None else sizes
    runs = [_Run(sizes=point, seed=seed + index) for index, point in enumerate(points)]
    runs += [_Run(sizes=point, seed=seed + len(points), factor=factor) for point in points[:2][-1:] for factor in FACTORS]
    rows: list[Row] = []
    for index, run in enumerate(runs):
        progress("parity with PyTorch", index, len(runs))
        rows += _rows(index, run, reference, session, names)
    if contract.inputs[0].pixels is not None and _selects(model):
        rows += _plain_rows(len(runs), runs[0], reference, session, names)

    def looked_at(indices: Sequence[int]) -> dict[int, dict[str, Envelope]]:
        return dict(zip(indices, envelopes(reference, [runs[index].inputs(contract) for index in indices]), strict=True))

    def noise_at(indices: Sequence[int]) -> list[dict[str, float]]:
        return last_bit_noise(reference, [runs[index].inputs(contract) for index in indices])

    return compared(names, rows, looked_at, noise_at)


def _rows(index: int, run: _Run, reference: TorchReference, session: Any, names: Sequence[str]) -> list[Row]:
    """Every output of one run, and of its last image alone. None if float32 overflows on scaled inputs: PyTorch has no answer to compare with."""
    contract = reference.contract
    arrays = run.inputs(contract)
    exact, single = reference.double.run(arrays), reference.run(arrays)
    if run.factor != 1 and not all(np.isfinite(single[name]).all() for name in names):
        return []
    got = _answers(session, names, arrays)
    where: dict[str, Any] = {"run": index, "sizes": run.sizes, "factor": run.factor}
    rows = [Row(**where, note=run.note, output=name, exact=exact[name], single=single[name], got=got[name]) for name in names]
    if run.sizes.get("batch", 1) > 1 and run.factor == 1:
        last = {each.name: arrays[each.name][-1:] if each.shape[0] == "batch" else arrays[each.name] for each in contract.inputs}
        alone = _answers(session, names, last)
        where |= {"note": "the last image alone", "image": -1}
        rows += [Row(**where, output=name, exact=exact[name][-1:], single=single[name][-1:], got=alone[name]) for name in _rowwise(names, contract)]
    return rows


def _selects(model: bytes) -> bool:
    """Whether how many values the graph goes on with depends on the image, and nothing is put into order."""
    kinds = {node.op_type for node in onnx.load_from_string(model).graph.node}
    return bool(kinds & SELECTING) and not kinds & ORDERING


def _plain_rows(index: int, run: _Run, reference: TorchReference, session: Any, names: Sequence[str]) -> list[Row]:
    """What is wrong on black and white images, of which a network may select nothing: PyTorch's mean of nothing is NaN, another engine's may be 0."""
    rows = []
    for level, color in ((0, "black"), (255, "white")):
        arrays = {name: np.full_like(array, level) if array.dtype == np.uint8 else array for name, array in run.inputs(reference.contract).items()}
        single, got = reference.run(arrays), _answers(session, names, arrays)
        for name in names:
            fault = _plain_fault(single[name], got[name])
            if fault:
                where: dict[str, Any] = {"run": index, "sizes": run.sizes, "factor": PLAIN, "note": f"a {color} image"}
                rows.append(Row(**where, output=name, exact=np.nan_to_num(single[name]), single=np.nan_to_num(single[name]), got=fault))
    return rows


def _plain_fault(single: NDArray[Any], got: NDArray[Any] | str) -> str | None:
    if isinstance(got, str) or got.shape != single.shape:
        return got if isinstance(got, str) else f"the shape is {got.shape}, PyTorch's {single.shape}"
    expected, found = _countable(single), _countable(got)
    if not np.array_equal(np.isnan(expected), np.isnan(found)):
        return f"{'NaN' if np.isnan(found).any() else 'a number'} where PyTorch gives {'NaN' if np.isnan(expected).any() else 'a number'}"
    largest = float(np.nan_to_num(np.abs(expected)).max(initial=0.0)) or 1.0
    apart = float(np.nan_to_num(np.abs(found.astype(np.float64) - expected.astype(np.float64))).max(initial=0.0)) / largest
    return f"{apart:.1e} of the largest value apart from PyTorch" if apart > LARGEST_PLAIN else None


def _rowwise(names: Sequence[str], contract: Contract) -> list[str]:
    """Compared values whose first axis is the batch: those that can be looked at one image at a time."""
    return [name for name, each in zip(names, contract.outputs, strict=True) if each.shape and each.shape[0] == "batch"]


def _answers(session: Any, names: Sequence[str], arrays: Arrays) -> dict[str, NDArray[Any] | str]:
    """The outputs, or in words why there are none: a graph that fails at some size is a finding, not an accident."""
    try:
        return dict(zip(names, session.run(list(names), arrays), strict=True))
    except Exception as error:  # onnxruntime's exceptions derive from Exception directly
        return dict.fromkeys(names, f"onnxruntime failed: {first_line(error)}")


def compared(names: Sequence[str], rows: Sequence[Row], looked_at: Envelopes | None = None, noise_at: Noises | None = None) -> Parity:
    """The findings of a sweep. `looked_at`: gives the envelopes of runs that are suspicious; None to take every distance as it is.
    `noise_at`: gives the noise of runs that would fail, see `last_bit_noise`; None to let them fail.
    """
    ranges = {name: _range([_countable(row.exact) for row in rows if row.output == name and row.factor == 1], name) for name in names}
    extents = [_extent(row, ranges[row.output]) for row in rows]
    cases = [_case(row, *row.errors(extent)) for row, extent in zip(rows, extents, strict=True)]
    floors = _floors(names, cases)
    suspects = [index for index, case in enumerate(cases) if _is_suspicious(case, cases, floors)]
    runs = sorted({rows[index].run for index in suspects})
    if looked_at is not None and runs and len(runs) <= max(1, LARGEST_SUSPICIOUS_SHARE * len({row.run for row in rows})):
        found = looked_at(runs)
        calm = _floors(names, [case for index, case in enumerate(cases) if index not in suspects])
        for index in suspects:
            row, extent = rows[index], extents[index]
            torch_error, onnx_error, unsteady = row.steady_errors(extent, found[row.run][row.output], FACTOR * max(calm[row.output], LEAST_FLOOR))
            cases[index] = _case(row, torch_error, onnx_error, None, unsteady)
        floors = _floors(names, cases)
    if noise_at is not None:
        cases = _with_noise(Parity(cases=tuple(cases), floors=floors, ranges=ranges), rows, extents, noise_at)
    return Parity(cases=tuple(cases), floors=floors, ranges=ranges)


def _with_noise(parity: Parity, rows: Sequence[Row], extents: Sequence[float], noise_at: Noises) -> list[Case]:
    """The cases, those that would fail with the noise at their own input; the furthest over are no noise, and are left."""
    cases = list(parity.cases)
    over = [index for index, case in enumerate(cases) if case.fault is None and FACTOR < parity.ratio(case) <= MOST_NOISE * FACTOR]
    runs = sorted({rows[index].run for index in sorted(over, key=lambda index: -parity.ratio(cases[index]))[:MOST_NOISY]})
    found = dict(zip(runs, noise_at(runs), strict=True)) if runs else {}
    for index in over:
        if rows[index].run in found:
            cases[index] = replace(cases[index], noise=found[rows[index].run][rows[index].output] / extents[index])
    return cases


def _case(row: Row, torch_error: float, onnx_error: float, fault: str | None, unsteady: int = 0) -> Case:
    where: dict[str, Any] = {"output": row.output, "sizes": row.sizes, "note": row.note, "factor": row.factor}
    return Case(**where, torch_error=torch_error, onnx_error=onnx_error, fault=fault, unsteady=unsteady)


def _is_suspicious(case: Case, cases: Sequence[Case], floors: Mapping[str, float]) -> bool:
    """Whether the distances of PyTorch or the variant stand out; never if there is nothing to compare."""
    if case.fault is not None:
        return False
    median = statistics.median(each.torch_error for each in cases if each.output == case.output)
    return case.torch_error > SUSPICIOUS * max(median, LEAST_FLOOR) or not case.onnx_error <= FACTOR * max(floors[case.output], LEAST_FLOOR)


def _floors(names: Sequence[str], cases: Sequence[Case]) -> dict[str, float]:
    """For each output the root mean square of PyTorch's distances."""
    errors = {name: [case.torch_error for case in cases if case.output == name] for name in names}
    return {name: math.sqrt(sum(error**2 for error in found) / max(1, len(found))) for name, found in errors.items()}


def _extent(row: Row, whole: float) -> float:
    """What an error of the row is divided by: the range of the output there, or its largest size if that is more.

    Values may lie close together and far from zero, as the means of one image do. Float32 cannot tell these apart more finely than their size allows.
    """
    if row.output.endswith(LEVELS_SUFFIX):
        return 255.0
    exact = _countable(row.exact)
    size = float(np.abs(exact[np.isfinite(exact)]).max(initial=0.0))
    return max(float(exact.max() - exact.min()), LEAST_SHARE * whole, size) or 1.0


def _range(values: Sequence[NDArray[Any]], name: str) -> float:
    if name.endswith(LEVELS_SUFFIX):
        return 255.0
    return float(max(value.max() for value in values) - min(value.min() for value in values)) or 1.0


def _countable(value: Any) -> Any:
    """Arrays of bool and of small integers as float64, in which differences neither fail nor wrap around."""
    return value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype.kind in "biu" else value


def _distances(got: Any, exact: NDArray[Any]) -> NDArray[np.float64]:
    apart: NDArray[np.float64] = np.abs(got.astype(np.float64) - exact.astype(np.float64))
    return np.nan_to_num(apart, nan=np.inf, posinf=np.inf)


def _largest(distances: NDArray[np.float64]) -> float:
    return float(np.max(distances, initial=0.0))
