"""Whether weights are rounded for each other in a variant: if it comes nearer to the float network on images that they were not rounded with."""

import math
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from edgeport_export.errors import ExportError
from edgeport_export.progress import ProgressCallback
from edgeport_export.quantization.output_error import finite_db
from edgeport_export.quantization.plan import Plan, RecoveryStep, WeightRecovery
from edgeport_export.quantization.variants import Names, Probes, QuantizableGraph, VariantBuilder
from edgeport_export.rewrites.graph import Ranges
from edgeport_runtime import Example
from edgeport_runtime.engine import Arrays

from .recovered_weights import Recovered, recovered_sha256
from .weight_recovery import EFFORTS, SEED, images_sha256, images_to_round_with, recover

OFF = "off"
ROUNDED = "weights rounded for each other"  # the name of this step
KEPT_SETS = 3
LEAST_GAIN_DB = 0.5  # on eight images; less is luck


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What was chosen for a set of products. `facts`: for the plan; None if each weight goes to its nearest step. `step`: None if nothing was tried."""

    builder: VariantBuilder
    facts: WeightRecovery | None = None
    step: RecoveryStep | None = None


class RecoveryChoice:
    """The choice for one search. `examples`: what weights are rounded with; none if there are too few. `effort`: a key of EFFORTS, or OFF.
    `seconds`: after which "quick" leaves what is left; "thorough" has no end.

    Raises ImageError.
    """

    def __init__(self, stack: ExitStack, nearest: VariantBuilder, examples: Sequence[Example], effort: str, seconds: float, progress: ProgressCallback) -> None:
        self.nearest = nearest
        self.effort = effort
        self.seconds = seconds if effort == "quick" else math.inf
        self.progress = progress
        self._stack = stack
        self._images = images_to_round_with(nearest.graph, examples) if effort != OFF and examples else []
        self._chosen: dict[Names, Chosen] = {}  # the last one comes last

    def builder(self, integer: Names) -> VariantBuilder:
        """A builder whose weights are rounded for each other in this set; the one that rounds to the nearest step if that is no worse.

        Weights that were rounded for another set are worse than either: what they make up for is not there (25 dB became 7 when one product went to float).
        """
        return self.chosen(integer).builder

    @property
    def known(self) -> Collection[Names]:
        """The sets that need no time."""
        return self._chosen

    def chosen(self, integer: Names) -> "Chosen":
        """The same with its facts. The last KEPT_SETS sets are not rounded again."""
        if not self._images or not integer:
            return Chosen(builder=self.nearest)
        found = self._chosen.pop(integer) if integer in self._chosen else self._compared(integer)
        self._chosen[integer] = found
        for oldest in list(self._chosen)[:-KEPT_SETS]:
            del self._chosen[oldest]
        return found

    def _compared(self, integer: Names) -> "Chosen":
        graph, nearest = self.nearest.graph, self.nearest
        until = time.monotonic() + self.seconds
        found = _recovered(graph, integer, nearest.ranges, self._images, self.effort, SEED, self.progress, lambda done: time.monotonic() < until)
        builder = self._stack.enter_context(VariantBuilder(graph, nearest.ranges, nearest.probes, nearest.method, found))
        before, after = nearest.sqnr_db(integer), builder.sqnr_db(integer)
        taken = bool(after > before + LEAST_GAIN_DB)
        step = RecoveryStep(name=ROUNDED, before_db=finite_db(before), after_db=finite_db(after), taken=taken)
        if not taken:
            return Chosen(builder=nearest, step=step)
        facts = WeightRecovery(
            effort=self.effort,
            seed=SEED,
            products=len(found),
            images=sum(len(next(iter(each.values()))) for each in self._images),
            images_sha256=images_sha256(self._images),
            weights_sha256=recovered_sha256(found),
            nearest_db=finite_db(before),
            sqnr_db=finite_db(after),
        )
        return Chosen(builder=builder, facts=facts, step=step)


def replayed_builder(stack: ExitStack, graph: QuantizableGraph, plan: Plan, examples: Sequence[Example], progress: ProgressCallback) -> VariantBuilder:
    """The builder of a plan. Raises ExportError if the plan was made for another graph, or its weights were rounded with images that are not given, or come out
    otherwise here; ImageError."""
    if plan.graph_sha256 != graph.sha256:
        raise ExportError(
            "the int8 plan was made for another graph (other weights, another contract, or other versions of PyTorch and onnxscript): "
            "leave --plan out to make a new one"
        )
    graph = graph.smoothed(plan.smoothing)
    facts, probes = plan.recovery, Probes(graph, [])
    if facts is None:
        return stack.enter_context(VariantBuilder(graph, plan.ranges, probes, plan.method))
    if facts.effort not in EFFORTS:
        raise ExportError(f"the weights of this int8 plan were rounded with the effort {facts.effort!r}, which this edgeport does not know: make a new plan")
    images = images_to_round_with(graph, examples, facts.seed) if examples else []
    if images_sha256(images) != facts.images_sha256:
        raise ExportError(
            f"the weights of this int8 plan were rounded with {facts.images} images, and they are not {'those given' if images else 'given'}: "
            "name the same calibration data and --calibration-images, or leave --plan out to make a new one"
        )
    found = _recovered(graph, frozenset(plan.integer), plan.ranges, images, facts.effort, facts.seed, progress, lambda done: done < facts.products)
    if recovered_sha256(found) != facts.weights_sha256:
        raise ExportError(
            "the weights of this int8 plan round otherwise on this machine (another kind of processor, or other versions of onnxruntime and PyTorch): "
            "leave --plan out to make a new one"
        )
    return stack.enter_context(VariantBuilder(graph, plan.ranges, probes, plan.method, found))


def _recovered(
    graph: QuantizableGraph,
    integer: Names,
    ranges: Ranges,
    images: Sequence[Arrays],
    effort: str,
    seed: int,
    progress: ProgressCallback,
    has_time: Callable[[int], bool],
) -> Recovered:
    def goes_on(done: int, total: int) -> bool:
        progress("rounding weights for each other", done, total)
        return has_time(done)

    return recover(graph, integer, ranges, images, EFFORTS[effort], goes_on, seed)
