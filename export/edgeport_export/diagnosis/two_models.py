"""Any two models compared: PyTorch networks, variants of bundles, ONNX files of other tools, in onnxruntime or another engine.

What a difference is held to depends on the two:

- a PyTorch network and fp32: 4 times PyTorch's own distance from float64, as at export (validation/parity.py);
- two fp32 files: 4 times the distance that the first moves if its weights change by their last bit (nearby_graph.py);
- int8 or fp16 on either side: signal over error, in dB. With images, a classifier's labels or a generator's PSNR decide if there are enough of them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgeport_export.crowding import considerate_threads
from edgeport_export.errors import ExportError
from edgeport_export.progress import ProgressCallback, no_progress
from edgeport_export.quantization.budget import Budget
from edgeport_export.validation.parity import FACTOR
from edgeport_runtime import Contract

from .changed_decisions import TaskParity, changed_items, task_parity, write_changes
from .differences import Limit, OutputDifference, output_difference
from .inputs import Given, inputs_of
from .named_sides import Comparable, side_of
from .paired_runs import PairedRuns, RightSide, noise_parity, run_both
from .sides import GraphSide, NetworkSide, Side

TWICE_DB = 3.0  # twice the error's power: how much less an int8 variant may reach on other images than what its bundle tells


@dataclass(frozen=True, kw_only=True)
class ModelComparison:
    """Two models on the same inputs. True if something was compared and no output differs by more than its limit.

    `first`, `second`: their names. `against`: the one whose answers count as right, the PyTorch network if there is one. `inputs`: number of runs, and
    `kind` of inputs. `task`: by the task's own measure, None if the inputs are no images or the task has none. `left_out`: inputs that were not taken.
    """

    first: str
    second: str
    against: str
    kind: str
    inputs: int
    outputs: tuple[OutputDifference, ...]
    task: TaskParity | None = None
    left_out: str = ""

    def __bool__(self) -> bool:
        return self.inputs > 0 and bool(self.outputs) and all(self.outputs) and (self.task is None or not self.task.decides or bool(self.task))

    def __str__(self) -> str:
        found, plural = "agree" if self else "differ", "" if self.inputs == 1 else "s"
        lines = [f"{self.first} and {self.second} {found} on {self.inputs} input{plural} ({self.kind})", *(f"  {each}" for each in self.outputs)]
        lines += [f"  {self.task}"] if self.task is not None else []
        return "\n".join([*lines, *([f"  {self.left_out}"] if self.left_out else [])])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        head = {"passed": bool(self), "first": self.first, "second": self.second, "against": self.against, "kind": self.kind, "inputs": self.inputs}
        task = None
        if self.task is not None:
            changed = [asdict(each) for each in changed_items(self.task)]
            task = {"passed": bool(self.task), "decides": self.task.decides, "summary": str(self.task), "changed": changed}
        return {**head, "outputs": [each.to_dict() for each in self.outputs], "task": task, "left_out": self.left_out}


@considerate_threads()
def compare_models(
    first: Comparable,
    second: Comparable,
    *,
    inputs: Given | None = None,
    contract: Contract | None = None,
    budget: Budget | None = None,
    changes_to: str | Path | None = None,
    progress: ProgressCallback = no_progress,
) -> ModelComparison:
    """Compare two models on the same inputs.

    `first`, `second`: a PyTorch network, a bundle (its fp32 variant), an ONNX file of any tool, or a name as `edgeport verify` takes it, such as
    "bundles/mine@int8" or "plain.onnx@openvino". A float image input of a file or network is fed with pixels normalized as the contract says.
    `inputs`: see `inputs_of`; left out, the golden cases if one side is int8 or fp16, else the sweep of sizes.
    `contract`: for two models of which none has one; left out, what the first file declares, as plain tensors.
    `budget`: what int8 or fp16 may lose. `changes_to`: a folder for the changed decisions, as JSON and PNG files.
    Raises ExportError, InputError, BundleError and their kin for what cannot be compared at all. An input at which one side alone fails is a difference.
    """
    sides = side_of(first), side_of(second)
    common = contract or _common_contract(sides)
    given = inputs_of(inputs, sides, common)
    reference, other = (sides[1], sides[0]) if isinstance(sides[1], NetworkSide) and not isinstance(sides[0], NetworkSide) else sides
    lossy = any(side.precision != "fp32" for side in sides)
    right = RightSide(reference, common, noise_is_measured=not lossy)
    runs = run_both(right, other.answer(common), other.name, given.cases, progress)
    spent = budget or Budget()
    task = _task(runs, (reference.name, other.name), common, spent, changes_to) if given.kind == "images" else None
    labels_decide = lossy and task is not None and task.decides
    outputs = _held_to_decibels(runs, _least_db(sides, spent), decides=not labels_decide) if lossy else _held_to_noise(runs, right)
    names = {"first": sides[0].name, "second": sides[1].name, "against": reference.name}
    return ModelComparison(**names, kind=given.kind, inputs=len(given.cases), outputs=outputs, task=task, left_out=given.left_out)


def assert_parity(
    first: Comparable, second: Comparable, *, inputs: Given | None = None, contract: Contract | None = None, budget: Budget | None = None
) -> ModelComparison:
    """`compare_models` for a test of your own: raises AssertionError with every figure if the two differ."""
    found = compare_models(first, second, inputs=inputs, contract=contract, budget=budget)
    if not found:
        raise AssertionError(str(found))
    return found


def _common_contract(sides: Sequence[Side]) -> Contract:
    """A file's, else a network's, else what the first file declares. Raises ExportError for two networks without any."""
    own = [side.contract for side in sorted(sides, key=lambda side: isinstance(side, NetworkSide)) if side.contract is not None]
    if own:
        return own[0]
    files = [side for side in sides if isinstance(side, GraphSide)]
    if not files:
        raise ExportError("neither network has a contract, so there are no inputs to compare them on: give one with contract=, or --contract FILE")
    declared = files[0].ends.contract()
    return files[0].ends.contract({axis: size for side in files[1:] for axis, size in side.fixed(declared).items()})


def _held_to_noise(runs: PairedRuns, right: RightSide) -> tuple[OutputDifference, ...]:
    parity = noise_parity(runs, right) if runs.rows else None
    source = f"{FACTOR:g} times " + ("PyTorch's own distance from float64" if right.network is not None else "what the last bit of its weights moves")
    found = []
    for name in runs.names:
        rows = runs.of(name)
        relative = [case.onnx_error for case in parity.cases if case.output == name] if parity is not None else []
        limit = Limit(relative=parity.allowed(name) if parity is not None and rows else 0.0, source=source)
        found.append(output_difference(name, runs.case_names(name), *runs.arrays(name), relative, limit, runs.faults[name]))
    return tuple(found)


def _held_to_decibels(runs: PairedRuns, limit: Limit, *, decides: bool) -> tuple[OutputDifference, ...]:
    found = []
    for name in runs.names:
        rows = runs.of(name)
        extent = max((float(abs(row.exact).max()) for row in rows), default=0.0) or 1.0
        relative = [row.errors(extent)[1] for row in rows]
        each = output_difference(name, runs.case_names(name), *runs.arrays(name), relative, limit, runs.faults[name])
        found.append(replace(each, decides=decides))
    return tuple(found)


def _least_db(sides: Sequence[Side], budget: Budget) -> Limit:
    """What the user allows, or what the bundle tells of its int8 variant, if that is less."""
    promised = [side.promised_db for side in sides if isinstance(side, GraphSide) and side.promised_db is not None]
    told = min(promised, default=float("inf")) - TWICE_DB
    if told < budget.sqnr_floor_db:
        return Limit(least_db=told, source=f"{told + TWICE_DB:.1f} dB were measured at export, less {TWICE_DB:g} for other inputs")
    return Limit(least_db=budget.sqnr_floor_db, source="the floor")


def _task(runs: PairedRuns, names: tuple[str, str], contract: Contract, budget: Budget, changes_to: str | Path | None) -> TaskParity | None:
    """None if some images could not be compared: that is a difference already."""
    before, after = runs.arrays(runs.names[0])
    if not before or len(before) < len(runs.cases):
        return None
    parity = task_parity(contract, runs.cases, before, after, budget, names)
    if parity is not None and changes_to is not None:
        write_changes(Path(changes_to), parity, contract, runs.cases, before, after)
    return parity
