"""The int8 variant of an export: calibrated, searched by measuring or replayed from a plan, and timed against fp32."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeport_export.benchmark.runner import SPLIT_BATCH, EngineSpec, LatencyStats, PairTimer, benchmark
from edgeport_export.errors import ExportError, NoIntegerProducts
from edgeport_export.progress import ProgressCallback, counter
from edgeport_export.rewrites.finalize import finalize, finalize_fp32
from edgeport_export.rewrites.nodes import every_node
from edgeport_export.validation.quality import QualityEvaluator, drop, metric_is_sufficient, unseen_outputs
from edgeport_runtime import Contract, Example
from edgeport_runtime.engine import Engine, divides
from edgeport_runtime.threads import usable_threads

from .budget import Budget
from .calibration import Calibration, calibrate, clipping, pixel_arrays
from .image_roles import Images, LabelJudge, Roles, probes_of, roles_of
from .macs import integer_nodes, share_of_macs
from .plan import Plan, SearchedPlan
from .qdq import observed_values
from .recovery_choice import RecoveryChoice, replayed_builder
from .search import SearchResult, closest_ranges, search, within_budget
from .targets import Target
from .variants import Names, Probes, QuantizableGraph, VariantBuilder

REASONS = 3  # named if nothing can run as integers
FURTHEST = 2  # times its own size at which errors are measured, too, if the contract promises such sizes
ATTEMPTS = 3  # if int8 loses: one process in three ran AttentionNet on one image in 0.25 ms all its life, the others in 0.16
BENCHMARK_ROUNDS = 11  # five were not enough on a shared machine to tell 1.00 from 1.15
SEARCH_BATCH_MS = 80.0  # the search times batches that fp32 takes about this long for


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How time is measured. Tests replace it by figures that are known."""

    benchmark: Callable[..., Mapping[str, LatencyStats]] = benchmark
    pair_timer: Callable[..., AbstractContextManager[Any]] = PairTimer
    threads: Callable[[], int] = usable_threads


@dataclass(frozen=True, kw_only=True)
class Int8Settings:
    """What is asked of an int8 variant. `batch`: the batch size at which speed is measured. `plan`: replayed instead of a search.

    `recover`: the effort of rounding weights for each other, a key of EFFORTS, or OFF.
    """

    target: Target
    budget: Budget
    batch: int
    plan: Plan | None = None
    recover: str = "quick"


@dataclass(frozen=True, kw_only=True)
class MeasuredVariant:
    """An int8 variant before anybody has decided about it.

    `model`: the file's bytes. `plan`: searched, or a whole one that was replayed. `latencies`: batch size -> engine -> what was measured; empty
    if the target is another kind of machine. `audit`: for the evidence.
    """

    model: bytes
    plan: SearchedPlan
    latencies: Mapping[int, Mapping[str, LatencyStats]]
    audit: Mapping[str, Any]


def int8_unsupported_reason(contract: Contract) -> str | None:
    """Why no int8 variant can be made for this contract, and what to do; None if one can."""
    if len(contract.inputs) != 1 or contract.inputs[0].pixels is None:
        return "int8 is calibrated with images, so it is made for networks with one image input: leave int8 out with --precision fp32"
    if not any(each.kind == "pixels" or each.dtype.startswith("float") for each in contract.outputs):
        return (
            "every output is integers, on which int8's error cannot be measured: let the network return the numbers that they are made of, or --precision fp32"
        )
    return None


def make_int8_variant(
    traced: onnx.ModelProto,
    contract: Contract,
    settings: Int8Settings,
    images: Images,
    evaluator: QualityEvaluator | None,
    measuring: Measuring,
    progress: ProgressCallback,
) -> MeasuredVariant:
    """Calibrate and search, or replay a plan; then time the variant against fp32.

    `evaluator`: judges variants on held-out images with their truth; None if there are none. Raises ExportError without images to calibrate with, or
    if a plan was made for another graph or target; ImageError for unreadable images; NoIntegerProducts.
    """
    _require_target(settings)
    graph = QuantizableGraph.of(traced, contract, settings.target)
    if not graph.quantizable:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(graph.not_quantizable.items())[:REASONS])
        raise NoIntegerProducts(f"no product of this network can run as integers{f' ({reasons})' if reasons else ''}, so there is no int8 variant of it")
    plan: SearchedPlan
    with ExitStack() as stack:
        if settings.plan is not None:
            plan, audit, builder = _replayed(stack, graph, settings.plan, images, progress)
        else:
            plan, audit, builder = _searched(stack, graph, settings, images, evaluator, measuring, progress)
        model = finalize(builder.model(frozenset(plan.integer)), contract)
        progress("timing fp32 and int8", 0, 1)
        sizes = dict.fromkeys((settings.batch, 1)) if settings.target.is_here else ()
        latencies = {size: _latencies(finalize_fp32(traced, contract), model, contract, size, measuring) for size in sizes}
    return MeasuredVariant(model=model, plan=plan, latencies=latencies, audit=audit)


def _require_target(settings: Int8Settings) -> None:
    plan, asked = settings.plan, settings.target.name
    if plan is not None and plan.target != asked:
        raise ExportError(f"the int8 plan was made for the target {plan.target}, not {asked}: ask for that one, or make a new plan")


def _replayed(stack: ExitStack, graph: QuantizableGraph, plan: Plan, images: Images, progress: ProgressCallback) -> tuple[Plan, dict[str, Any], VariantBuilder]:
    return plan, {}, replayed_builder(stack, graph, plan, roles_of(images, None).rounded_with, progress)


def _searched(
    stack: ExitStack,
    graph: QuantizableGraph,
    settings: Int8Settings,
    images: Images,
    evaluator: QualityEvaluator | None,
    measuring: Measuring,
    progress: ProgressCallback,
) -> tuple[SearchedPlan, dict[str, Any], VariantBuilder]:
    if not images.sample:
        raise ExportError("int8 needs calibration images, and there are none: name data with --calibration, or leave int8 out with --precision fp32")
    roles = roles_of(images, None if evaluator is None else evaluator.examples)
    values = observed_values(graph.model, graph.target)
    calibration = calibrate(graph.model, values, graph.contract, roles.fitted, counter(progress, "calibrating int8", len(roles.fitted)))
    probes = probes_of(graph, roles.chosen)
    judged = probes if roles.judged is None else probes_of(graph, roles.judged_within(probes))
    builder = closest_ranges(stack, graph, calibration, probes, progress)
    timer = stack.enter_context(measuring.pair_timer(batch=_search_batch(builder, settings.batch, measuring))) if settings.target.is_here else None
    budget, labels = settings.budget, LabelJudge.of(graph, roles.fitted, judged) if evaluator is None and roles.unseen else None
    result = search(builder, timer, seconds=budget.seconds, progress=progress)
    recovery = RecoveryChoice(stack, builder, roles.rounded_with, settings.recover, budget.seconds / 2, progress)
    builder, _ = recovery.builder(result.integer)
    result = within_budget(result, partial(_keeps_budget, builder, evaluator=evaluator, labels=labels, budget=budget), progress)
    builder, facts = recovery.builder(result.integer or result.fastest)
    ranges = {name: pair for name, pair in builder.ranges.items() if np.isfinite(pair).all()}
    progress("auditing what clips", 0, 1)
    clipped = [asdict(each) for each in clipping(graph.model, ranges, graph.contract, roles.audited)] if roles.audited else None
    plan = replace(_plan(builder, result, calibration, settings.batch, roles, judged, labels), recovery=facts)
    return plan, {"clipped": clipped, "clipping_images": len(roles.audited), "ranges": builder.method, "recovery": recovery.told}, builder


def _search_batch(builder: VariantBuilder, batch: int, measuring: Measuring) -> int:
    """`batch`, or less if fp32 would take too long for dozens of comparisons."""
    with measuring.pair_timer(batch=1, rounds=1) as timer:
        one = timer.compare(builder.file(frozenset()), builder.file(frozenset()))[0]
    return max(1, min(batch, int(SEARCH_BATCH_MS / one)))


def _keeps_budget(builder: VariantBuilder, names: Names, *, evaluator: QualityEvaluator | None, labels: LabelJudge | None, budget: Budget) -> bool:
    if labels is not None:
        return labels.changes(builder, names, labels.chosen).percent <= budget.max_changed
    if evaluator is None:
        return builder.sqnr_db(names) >= budget.sqnr_floor_db
    contract = builder.graph.contract
    if not metric_is_sufficient(evaluator.torch, unseen_outputs(contract), budget.max_drop) and builder.sqnr_db(names) < budget.sqnr_floor_db:
        return False
    with Engine(builder.file(names).read_bytes(), contract, builder.graph.target.session) as engine:
        return drop(evaluator.torch, evaluator.measure(engine)) <= budget.max_drop


def _plan(
    builder: VariantBuilder, result: SearchResult, calibration: Calibration, batch: int, roles: Roles, judged: Probes, labels: LabelJudge | None
) -> SearchedPlan:
    graph = builder.graph
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
        calibration_images=calibration.images,
        calibration_sha256=calibration.sha256,
        batch=batch,
        sqnr_db=_rounded(decibels),
        sqnr_error_db=None if error is None else _rounded(error),
        sqnr_elsewhere=_sqnr_elsewhere(builder, integer, roles.chosen),
        findings=result.findings(graph.macs),
        agreement={name: round(share, 6) for name, share in builder.agreement(integer).items()},
        probes=judged.images,
        unseen=roles.unseen,
        changes=None if labels is None else labels.changes(builder, integer, judged),
    )


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
            found[f"{size['height']}x{size['width']}"] = _rounded(builder.sqnr_db_on(integer, probes))
    return found


def _rounded(decibels: float) -> float:
    return round(max(-999.0, min(999.0, decibels)), 2)


def _latencies(fp32: bytes, int8: bytes, contract: Contract, batch: int, measuring: Measuring) -> dict[str, LatencyStats]:
    """Benchmark fp32 and int8, and their split-batch modes if the batch divides by the threads.

    If int8 loses, repeat in new processes, up to ATTEMPTS times, and keep each engine's fastest run, with the split-batch run beside it.
    """
    with tempfile.TemporaryDirectory() as folder:
        engines = {}
        for name, model in (("fp32", fp32), ("int8", int8)):
            path = Path(folder) / f"{name}.onnx"
            path.write_bytes(model)
            engines[name] = EngineSpec(kind="onnx", path=str(path))
        found = _benchmark(engines, contract, batch, measuring)
        for _ in range(ATTEMPTS - 1):
            if found["int8"].lower_quartile_ms <= found["fp32"].lower_quartile_ms:
                break
            again = _benchmark(engines, contract, batch, measuring)
            for name in engines:
                if again[name].lower_quartile_ms < found[name].lower_quartile_ms:
                    found |= {key: stats for key, stats in again.items() if key in (name, name + SPLIT_BATCH)}
        return found


def _benchmark(engines: Mapping[str, EngineSpec], contract: Contract, batch: int, measuring: Measuring) -> dict[str, LatencyStats]:
    split = {name + SPLIT_BATCH: replace(each, split_batch=True) for name, each in engines.items()}
    if divides(contract, batch, measuring.threads()):
        try:
            return dict(measuring.benchmark({**engines, **split}, batch=batch, rounds=BENCHMARK_ROUNDS))
        except ExportError:  # twice as many processes may be more than this machine can hold, and nothing depends on them
            pass
    return dict(measuring.benchmark(engines, batch=batch, rounds=BENCHMARK_ROUNDS))
