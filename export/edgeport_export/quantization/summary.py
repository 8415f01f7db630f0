"""The figures of every variant that an export made, kept or not: what people compare, in the evidence and in the command's table."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from edgeport_export.benchmark.runner import SPLIT_BATCH, LatencyStats, disturbance
from edgeport_export.validation.quality import QualityReport, too_few_examples
from edgeport_runtime.scorers import metric_unit

from .budget import Budget
from .plan import Plan

Latencies = Mapping[int, Mapping[str, LatencyStats]]  # batch size -> engine -> measured times


def summarize(
    sizes: Mapping[str, int], latencies: Latencies, quality: QualityReport | None, plan: Plan | None, budget: Budget, noticed: Sequence[str] = ()
) -> dict[str, Any]:
    """Figures that JSON can hold.

    `variants`: precision -> bytes, `ms_per_call` and `speedup` over fp32 by batch size, `split_batch_speedup`, `load_ms`, `peak_mib` (most memory
    that its process held), `quality`, `changed_labels`, `sqnr_db` from fp32 here and elsewhere, `integer_share` of the MACs. What does not apply,
    or was not measured, is None. `recovery`: what was tried to bring int8 nearer to fp32, with its decibels before and after. `integer`: kind of
    product -> how many run as integers, and of how many. `kept_float`: product -> reason.
    `warnings`: sentences.

    `sizes`: bytes of every file that was made. `plan`: of int8, if there is one, also if int8 is left out of the bundle. `noticed`: what was
    noticed about the network's answers, in sentences.
    """
    return {
        "variants": {precision: _figures(precision, sizes[precision], latencies, quality, plan if precision == "int8" else None) for precision in sizes},
        "recovery": [] if plan is None else [asdict(step) for step in plan.steps],
        "integer": {} if plan is None else integer_counts(plan),
        "kept_float": {} if plan is None else dict(plan.kept_float),
        "warnings": [*noticed, *_warnings(latencies, quality, plan, budget)],
    }


def _figures(precision: str, size: int, latencies: Latencies, quality: QualityReport | None, plan: Plan | None) -> dict[str, Any]:
    timed = {batch: each for batch, each in latencies.items() if precision in each}
    first = next(iter(timed.values()), {}).get(precision)
    gains = [gain for batch in timed if (gain := split_gain(latencies, batch, precision)) is not None]
    return {
        "bytes": size,
        "ms_per_call": {str(batch): round(each[precision].lower_quartile_ms, 4) for batch, each in timed.items()},
        "speedup": {str(batch): round(each["fp32"].lower_quartile_ms / each[precision].lower_quartile_ms, 3) for batch, each in timed.items()},
        "split_batch_speedup": round(gains[0], 3) if gains else None,
        "load_ms": None if first is None or first.load_ms is None else round(first.load_ms, 1),
        "peak_mib": None if first is None or first.peak_bytes is None else round(first.peak_bytes / 2**20, 1),
        "quality": None if quality is None else quality.qualities[precision].value,
        "changed_labels": _changed_labels(precision, quality, plan),
        "sqnr_db": None if plan is None else plan.sqnr_db,
        "sqnr_elsewhere_db": {} if plan is None else dict(plan.sqnr_elsewhere),
        "agreement": {} if plan is None else dict(plan.agreement),
        "integer_share": None if plan is None else plan.integer_share,
    }


def _changed_labels(precision: str, quality: QualityReport | None, plan: Plan | None) -> int | None:
    if quality is not None:
        return quality.changed.get(precision)
    return None if plan is None or plan.changes is None else plan.changes.clear_changed + plan.changes.close_changed


def split_gain(latencies: Latencies, batch: int, precision: str) -> float | None:
    """How many times as fast batches are if each thread runs images of its own; None if that was not measured.

    The median over rounds: both take turns, and a few percent drown in the drift of a shared machine between rounds.
    """
    measured = latencies.get(batch, {})
    split = measured.get(precision + SPLIT_BATCH)
    if split is None:
        return None
    return statistics.median(whole / part for whole, part in zip(measured[precision].rounds_ms, split.rounds_ms, strict=True))


def integer_counts(plan: Plan) -> dict[str, dict[str, int]]:
    """How many convolutions and matrix products run as integers, and of how many."""
    convolutions = [name for name in plan.findings if name.rpartition("/")[2].startswith("Conv")]  # "layer1.0.conv1/Conv", or "Conv_2"
    products = [name for name in plan.findings if name not in convolutions]
    kinds = {"convolutions": convolutions, "matrix products": products}
    return {kind: {"integer": sum(each not in plan.kept_float for each in names), "all": len(names)} for kind, names in kinds.items() if names}


def _warnings(latencies: Latencies, quality: QualityReport | None, plan: Plan | None, budget: Budget) -> list[str]:
    """Everything that makes the figures less sure than they look."""
    found = []
    busy = disturbance(stats for each in latencies.values() for stats in each.values())
    if busy is not None:
        found.append(busy)
    if plan is None:
        return found
    if "int8" not in next(iter(latencies.values()), {}):
        found.append(f"the speed of int8 was not measured, because this machine is no {plan.target}")
    if quality is None:
        seen = "" if plan.unseen or not plan.probes else ", some of those that it was calibrated with"
        what = "its distance from fp32 was measured" if plan.changes is None else "its labels were compared with fp32's"
        found.append(f"there were no held-out images to evaluate int8 on: {what} on {plan.probes} images{seen}")
    elif too_few_examples(quality.qualities["torch"], budget.max_drop):
        found.append(f"{quality.qualities['torch'].count} held-out images cannot tell a loss of {budget.max_drop:g} points, so int8 must stay near fp32, too")
    elif quality.unseen and metric_unit(quality.qualities["torch"].metric) is not None:
        found.append("the metric looks at the first output alone, so int8 must stay near fp32 in the others, too")
    if plan.sqnr_error_db is not None and quality is None and plan.changes is None and abs(plan.sqnr_db - budget.sqnr_floor_db) < 2 * plan.sqnr_error_db:
        found.append(f"int8's {plan.sqnr_db:.1f} dB are known to {plan.sqnr_error_db:.1f} dB only, so other images may decide otherwise")
    far = [f"{decibels:.1f} dB at {size}" for size, decibels in plan.sqnr_elsewhere.items() if decibels < budget.sqnr_floor_db]
    if far:
        found.append(f"int8 is further from fp32 at other sizes: {', '.join(far)}")
    return found
