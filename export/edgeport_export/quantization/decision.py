"""The decision about int8: whether `precision="auto"` takes it, and the explanation with its figures."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from edgeport_export.benchmark.runner import SPLIT_BATCH, LatencyStats, disturbance
from edgeport_export.errors import ExportError
from edgeport_export.validation.quality import QualityReport, metric_is_sufficient, too_few_examples, unit
from edgeport_runtime.manifest import Selection

from .budget import Budget
from .int8_variant import MeasuredVariant
from .plan import Plan, SearchedPlan

MIN_SPEEDUP = 1.05  # int8 must be this many times as fast as fp32, in batches, to be taken
MAX_SINGLE_IMAGE_SLOWDOWN = 1.02  # if int8 takes longer than this times fp32 on a single image, "auto" uses it for batches alone
MIN_BATCH_SPLIT_SPEEDUP = 1.02  # less may be lost on the next machine, because a second image needs its own working memory
MIN_CALIBRATION_IMAGES = 8  # with fewer, int8 is not taken: one black image gives ranges and 999 dB


def decide(variant: MeasuredVariant, sizes: Mapping[str, int], quality: QualityReport | None, budget: Budget) -> Plan:
    """The variant's plan with the decision about it. A replayed plan was decided before, and comes back as it is.

    `sizes`: bytes of the fp32 and the int8 file. `quality`: None if there were no held-out images.
    Raises ExportError if a replayed plan takes int8 and does not keep the budget.
    """
    if isinstance(variant.plan, Plan):
        _require_budget(variant.plan, quality, budget)
        return variant.plan
    figures = Figures(plan=variant.plan, latencies=variant.latencies, sizes=sizes, quality=quality, budget=budget)
    return Plan(**vars(variant.plan), speedup=figures.speedup, selection=figures.selection())


def _require_budget(plan: Plan, quality: QualityReport | None, budget: Budget) -> None:
    if "int8" not in plan.selection.precisions:
        return
    if quality is not None and quality.drop("int8") > budget.max_drop:
        raise ExportError(f"the replayed plan does not keep the quality budget: int8 loses {quality.drop('int8'):.3g}, {budget.max_drop:g} allowed")
    if quality is None and plan.sqnr_db < budget.sqnr_floor_db:
        raise ExportError(f"the replayed plan does not keep the quality budget: {plan.sqnr_db:g} dB from fp32, {budget.sqnr_floor_db:g} asked for")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Everything that the decision considers. `latencies`: batch size -> engine -> what was measured; empty if this machine is another kind."""

    plan: SearchedPlan
    latencies: Mapping[int, Mapping[str, LatencyStats]]
    sizes: Mapping[str, int]
    quality: QualityReport | None
    budget: Budget

    @property
    def speedup(self) -> float | None:
        """fp32's time over int8's at the plan's batch; None if it was not measured."""
        measured = self.latencies.get(self.plan.batch)
        return None if measured is None else round(measured["fp32"].lower_quartile_ms / measured["int8"].lower_quartile_ms, 3)

    def selection(self) -> Selection:
        """int8 for all calls, for batches alone, or not at all; and whether batches are split among the threads."""
        in_batches = "int8" if self.pays() else "fp32"
        split = self.plan.batch if self._split_gain(in_batches) >= MIN_BATCH_SPLIT_SPEEDUP else None
        if in_batches == "int8" and self._slower_alone():
            return Selection(precision="fp32", reason=self.explanation(), batch_precision="int8", from_batch=self.plan.batch, split_batch_from=split)
        return Selection(precision=in_batches, reason=self.explanation(), split_batch_from=split)

    def pays(self) -> bool:
        """Whether int8 is faster than fp32 by enough, in batches, and inside the budget."""
        return not self._objection()

    def explanation(self) -> str:
        """The decision, and what it rests on: integer share, speed, size, load time, memory, quality."""
        taken = "int8 is taken"
        if self._slower_alone():
            taken += f" for batches of {self.plan.batch} and more, if `batch` asks for them, and fp32 for less, because int8 is slower on one image alone"
        figures = [self._integers(), *self._speed(), self._file(), *self._quality()]
        return f"{self._objection() or taken}: {'; '.join(figures)}"

    def _objection(self) -> str:
        """Why int8 is not taken; empty if it is."""
        if self.speedup is None:
            return "int8 is not taken by itself, because its speed could not be measured"
        if self.speedup < MIN_SPEEDUP:
            return f"int8 is not taken, because it is not {MIN_SPEEDUP:g} times as fast as fp32"
        if self.plan.calibration_images < MIN_CALIBRATION_IMAGES:
            images = self.plan.calibration_images
            return f"int8 is not taken by itself, because it was calibrated with {images} images, and {MIN_CALIBRATION_IMAGES} are asked for"
        if self.quality is not None and not self.quality.drop("int8") <= self.budget.max_drop:
            return f"int8 is not taken, because it loses more than the {self.budget.max_drop:g} {unit(self.quality.qualities['torch'])} allowed"
        if not self._metric_is_sufficient() and not self.plan.sqnr_db >= self.budget.sqnr_floor_db:
            return f"int8 is not taken, because its outputs are not within {self.budget.sqnr_floor_db:g} dB of fp32's"
        return ""

    def _metric_is_sufficient(self) -> bool:
        """Whether the metric decides alone; otherwise the outputs must stay near fp32's at the contract's own size, too."""
        return self.quality is not None and metric_is_sufficient(self.quality.qualities["torch"], self.quality.outputs, self.budget.max_drop)

    def _slower_alone(self) -> bool:
        alone = self.latencies.get(1)
        return alone is not None and alone["int8"].lower_quartile_ms > MAX_SINGLE_IMAGE_SLOWDOWN * alone["fp32"].lower_quartile_ms

    def _split_gain(self, precision: str) -> float:
        """How many times as fast batches are if each thread runs images of its own; 1 if that was not measured.

        The median over rounds: both take turns, and a few percent drown in the drift of a shared machine between rounds.
        """
        measured = self.latencies.get(self.plan.batch, {})
        split = measured.get(precision + SPLIT_BATCH)
        if split is None:
            return 1.0
        return statistics.median(whole / part for whole, part in zip(measured[precision].rounds_ms, split.rounds_ms, strict=True))

    def _file(self) -> str:
        ratio = self.sizes["fp32"] / self.sizes["int8"]
        return f"the file is {ratio:.2f} times smaller" if ratio >= 1 else f"the file is {1 / ratio:.2f} times larger"

    def _integers(self) -> str:
        convolutions = [name for name in self.plan.findings if name.rpartition("/")[2].startswith("Conv")]  # "layer1.0.conv1/Conv", or "Conv_2"
        products = [name for name in self.plan.findings if name not in convolutions]
        kinds = [
            f"{sum(name not in self.plan.kept_float for name in names)} of {len(names)} {what}"
            for names, what in ((convolutions, "convolutions"), (products, "matrix products"))
            if names
        ]
        return f"{' and '.join(kinds)} run as integers, {self.plan.integer_share:.0%} of the multiplications"

    def _speed(self) -> list[str]:
        if not self.latencies:
            return [f"neither its kernels nor its speed could be looked at, because this machine is no {self.plan.target}"]
        found = []
        for batch, each in self.latencies.items():
            fp32, int8 = each["fp32"].lower_quartile_ms, each["int8"].lower_quartile_ms
            found.append(f"{fp32 / int8:.2f} times as fast as fp32 at batch {batch} ({int8:.3g} against {fp32:.3g} ms)")
        for name in ("int8", "fp32"):
            if (gain := self._split_gain(name)) >= MIN_BATCH_SPLIT_SPEEDUP:
                found.append(f"{name} is {gain:.2f} times as fast again at batch {self.plan.batch} if each thread runs images of its own")
        measured = self.latencies.get(self.plan.batch) or self.latencies[min(self.latencies)]
        fp32_stats, int8_stats = measured["fp32"], measured["int8"]
        found.append(f"loads in {int8_stats.load_ms:.0f} ms against {fp32_stats.load_ms:.0f}")
        found.append(f"its process held at most {int8_stats.peak_bytes / 2**20:.0f} MiB against {fp32_stats.peak_bytes / 2**20:.0f}")
        busy = disturbance(stats for each in self.latencies.values() for stats in each.values())
        return [busy, *found] if busy else found

    def _quality(self) -> list[str]:
        plan, floor_db, max_drop = self.plan, self.budget.sqnr_floor_db, self.budget.max_drop
        elsewhere = ", ".join(f"{decibels:.1f} at {size}" for size, decibels in plan.sqnr_elsewhere.items())
        near = f"its outputs are {plan.sqnr_db:.1f} dB from fp32's{f' ({elsewhere})' if elsewhere else ''}{_probed(plan)}"
        near += "".join(f", {_share(share)} of the entries of {name} are fp32's" for name, share in plan.agreement.items())
        asked = f"at least {floor_db:g} dB asked for{'' if plan.sqnr_db >= floor_db else ': missed'}"
        if self.quality is None:
            return [f"{near} ({asked}; there were no held-out images to judge it on)"]
        torch, int8 = self.quality.qualities["torch"], self.quality.qualities["int8"]
        why = f"one image weighs more than {max_drop:g} points" if too_few_examples(torch, max_drop) else "the metric looks at the first output alone"
        floor = "" if self._metric_is_sufficient() else f" ({asked}, because {why})"
        return [f"{near}{floor}", f"{int8} on {int8.count} held-out images against PyTorch's {torch}"]


def _probed(plan: SearchedPlan) -> str:
    if not plan.probes:  # the first plans do not tell
        return f", calibrated with {plan.calibration_images} images"
    return f" on {plan.probes} images {'beside' if plan.unseen else 'of'} the {plan.calibration_images} that it was calibrated with"


def _share(share: float) -> str:
    return "all" if share == 1 else f"{min(share, 0.999):.1%}"
