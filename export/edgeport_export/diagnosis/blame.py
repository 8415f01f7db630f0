"""The first module whose output leaves its tolerance: an fp32 graph held to PyTorch at every value that can be matched, not at its end alone.

Each value gets a tolerance as the outputs do: 4 times PyTorch's own distance from float64 there. An error travels on, so that much of what comes after a fault
is off, too. The module to blame is one over its tolerance that has none before it.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeport_export.network.reference import TorchReference
from edgeport_export.network.size_sweep import MEMORY_BUDGET_BYTES, measured_cost, sweep_inputs, sweep_sizes
from edgeport_export.network.wrapper import compared_outputs
from edgeport_export.progress import ProgressCallback, no_progress
from edgeport_export.quantization.macs import session_with_outputs, value_shapes
from edgeport_export.rewrites.graph import GraphEditor
from edgeport_export.validation.parity import FACTOR, LEAST_FLOOR
from edgeport_runtime import Contract
from edgeport_runtime.engine import Arrays

from .module_values import Key, Match, matches, module_calls, module_outputs

RUNS = 3  # inputs whose distances are pooled
SEED = 30_000
VALUES_KEPT = 3  # of each module: PyTorch's in float64 and float32, and the graph's
SHOWN = 12  # rows of the error along the graph, in a message


@dataclass(frozen=True, kw_only=True)
class Step:
    """One matched value. `modules`: path and class of the module, after those that it is folded into. `error`: largest distance from float64 over the value's
    range, root mean square over the inputs; `noise`: PyTorch's own. `is_over`: whether `error` is above FACTOR times the noise.

    `is_first`: whether it is over and nothing matched before it is.
    """

    value: str
    node: str
    modules: tuple[str, ...]
    error: float
    noise: float
    is_over: bool
    is_first: bool

    @property
    def ratio(self) -> float:
        """Of the error over the noise."""
        return self.error / max(self.noise, LEAST_FLOOR)

    def __str__(self) -> str:
        return f"{' + '.join(self.modules)}: {self.error:.1e} of its range, {self.ratio:.3g} times the noise of PyTorch itself"


@dataclass(frozen=True, kw_only=True)
class Blame:
    """The error along the graph. `unmatched`: modules whose output is no value of the graph, or has another shape there. `outputs_over`: outputs over
    their tolerance while the values were looked at. True if nothing is over."""

    steps: tuple[Step, ...]
    unmatched: tuple[str, ...]
    outputs_over: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.steps) and not self.outputs_over and not any(step.is_over for step in self.steps)

    @property
    def first(self) -> Step | None:
        """The step to blame: of those that are first, the furthest over."""
        return max((step for step in self.steps if step.is_first), key=lambda step: step.ratio, default=None)

    def __str__(self) -> str:
        return "\n".join([self._sentence(), *self._along(), *self._not_matched()])

    def _sentence(self) -> str:
        if self.first is not None:
            place = self.steps.index(self.first)
            before = self.steps[place - 1].modules[-1] if place else "the pixels"
            return f"the first to differ is {self.first}; {before} before it still agrees ({FACTOR:g} times are allowed)"
        if self.outputs_over:
            return f"every matched module agrees, and {', '.join(self.outputs_over)} does not: the difference comes after {self.steps[-1].modules[-1]}"
        return f"all {len(self.steps)} matched modules agree within {FACTOR:g} times the noise of PyTorch itself"

    def _along(self) -> list[str]:
        """The rows around the first one; if none differs, a few evenly taken."""
        if self.first is None:
            rows = [self.steps[index] for index in np.linspace(0, len(self.steps) - 1, min(SHOWN // 2, len(self.steps))).round().astype(int)]
        else:
            start = max(0, min(self.steps.index(self.first) - 3, len(self.steps) - SHOWN))
            rows = list(self.steps[start : start + SHOWN])
        marked = [("  -> " if step.is_first else "   > " if step.is_over else "     ") + str(step) for step in rows]
        left = len(self.steps) - len(rows)
        return [*marked, *([f"     and {left} more"] if left else [])]

    def _not_matched(self) -> list[str]:
        if not self.unmatched:
            return []
        shown = ", ".join(self.unmatched[:SHOWN]) + (f" and {len(self.unmatched) - SHOWN} more" if len(self.unmatched) > SHOWN else "")
        return [f"not matched with a value of the graph: {shown}"]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: every step."""
        first = None if self.first is None else asdict(self.first)
        return {"passed": bool(self), "first": first, "steps": [asdict(step) for step in self.steps], "unmatched": list(self.unmatched)}


def blame(model: onnx.ModelProto, reference: TorchReference, inputs: Sequence[Arrays] | None = None, progress: ProgressCallback = no_progress) -> Blame:
    """`model`: an fp32 graph that edgeport made, whose nodes are named by modules. `inputs`: by the names of the contract; random ones if left out.

    Values are looked at in groups that fit MEMORY_BUDGET_BYTES. Raises NetworkFailure.
    """
    contract = reference.contract
    runs = list(inputs) if inputs is not None else blame_inputs(reference)
    found, unmatched = matches(model, module_calls(reference, runs[0]))
    distances: dict[Key, list[tuple[float, float]]] = {}
    values: dict[Key, str] = {}
    groups = _groups(found, runs[0], model)
    for number, group in enumerate(groups):
        progress("comparing every module", number, len(groups))
        for arrays in runs:
            for match, value, pair in _distances(model, reference, group, arrays):
                distances.setdefault(match.key, []).append(pair)
                values[match.key] = value
    pooled = {key: tuple(float(np.sqrt(np.mean(np.square(side)))) for side in zip(*pairs, strict=True)) for key, pairs in distances.items()}
    over = {key for key, (error, noise) in pooled.items() if not error <= FACTOR * max(noise, LEAST_FLOOR)}
    first = _without_ancestors(model, {values[key] for key in over})
    steps = tuple(
        Step(
            value=values[match.key],
            node=match.node,
            modules=match.modules,
            error=pooled[match.key][0],
            noise=pooled[match.key][1],
            is_over=match.key in over,
            is_first=values[match.key] in first,
        )
        for match in found
        if match.key in pooled
    )
    other = [match.modules[-1] for match in found if match.key not in pooled]
    return Blame(steps=steps, unmatched=(*unmatched, *other), outputs_over=_outputs_over(model, reference, runs, contract))


def blame_inputs(reference: TorchReference) -> list[Arrays]:
    """Random inputs at the first sizes of the sweep whose values fit into memory, one image each."""
    cost = measured_cost(reference.network, reference.contract)
    wanted = [{**sizes, **({"batch": reference.contract.axes["batch"].low} if "batch" in sizes else {})} for sizes in sweep_sizes(reference.contract)]
    fitting = [sizes for sizes in wanted if cost(sizes) <= MEMORY_BUDGET_BYTES] or [min(wanted, key=cost)]
    return [sweep_inputs(reference.contract, fitting[0], SEED + run) for run in range(RUNS)]


def _groups(found: Sequence[Match], arrays: Arrays, model: onnx.ModelProto) -> list[list[Match]]:
    """In the graph's order, so that each fits MEMORY_BUDGET_BYTES in float64."""
    names = list(dict.fromkeys(value for match in found for value in match.candidates))
    sizes = {name: VALUES_KEPT * 8 * math.prod(shape) for name, shape in value_shapes(model, names, arrays).items()}
    groups: list[list[Match]] = [[]]
    held = 0
    for match in found:
        size = sum(sizes[value] for value in match.candidates)
        if held + size > MEMORY_BUDGET_BYTES and groups[-1]:
            groups.append([])
            held = 0
        groups[-1].append(match)
        held += size
    return [group for group in groups if group]


def _distances(model: onnx.ModelProto, reference: TorchReference, group: Sequence[Match], arrays: Arrays) -> Any:
    """For each match whose shape is the module's: the value, and its largest distance from float64 over its range, the graph's and PyTorch's."""
    names = list(dict.fromkeys(value for match in group for value in match.candidates))
    got = dict(zip(names, session_with_outputs(model, names).run(names, arrays), strict=True))
    keys = [match.key for match in group]
    exact, single = module_outputs(reference.double, arrays, keys), module_outputs(reference, arrays, keys)
    for match in group:
        if match.key not in exact or exact[match.key].dtype.kind != "f":
            continue
        truth = exact[match.key]
        value = next((each for each in reversed(match.candidates) if got[each].shape == truth.shape), None)
        if value is not None:
            extent = _extent(truth)
            yield match, value, (_largest(got[value], truth) / extent, _largest(single[match.key], truth) / extent)


def _extent(truth: NDArray[Any]) -> float:
    """What an error is divided by: the value's range, or its largest size if that is more."""
    return max(float(np.ptp(truth)), float(np.abs(truth).max())) or 1.0


def _largest(values: NDArray[Any], truth: NDArray[Any]) -> float:
    return float(np.nan_to_num(np.abs(values.astype(np.float64) - truth), nan=np.inf).max(initial=0.0))


def _without_ancestors(model: onnx.ModelProto, over: set[str]) -> set[str]:
    """Those values of `over` that are not made from another one."""
    editor = GraphEditor(model)
    found = set()
    for value in over:
        made_by = editor.ancestors(value)
        if not any(each in over for node in made_by for each in node.output if each != value):
            found.add(value)
    return found


def _outputs_over(model: onnx.ModelProto, reference: TorchReference, runs: Sequence[Arrays], contract: Contract) -> tuple[str, ...]:
    names = [name for name in compared_outputs(contract) if name in {value for node in model.graph.node for value in node.output}]
    session, found = session_with_outputs(model, names), []
    errors: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for arrays in runs:
        exact, single = reference.double.run(arrays), reference.run(arrays)
        for name, got in zip(names, session.run(names, arrays), strict=True):
            extent = _extent(exact[name])
            same = got.shape == exact[name].shape
            errors[name].append((_largest(got, exact[name]) / extent if same else np.inf, _largest(single[name], exact[name]) / extent))
    for name, pairs in errors.items():
        error, noise = (float(np.sqrt(np.mean(np.square(side)))) for side in zip(*pairs, strict=True))
        if not error <= FACTOR * max(noise, LEAST_FLOOR):
            found.append(name)
    return tuple(found)
