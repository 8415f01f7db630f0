"""What brings the whole int8 variant nearer to the float network before products are searched.

1. The kind of ranges whose variant is nearest is taken for all values.
2. Outliers are moved into weights (`smoothing`), where layer normalizations are read by linear layers.
3. Each value takes its range of the kind that suits it (`value_ranges`).

Each of 2 and 3 is fitted to some images, and stays only if the variant comes nearer on others. One calibration serves all: smoothing changes the
normalizations alone, which are calibrated again. Weights are rounded for each other later (`recovery_choice`), in the set of products that is left.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

from edgeport_export.progress import ProgressCallback, no_progress
from edgeport_export.quantization.calibration import METHODS, Calibration, calibrate, pixel_arrays
from edgeport_export.quantization.image_roles import Roles, probes_of, spread
from edgeport_export.quantization.output_error import finite_db
from edgeport_export.quantization.plan import RecoveryStep
from edgeport_export.quantization.variants import Probes, QuantizableGraph, VariantBuilder

from .recovery_choice import LEAST_GAIN_DB, OFF
from .smoothing import channel_exponents, smoothable
from .value_ranges import ranges_by_value

SMOOTHED_BY = 32  # images whose largest activations tell outliers
CHOSEN_BY = 8  # images by which values choose their ranges
BY_VALUE = "by value"  # the method of ranges that are of several kinds
QUICK_SHARE = 1 / 8  # of the search's seconds, for the ranges of single values


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A builder of variants, and what was tried until then."""

    builder: VariantBuilder
    steps: tuple[RecoveryStep, ...] = ()

    def beside(self, name: str, challenger: VariantBuilder) -> "Rung":
        """The nearer of both on the probes, with both figures. A builder that is nearer by luck is not taken."""
        before, after = (each.sqnr_db(frozenset(each.graph.quantizable)) for each in (self.builder, challenger))
        taken = bool(after > before + LEAST_GAIN_DB)
        step = RecoveryStep(name=name, before_db=finite_db(before), after_db=finite_db(after), taken=taken)
        return Rung(builder=challenger if taken else self.builder, steps=(*self.steps, step))


class Ladder:
    """The steps of one export. `stack`: closes the builders. `effort`: a key of EFFORTS, or OFF. `seconds`: of the whole search."""

    def __init__(self, stack: ExitStack, roles: Roles, probes: Probes, effort: str, seconds: float, progress: ProgressCallback = no_progress) -> None:
        self.stack = stack
        self.roles = roles
        self.probes = probes
        self.effort = effort
        self.seconds = seconds * QUICK_SHARE if effort == "quick" else float("inf")
        self.progress = progress

    def climb(self, graph: QuantizableGraph, calibration: Calibration) -> Rung:
        """All steps. Raises ImageError."""
        rung = Rung(builder=self._closest(graph, calibration))
        if self.effort == OFF or not self.roles.rounded_with:
            return rung
        if smoothable(graph.editor):
            self.progress("moving outliers into weights", 0, 1)
            exponents = channel_exponents(graph.model, pixel_arrays(graph.contract, spread(self.roles.rounded_with, SMOOTHED_BY)))
            if exponents:
                graph_after = graph.smoothed(exponents)
                again = self._calibrated_again(graph_after, calibration)
                rung = rung.beside("outliers moved into weights", self._closest(graph_after, again))
                calibration = again if rung.builder.graph is graph_after else calibration
        return rung.beside("a range for each value", self._by_value(rung.builder, calibration))

    def _closest(self, graph: QuantizableGraph, calibration: Calibration) -> VariantBuilder:
        """Step 1."""
        return closest_ranges(self.stack, graph, calibration, self.probes, self.progress)

    def _calibrated_again(self, graph: QuantizableGraph, calibration: Calibration) -> Calibration:
        """With the normalizations as they are now."""
        changed = [node.output[0] for node in smoothable(graph.editor) if node.name in graph.smoothing and node.output[0] in calibration.histograms]
        found = calibrate(graph.model, changed, graph.contract, self.roles.fitted)
        return replace(calibration, histograms={**calibration.histograms, **found.histograms})

    def _by_value(self, nearest: VariantBuilder, calibration: Calibration) -> VariantBuilder:
        """Step 3."""
        graph, until = nearest.graph, time.monotonic() + self.seconds
        images = probes_of(graph, spread(self.roles.rounded_with, CHOSEN_BY))

        def goes_on(done: int, total: int) -> bool:
            self.progress("choosing a range for each value", done, total)
            return time.monotonic() < until

        kinds: Mapping[str, Mapping[str, tuple[float, float]]] = {method: calibration.ranges(method) for method in METHODS}
        ranges = ranges_by_value(graph, kinds, nearest.method, images, goes_on)
        return self.stack.enter_context(VariantBuilder(graph, ranges, self.probes, BY_VALUE))


def closest_ranges(
    stack: ExitStack, graph: QuantizableGraph, calibration: Calibration, probes: Probes, progress: ProgressCallback = no_progress
) -> VariantBuilder:
    """Step 1: a builder that has the nearest ranges. `stack`: closes the builders."""
    builders = [stack.enter_context(VariantBuilder(graph, calibration.ranges(method), probes, method)) for method in METHODS]
    everything = frozenset(graph.quantizable)
    for index, builder in enumerate(builders):
        progress("choosing the ranges", index, len(METHODS))
        builder.sqnr_db(everything)
    return max(builders, key=lambda builder: builder.sqnr_db(everything))
