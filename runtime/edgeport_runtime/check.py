"""Golden cases, re-run on the machine at hand: the bundle's proof that the numbers are still the same."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .comparison import Comparison, compare, not_compared
from .contract import Contract
from .engine import Arrays
from .errors import BundleError, DeviceError
from .golden_inputs import case_inputs, sampled
from .manifest import GoldenCase, Tolerance
from .protobuf import Array


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """One comparison for each output of each golden case in each execution mode of the engine. True if there is at least one and all passed."""

    precision: str
    against: str
    comparisons: tuple[Comparison, ...]

    def __bool__(self) -> bool:
        return bool(self.comparisons) and all(self.comparisons)

    def __str__(self) -> str:
        passed = sum(map(bool, self.comparisons))
        head = f"{self.precision}: {passed} of {len(self.comparisons)} golden outputs agree with {self.against}"
        return "\n".join([head, *(f"  FAILED {each}" for each in self.comparisons if not each)])


def check(bundle: Bundle, precision: str, modes: Mapping[str, Callable[[Arrays], Arrays]]) -> CheckReport:
    """Check every file of the bundle, run every golden case in each mode (see Engine.execution_modes), and compare. Raises AlteredError."""
    contract = bundle.manifest.contract
    if not bundle.manifest.golden:
        raise BundleError(f"{bundle.folder}: this bundle has no golden cases, so there is nothing to check")
    bundle.read_all()
    comparisons = []
    for case in bundle.manifest.golden:
        inputs = case_inputs(bundle, case)
        ways = modes if case.sizes is None else dict(list(modes.items())[:1])  # a case at the largest size runs once
        for mode, run in ways.items():
            outputs, fault = _answered(run, inputs)
            for name, expected, tolerance in _expected(bundle, case, contract, precision):
                where = f"{case.folder}/{name}{mode and f', {mode}'}"
                comparisons.append(not_compared(where, tolerance, fault) if fault else compare(where, sampled(outputs[name], case.every), expected, tolerance))
    return CheckReport(
        precision=precision, against="PyTorch's stored outputs" if precision == "fp32" else f"what {precision} gave on the host", comparisons=tuple(comparisons)
    )


def _answered(run: Callable[[Arrays], Arrays], inputs: Arrays) -> tuple[Arrays, str]:
    """The outputs, and why there are none: a graph that fails on a golden case is a finding, not an accident."""
    try:
        return run(inputs), ""
    except DeviceError as error:
        return {}, str(error)


def _expected(bundle: Bundle, case: GoldenCase, contract: Contract, precision: str) -> Iterator[tuple[str, Array, Tolerance]]:
    """fp32 is held to PyTorch, before rounding if the output is pixels; other precisions to what they gave on the host."""
    if precision not in case.tolerance:
        raise BundleError(f"{bundle.folder}: {case.folder} holds nothing to check {precision} against")
    files = case.outputs if precision == "fp32" else case.host[precision]
    for output, file, tolerance in zip(contract.outputs, files, case.tolerance[precision], strict=True):
        before_rounding = case.levels.get(output.name) if precision == "fp32" else None
        yield output.name, bundle.tensor(before_rounding or file), tolerance


def drift_tolerance(host: NDArray[Any], truth: NDArray[Any], floor: float) -> Tolerance:
    """What a lossy variant may differ by on another machine from what it gave on the host.

    Its own error bounds it, because a drift as large as the error would double what the user was promised. So the largest drift
    may reach the largest error, and the rms half of the rms error. Fused integer kernels differ by single quantization
    steps between machines (microsoft/onnxruntime#32132), which stays under both; saturating products do not.
    """
    error = np.abs(host.astype(np.float64) - truth.astype(np.float64))
    return Tolerance(max_abs=max(floor, float(error.max())), rms=max(floor, 0.5 * float(np.sqrt(np.mean(error**2)))))
