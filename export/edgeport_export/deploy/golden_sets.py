"""Golden cases of a bundle as arrays, for engines that fix their sizes or run elsewhere: what goes in, what has to come out, and how near."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeport_runtime import Bundle, load
from edgeport_runtime.comparison import Comparison, compare
from edgeport_runtime.contract import Contract
from edgeport_runtime.engine import Arrays, has_rows
from edgeport_runtime.golden_inputs import case_inputs, formula_inputs
from edgeport_runtime.manifest import Tolerance

PYTORCH = "PyTorch's stored outputs"
BATCH = "batch"


@dataclass(frozen=True, kw_only=True)
class GoldenSet:
    """`expected`: of `against`, by the outputs' names; for pixels of fp32 the values before rounding, which `rounded` holds as they come out. `tolerance`: in
    the outputs' order."""

    name: str
    inputs: Arrays
    expected: Arrays
    tolerance: tuple[Tolerance, ...]
    against: str
    rounded: Arrays = field(default_factory=dict)

    def compared(self, outputs: Mapping[str, NDArray[Any]]) -> list[Comparison]:
        """An engine's outputs with those that are expected."""
        pairs = zip(self.expected.items(), self.tolerance, strict=True)
        return [compare(f"{self.name}/{name}", np.asarray(outputs[name]), expected, tolerance) for (name, expected), tolerance in pairs]


def stored_sets(bundle: Bundle, precision: str) -> list[GoldenSet]:
    """The cases whose inputs and outputs the bundle holds in full."""
    contract = bundle.manifest.contract
    found = []
    for case in bundle.manifest.golden:
        if case.sizes is None and case.every == 1 and precision in case.tolerance:
            against = PYTORCH if precision == "fp32" else f"what {precision} gave on the host"
            files = case.outputs if precision == "fp32" else case.host[precision]
            outputs = {each.name: bundle.tensor(file) for each, file in zip(contract.outputs, files, strict=True)}
            levels = {name: bundle.tensor(file) for name, file in case.levels.items()} if precision == "fp32" else {}
            named: dict[str, Any] = {"name": case.folder, "tolerance": tuple(case.tolerance[precision]), "against": against}
            rounded = {name: outputs[name] for name in levels}
            found.append(GoldenSet(inputs=case_inputs(bundle, case), expected=outputs | levels, rounded=rounded, **named))
    return found


def sets_at(bundle: Bundle, precision: str, sizes: Mapping[str, int]) -> list[GoldenSet]:
    """Cases with exactly these sizes: those of the bundle, cut into batches if they are larger ones; or if it has none, one made by the formula, for which
    the bundle's own variant answers."""
    contract = bundle.manifest.contract
    found = [part for each in stored_sets(bundle, precision) for part in _parts(each, contract, sizes)]
    if found:
        return found
    inputs = formula_inputs(contract, sizes)
    with load(bundle.folder, precision=precision) as model:
        answers = model.raw(**inputs)
    stored = stored_sets(bundle, precision)
    tolerance = stored[0].tolerance if stored else tuple(Tolerance(max_abs=0.0) for _ in contract.outputs)
    return [
        GoldenSet(
            name="made_0",
            inputs=inputs,
            expected=dict(answers),
            tolerance=tolerance,
            against=f"the bundle's own {precision}, since it holds no case of this size",
        )
    ]


def sizes_of(contract: Contract, inputs: Mapping[str, Any]) -> dict[str, int]:
    """Of the dynamic axes."""
    pairs = [(axis, size) for each in contract.inputs for axis, size in zip(each.shape, inputs[each.name].shape, strict=True)]
    return {axis: size for axis, size in pairs if isinstance(axis, str)}


def _parts(given: GoldenSet, contract: Contract, sizes: Mapping[str, int]) -> Iterator[GoldenSet]:
    """The case if it has these sizes; one with a larger batch gives several."""
    own = sizes_of(contract, given.inputs)
    if any(own[axis] != sizes[axis] for axis in own if axis != BATCH):
        return
    if own.get(BATCH) == sizes.get(BATCH):
        yield given
        return
    if not has_rows(contract):
        return
    for start in range(0, own[BATCH] - sizes[BATCH] + 1, sizes[BATCH]):
        part = slice(start, start + sizes[BATCH])
        yield GoldenSet(
            name=f"{given.name}_{start}",
            inputs={name: values[part] for name, values in given.inputs.items()},
            expected={name: values[part] for name, values in given.expected.items()},
            rounded={name: values[part] for name, values in given.rounded.items()},
            tolerance=given.tolerance,
            against=given.against,
        )
