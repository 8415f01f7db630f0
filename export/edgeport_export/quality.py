"""Quality on held-out examples: PyTorch, fp32 and int8 side by side, and how many answers changed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeport_runtime import Contract, Quality
from edgeport_runtime.engine import Arrays, Engine
from edgeport_runtime.evaluate import Example, measure
from edgeport_runtime.images import Pixel

from .wrap import Reference

TIE = 1e-4  # of the logits' range: two classes closer than this may change places by rounding alone


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Each engine's metric, and for classifiers how many labels differ from PyTorch's. `decided`: those that were no tie in PyTorch."""

    qualities: Mapping[str, Quality]
    changed: Mapping[str, int]
    decided: Mapping[str, int]

    def drop(self, precision: str) -> float:
        """What the precision costs against PyTorch: percentage points of accuracy, or dB of PSNR. Negative where it gained."""
        lost = self.qualities["torch"].value - self.qualities[precision].value
        return 100 * lost if self.qualities["torch"].metric == "accuracy" else lost

    def to_dict(self) -> dict[str, Any]:
        first = self.qualities["torch"]
        return {
            "metric": first.metric,
            "count": first.count,
            "values": {name: each.value for name, each in self.qualities.items()},
            "changed": dict(self.changed),
        }


def judge(
    contract: Contract, reference: Reference, engines: Mapping[str, Engine], examples: Sequence[Example], step: Callable[[int], None] = lambda done: None
) -> Judgement:
    """Feed every example to PyTorch and to each engine, through the runtime's own image code."""

    def engine_run(engine: Engine) -> Callable[[Pixel], Arrays]:
        return lambda pixels: engine.run({contract.inputs[0].name: pixels})

    qualities = {"torch": measure(contract, reference.pixels, examples, step)}
    qualities |= {name: measure(contract, engine_run(engine), examples, step) for name, engine in engines.items()}
    first = qualities["torch"].answers
    moved = {name: [i for i, answer in enumerate(qualities[name].answers) if answer != first[i]] for name in engines}
    return Judgement(
        qualities=qualities,
        changed={name: len(indices) for name, indices in moved.items()},
        decided={name: sum(qualities["torch"].margins[i] > TIE for i in indices) for name, indices in moved.items()},
    )
