"""The answers that a bundle stores as PyTorch's, held to what PyTorch gives now: a golden case that was altered lets an altered variant pass its check."""

from dataclasses import dataclass

from edgeport_export.bundle.golden_cases import DEVICE_FACTOR
from edgeport_export.network.reference import TorchReference
from edgeport_export.rewrites.names import levels_name
from edgeport_export.validation.parity import FACTOR, Parity
from edgeport_runtime import Bundle
from edgeport_runtime.comparison import Comparison, compare
from edgeport_runtime.golden_inputs import case_inputs, sampled
from edgeport_runtime.manifest import Tolerance

LOOSEST = 10.0  # times the tolerance that the noise of this run explains: noise differs from input to input, but not by so much


@dataclass(frozen=True, kw_only=True)
class StoredAnswers:
    """`comparisons`: one for each output of each golden case. `loose`: outputs whose stored tolerance is so wide that `check` could not fail, in words.

    True if there are no faults; a bundle without golden cases has none.
    """

    comparisons: tuple[Comparison, ...]
    loose: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return all(self.comparisons) and not self.loose

    def __str__(self) -> str:
        wrong = [each for each in self.comparisons if not each]
        head = f"{len(self.comparisons) - len(wrong)} of {len(self.comparisons)} stored answers are PyTorch's"
        lines = [f"  FAILED the stored answer of {each} is not PyTorch's: the golden case was altered, or is another network's" for each in wrong]
        return "\n".join([head, *lines, *(f"  FAILED {each}" for each in self.loose)])


def stored_answers(bundle: Bundle, reference: TorchReference, parity: Parity) -> StoredAnswers:
    """`parity`: of the fp32 variant, whose noise the tolerance is derived from; what the manifest says is not believed. Raises AlteredError, NetworkFailure."""
    contract = bundle.manifest.contract
    comparisons, loose = [], {}
    for case in bundle.manifest.golden:
        answers = reference.run(case_inputs(bundle, case))
        for place, (output, file) in enumerate(zip(contract.outputs, case.outputs, strict=True)):
            name = levels_name(output.name) if output.kind == "pixels" else output.name
            derived = DEVICE_FACTOR / FACTOR * parity.allowed(name) * parity.ranges[name]
            levels = case.levels.get(output.name)
            stored, truth = bundle.tensor(levels or file), sampled(answers[name if levels else output.name], case.every)
            rounding = 1.0 if output.kind == "pixels" and not levels else 0.0
            comparisons.append(compare(f"{case.folder}/{output.name}", stored, truth, Tolerance(max_abs=derived + rounding)))
            given = case.tolerance["fp32"][place].max_abs - (0.5 if output.kind == "pixels" else 0.0)
            if given > LOOSEST * derived:
                loose[output.name] = f"the stored tolerance of {output.name}, {given:.2g}, is {given / derived:.0f} times what the network's noise explains"
    return StoredAnswers(comparisons=tuple(comparisons), loose=tuple(loose.values()))
