"""The decision about int8: whether `precision="auto"` takes it, and the reason in one sentence. `summary` has all figures."""

from dataclasses import dataclass

from edgeport_export.errors import ExportError, shortened
from edgeport_export.validation.quality import QualityReport, metric_is_sufficient
from edgeport_runtime.manifest import Selection

from .budget import Budget
from .int8_variant import MeasuredVariant
from .label_changes import LabelChanges
from .plan import Plan, SearchedPlan
from .summary import Latencies, split_gain

MIN_SPEEDUP = 1.05  # int8 must be this many times as fast as fp32, in batches, to be taken
MAX_SINGLE_IMAGE_SLOWDOWN = 1.02  # if int8 takes longer than this times fp32 on a single image, "auto" uses it for batches alone
MIN_BATCH_SPLIT_SPEEDUP = 1.02  # less may be lost on the next machine, because a second image needs its own working memory
LONGEST_REASON = 199  # characters: one sentence that fits a terminal twice
MIN_CALIBRATION_IMAGES = 8  # with fewer, int8 is not taken: one black image gives ranges and 999 dB


def decide(variant: MeasuredVariant, quality: QualityReport | None, budget: Budget) -> Plan:
    """The variant's plan with the decision about it. A replayed plan was decided before, and comes back as it is.

    `quality`: None if there were no held-out images.
    Raises ExportError if a replayed plan takes int8 and does not keep the budget.
    """
    if isinstance(variant.plan, Plan):
        _require_budget(variant.plan, quality, budget)
        return variant.plan
    figures = Figures(plan=variant.plan, latencies=variant.latencies, quality=quality, budget=budget)
    return Plan(**vars(variant.plan), speedup=figures.speedup, selection=figures.selection())


def _require_budget(plan: Plan, quality: QualityReport | None, budget: Budget) -> None:
    if "int8" not in plan.selection.precisions:
        return
    if quality is not None and quality.drop("int8") > budget.max_drop:
        raise ExportError(f"the replayed plan does not keep the quality budget: int8 loses {quality.drop('int8'):.3g}, {budget.max_drop:g} allowed")
    if quality is None and plan.changes is not None:
        if plan.changes.percent > budget.max_changed:
            raise ExportError(f"the replayed plan does not keep the quality budget: int8 {plan.changes}, {budget.max_changed:g}% asked for")
    elif quality is None and plan.sqnr_db < budget.sqnr_floor_db:
        raise ExportError(f"the replayed plan does not keep the quality budget: {plan.sqnr_db:g} dB from fp32, {budget.sqnr_floor_db:g} asked for")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Everything that the decision considers. `latencies`: batch size -> engine -> measured times; empty if this machine is another kind."""

    plan: SearchedPlan
    latencies: Latencies
    quality: QualityReport | None
    budget: Budget

    @property
    def speedup(self) -> float | None:
        """fp32's time over int8's at the plan's batch; None if it was not measured."""
        return self._speedup(self.plan.batch)

    def _speedup(self, batch: int) -> float | None:
        measured = self.latencies.get(batch)
        return None if measured is None else round(measured["fp32"].lower_quartile_ms / measured["int8"].lower_quartile_ms, 3)

    def selection(self) -> Selection:
        """int8 for all calls, for batches alone, or not at all; and whether batches are split among the threads."""
        in_batches = "int8" if self.pays() else "fp32"
        split = self.plan.batch if (split_gain(self.latencies, self.plan.batch, in_batches) or 1.0) >= MIN_BATCH_SPLIT_SPEEDUP else None
        if in_batches == "int8" and self._slower_alone():
            return Selection(precision="fp32", reason=self.reason(), batch_precision="int8", from_batch=self.plan.batch, split_batch_from=split)
        return Selection(precision=in_batches, reason=self.reason(), split_batch_from=split)

    def pays(self) -> bool:
        """Whether int8 is faster than fp32 by enough, in batches, and inside the budget."""
        return self._objection() is None

    def reason(self) -> str:
        """The decision in one sentence of at most LONGEST_REASON characters."""
        objection = self._objection()
        return shortened(f"int8 is not taken: {objection}" if objection is not None else f"{self._speed()}; {self._loss()}", LONGEST_REASON)

    def _objection(self) -> str | None:
        """Why int8 is not taken; None if it is."""
        plan, budget = self.plan, self.budget
        if self.speedup is None:
            return f"its speed could not be measured, because this machine is no {plan.target}"
        if self.speedup < MIN_SPEEDUP:
            return f"it is {self.speedup:.2f} times as fast as fp32 at batch {plan.batch}, and {MIN_SPEEDUP:g} is the least that is worth it"
        if plan.calibration_images < MIN_CALIBRATION_IMAGES:
            return f"it was calibrated with {plan.calibration_images} images, and at least {MIN_CALIBRATION_IMAGES} are needed"
        if self.quality is not None and not self.quality.drop("int8") <= budget.max_drop:
            return f"{self._loss()}, and {budget.max_drop:g} are allowed"
        if (changes := self._changes) is not None:
            return f"it {changes}, and {budget.max_changed:g}% may change" if changes.percent > budget.max_changed else None
        if not self._metric_is_sufficient() and not plan.sqnr_db >= budget.sqnr_floor_db:
            return f"{self._distance()}, and at least {budget.sqnr_floor_db:g} dB are asked for"
        return None

    def _metric_is_sufficient(self) -> bool:
        """Whether the metric decides alone; otherwise the outputs must stay near fp32's at the contract's own size, too."""
        return self.quality is not None and metric_is_sufficient(self.quality.qualities["torch"], self.quality.unseen, self.budget.max_drop)

    @property
    def _changes(self) -> LabelChanges | None:
        """The labels that decide because there is no truth; None if something else decides."""
        return self.plan.changes if self.quality is None else None

    def _distance(self) -> str:
        error = self.plan.sqnr_error_db
        sure = "" if error is None else f" (± {2 * error:.1f} with other images)"
        return f"its outputs are {self.plan.sqnr_db:.1f} dB from fp32's{sure}"

    def _slower_alone(self) -> bool:
        alone = self.latencies.get(1)
        return alone is not None and alone["int8"].lower_quartile_ms > MAX_SINGLE_IMAGE_SLOWDOWN * alone["fp32"].lower_quartile_ms

    def _speed(self) -> str:
        batch, alone = self.plan.batch, self._speedup(1)
        speed = f"int8 is {self.speedup:.2f} times as fast as fp32 at batch {batch}"
        if self._slower_alone():
            return f"{speed}, but {alone:.2f} times at batch 1, so batches of {batch} and more take it"
        return speed if alone is None or batch == 1 else f"{speed}, {alone:.2f} times at batch 1"

    def _loss(self) -> str:
        if self._changes is not None:
            return f"it {self._changes}; its outputs are {self.plan.sqnr_db:.1f} dB from fp32's"
        if self.quality is None:
            return self._distance()
        before = self.quality.qualities["torch"]
        units = {"accuracy": "points of accuracy", "psnr_db": "dB of PSNR", "mean_iou": "points of mean IoU", "mean_ap": "points of mAP"}
        lost, name = self.quality.drop("int8"), units.get(before.metric, f"of {before.metric}")
        return f"it {'gains' if lost < 0 else 'loses'} {abs(lost):.2f} {name} on {before.count} held-out images"
