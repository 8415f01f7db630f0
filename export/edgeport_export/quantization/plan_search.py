"""From calibration images to an int8 plan: searched by measuring, picked from the curve of another one, or replayed."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx

from edgeport_export.errors import ExportError
from edgeport_export.progress import ProgressCallback, counter
from edgeport_export.rewrites.nodes import every_node
from edgeport_export.validation.quality import QualityEvaluator
from edgeport_runtime import Example

from .budget_judge import BudgetJudge, judging_half
from .calibration import calibrate, clipping, pixel_arrays
from .image_roles import Images, LabelJudge, probes_of, roles_of
from .int8_settings import Int8Settings, Measuring
from .macs import integer_nodes, share_of_macs
from .output_error import finite_db
from .plan import Plan, RecoveryStep, SearchedPlan
from .plan_curve import Curve
from .plan_walk import taken, walked
from .qdq import observed_values
from .recovery.ladder import Ladder
from .recovery.recovery_choice import OFF, ROUNDED, RecoveryChoice, replayed_builder
from .search import SearchResult, Timer, search
from .variants import Names, Probes, QuantizableGraph, VariantBuilder

FURTHEST = 2  # times its own size at which errors are measured, too, if the contract promises such sizes
SEARCH_BATCH_MS = 80.0  # the search times batches that fp32 takes about this long for
WALK_SHARE = 1 / 4  # of the search's seconds, in which each plan of the curve has its weights rounded for itself


@dataclass(frozen=True, kw_only=True)
class FoundPlan:
    """`plan`: searched, or a whole one that was replayed. `builder`: makes its variant. `audit`: for the evidence. `judge`: has the last word about
    its quality; None without truth."""

    plan: SearchedPlan
    builder: VariantBuilder
    audit: Mapping[str, Any]
    judge: QualityEvaluator | None


def replayed(
    stack: ExitStack, graph: QuantizableGraph, plan: Plan, images: Images, evaluator: QualityEvaluator | None, progress: ProgressCallback
) -> FoundPlan:
    """The plan as it is. Raises ExportError if it was made for another graph or other images; ImageError."""
    builder = replayed_builder(stack, graph, plan, roles_of(images, None).rounded_with, progress)
    return FoundPlan(plan=plan, builder=builder, audit={}, judge=_judge_of(plan, evaluator))


def _judge_of(plan: Plan, evaluator: QualityEvaluator | None) -> QualityEvaluator | None:
    """The images that did not choose the plan."""
    return judging_half(evaluator) if plan.divided and evaluator is not None else evaluator


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What products are searched with: the nearest builder, what was tried for it, and the images that it was calibrated with."""

    builder: VariantBuilder
    steps: tuple[RecoveryStep, ...]
    images: int
    sha256: str


class PlanSearch:
    """One search, or one plan picked from the curve of `settings.plan`. `stack`: closes what is opened.

    Raises ExportError without images, or for a plan that has no such curve; ImageError.
    """

    def __init__(
        self,
        stack: ExitStack,
        graph: QuantizableGraph,
        settings: Int8Settings,
        images: Images,
        evaluator: QualityEvaluator | None,
        measuring: Measuring,
        progress: ProgressCallback,
    ) -> None:
        if not images.sample:
            raise ExportError("int8 needs calibration images, and there are none: name data with --calibration, or leave int8 out with --precision fp32")
        self.stack = stack
        self.graph = graph
        self.settings = settings
        self.measuring = measuring
        self.progress = progress
        self.evaluator = evaluator
        self.roles = roles_of(images, None if evaluator is None else evaluator.examples)
        self.probes = probes_of(graph, self.roles.chosen)
        self.judged = self.probes if self.roles.judged is None else probes_of(graph, self.roles.judged_within(self.probes))
        judges_labels = evaluator is None and self.roles.unseen
        self.labels = LabelJudge.of(graph, self.roles.fitted, self.judged) if judges_labels else None

    def found(self) -> FoundPlan:
        """The plan, with its builder."""
        settings, budget = self.settings, self.settings.budget
        start = self._started() if settings.plan is None else self._started_from(settings.plan)
        effort = settings.recover if settings.plan is None else OFF if settings.plan.recovery is None else settings.plan.recovery.effort
        recovery = RecoveryChoice(self.stack, start.builder, self.roles.rounded_with, effort, budget.seconds / 2, self.progress)
        if settings.plan is None:
            result, curve, judge, divided = self._searched(start.builder, recovery)
        else:
            result, curve = _result_of(settings.plan), _curve_of(settings.plan)
            judge, divided = _judge_of(settings.plan, self.evaluator), settings.plan.divided
        pick = settings.pick or "fastest"
        result = taken(result, curve, curve.pick(pick), pick)
        chosen = recovery.chosen(result.integer or result.fastest)
        builder, steps = chosen.builder, (*start.steps, *([] if chosen.step is None else [chosen.step]))
        plan = self._plan(builder, result, start)
        audit = {**self._clipped(builder), "ranges": builder.method, "judged_by": judge and len(judge.examples), "undecided": sorted(result.undecided)}
        return FoundPlan(plan=replace(plan, recovery=chosen.facts, steps=steps, curve=curve, divided=divided), builder=builder, audit=audit, judge=judge)

    def _started(self) -> _Start:
        graph, roles, settings = self.graph, self.roles, self.settings
        values = observed_values(graph.model, graph.target)
        calibration = calibrate(graph.model, values, graph.contract, roles.fitted, counter(self.progress, "calibrating int8", len(roles.fitted)))
        rung = Ladder(self.stack, roles, self.probes, settings.recover, settings.budget.seconds, self.progress).climb(graph, calibration)
        return _Start(builder=rung.builder, steps=rung.steps, images=calibration.images, sha256=calibration.sha256)

    def _started_from(self, plan: Plan) -> _Start:
        """With the ranges of a plan, and nothing tried again."""
        if plan.graph_sha256 != self.graph.sha256:
            raise ExportError("the int8 plan was made for another graph, so no other plan of its curve can be picked: leave --plan out to make a new one")
        builder = VariantBuilder(self.graph.smoothed(plan.smoothing), plan.ranges, self.probes, plan.method)
        steps = tuple(each for each in plan.steps if each.name != ROUNDED)
        return _Start(builder=self.stack.enter_context(builder), steps=steps, images=plan.calibration_images, sha256=plan.calibration_sha256)

    def _searched(self, builder: VariantBuilder, recovery: RecoveryChoice) -> tuple[SearchResult, Curve, QualityEvaluator | None, bool]:
        """The fastest plan, the curve from there, what has the last word, and whether it has half of the images."""
        settings, budget = self.settings, self.settings.budget
        timer: Timer | None = None
        if settings.target.is_here:
            timer = self.stack.enter_context(self.measuring.pair_timer(batch=_search_batch(builder, settings.batch, self.measuring)))
        result = search(builder, timer, seconds=budget.seconds, progress=self.progress)
        until = time.monotonic() + budget.seconds * WALK_SHARE

        def has_time() -> bool:
            return time.monotonic() < until

        def builder_of(names: Names) -> VariantBuilder:
            return recovery.builder(names) if names in recovery.known or has_time() else builder

        def speedup(names: Names) -> float | None:
            if timer is None:
                return None
            times = timer.compare(builder.file(frozenset()), builder.file(names))
            return times.first_ms / times.second_ms

        judge = BudgetJudge(builder.graph.contract, builder_of, self.evaluator, self.labels, budget)
        curve = walked(result, judge.keeps, lambda names: builder_of(names).sqnr_db(names), speedup, has_time, self.progress)
        return result, curve, judge.evaluator, judge.divided

    def _clipped(self, builder: VariantBuilder) -> dict[str, Any]:
        """What clips on images that were not calibrated with."""
        audited = self.roles.audited
        self.progress("auditing what clips", 0, 1)
        ranges = {name: pair for name, pair in builder.ranges.items() if np.isfinite(pair).all()}
        found = [asdict(each) for each in clipping(builder.graph.model, ranges, builder.graph.contract, audited)] if audited else None
        return {"clipped": found, "clipping_images": len(audited)}

    def _plan(self, builder: VariantBuilder, result: SearchResult, start: _Start) -> SearchedPlan:
        graph, judged, labels = builder.graph, self.judged, self.labels
        integer = result.integer or result.fastest  # if the budget left nothing, the plan is for users who want int8 in any case
        running = _running(builder, integer) if graph.target.is_here else set(integer)  # kernels of other machines cannot be asked here
        reasons = {**graph.not_quantizable, **result.reasons}
        no_kernel = "onnxruntime has no integer kernel for it here"
        decibels, error = builder.sqnr_and_error_db(integer, judged)
        return SearchedPlan(
            target=graph.target.name,
            formats=graph.target.formats,
            method=builder.method,
            integer=tuple(name for name in graph.quantizable if name in integer),
            kept_float={name: no_kernel if name in integer else reasons.get(name, no_kernel) for name in graph.macs if name not in (running & integer)},
            integer_share=round(share_of_macs(graph.macs, running & integer), 6),
            ranges=builder.ranges,
            graph_sha256=graph.sha256,
            calibration_images=start.images,
            calibration_sha256=start.sha256,
            batch=self.settings.batch,
            sqnr_db=finite_db(decibels),
            sqnr_error_db=None if error is None else finite_db(error),
            sqnr_elsewhere=_sqnr_elsewhere(builder, integer, self.roles.chosen),
            findings=result.findings(graph.macs),
            agreement={name: round(share, 6) for name, share in builder.agreement(integer).items()},
            probes=judged.images,
            unseen=self.roles.unseen,
            changes=None if labels is None else labels.changes(builder, integer, judged),
            smoothing=graph.smoothing,
        )


def _result_of(plan: Plan) -> SearchResult:
    """What a search had found when the plan was made."""
    fastest = frozenset(_curve_of(plan).order)
    reasons = {name: reason for name, reason in plan.kept_float.items() if name not in fastest}
    speedups = {name: each.speedup for name, each in plan.findings.items() if each.speedup is not None}
    errors = {name: each.sqnr_db for name, each in plan.findings.items() if each.sqnr_db is not None}
    return SearchResult(integer=fastest, fastest=fastest, reasons=reasons, speedups=speedups, sqnr_db=errors)


def _curve_of(plan: Plan) -> Curve:
    if plan.curve is None:
        raise ExportError("this int8 plan has no curve of plans to pick from (an older edgeport made it): leave --plan out to make a new one")
    return plan.curve


def _search_batch(builder: VariantBuilder, batch: int, measuring: Measuring) -> int:
    """`batch`, or less if fp32 would take too long for dozens of comparisons."""
    with measuring.pair_timer(batch=1, rounds=1) as timer:
        one = timer.compare(builder.file(frozenset()), builder.file(frozenset())).first_ms
    return max(1, min(batch, int(SEARCH_BATCH_MS / one)))


def _running(builder: VariantBuilder, integer: Names) -> set[str]:
    """The products that onnxruntime runs as integers here. One that a pass merged into the convolution after it counts as that one."""
    made = builder.file(integer).read_bytes()
    merged = integer - {node.name for node in every_node(onnx.load_from_string(made).graph)}
    return integer_nodes(made) & set(builder.graph.macs) | merged


def _sqnr_elsewhere(builder: VariantBuilder, integer: Names, examples: Sequence[Example]) -> dict[str, float]:
    """How near int8 stays to fp32 at the ends of the promised heights and widths."""
    contract, pixels = builder.graph.contract, builder.graph.contract.pixels
    sides = [name for name in ("height", "width") if name in contract.axes]
    if not sides or pixels.resize == "keep":
        return {}
    own = {"height": pixels.height, "width": pixels.width}
    smallest = own | {name: contract.axes[name].low for name in sides}
    largest = own | {name: contract.axes[name].nearest(min(contract.axes[name].high, FURTHEST * own[name])) for name in sides}
    found = {}
    for size in (smallest, largest):
        if size != own:
            probes = Probes(builder.graph, pixel_arrays(contract, examples, (size["height"], size["width"])))
            found[f"{size['height']}x{size['width']}"] = finite_db(builder.sqnr_db_on(integer, probes))
    return found
