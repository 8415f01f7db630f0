"""The int8 variant of an export: calibrated, searched by measuring or replayed from a plan, and timed against fp32."""

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from edgeport_export.benchmark.runner import SPLIT_BATCH, EngineSpec, LatencyStats
from edgeport_export.errors import ExportError, NoIntegerProducts
from edgeport_export.progress import ProgressCallback
from edgeport_export.rewrites.finalize import finalize, finalize_fp32
from edgeport_export.validation.quality import QualityEvaluator
from edgeport_runtime import Contract
from edgeport_runtime.engine import divides

from .image_roles import Images
from .int8_settings import Int8Settings, Measuring
from .plan import SearchedPlan
from .plan_search import PlanSearch, replayed
from .variants import QuantizableGraph

REASONS = 3  # named if nothing can run as integers
CLEAR_SPEEDUP = 1.25  # int8 this many times as fast in one process of each variant would win in others, too
ATTEMPTS = 3  # unless it is clear: one process in three ran AttentionNet on one image in 0.25 ms all its life, the others in 0.16
BENCHMARK_ROUNDS = 11  # five were not enough on a shared machine to tell 1.00 from 1.15


@dataclass(frozen=True, kw_only=True)
class MeasuredVariant:
    """An int8 variant before anybody has decided about it.

    `model`: the file's bytes. `plan`: searched, or a whole one that was replayed. `latencies`: batch size -> engine -> what was measured; empty
    if the target is another kind of machine. `audit`: for the evidence. `judge`: evaluates it on images that did not choose it; None without truth.
    """

    model: bytes
    plan: SearchedPlan
    latencies: Mapping[int, Mapping[str, LatencyStats]]
    audit: Mapping[str, Any]
    judge: QualityEvaluator | None = None


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
    with ExitStack() as stack:
        if settings.plan is not None and settings.pick is None:
            found = replayed(stack, graph, settings.plan, images, evaluator, progress)
        else:
            found = PlanSearch(stack, graph, settings, images, evaluator, measuring, progress).found()
        model = finalize(found.builder.model(frozenset(found.plan.integer)), contract)
        progress("timing fp32 and int8", 0, 1)
        sizes = dict.fromkeys((settings.batch, 1)) if settings.target.is_here else ()
        latencies = {size: _latencies(finalize_fp32(traced, contract), model, contract, size, measuring) for size in sizes}
    return MeasuredVariant(model=model, plan=found.plan, latencies=latencies, audit=found.audit, judge=found.judge)


def _require_target(settings: Int8Settings) -> None:
    plan, asked = settings.plan, settings.target.name
    if plan is not None and plan.target != asked:
        raise ExportError(f"the int8 plan was made for the target {plan.target}, not {asked}: ask for that one, or make a new plan")


def _latencies(fp32: bytes, int8: bytes, contract: Contract, batch: int, measuring: Measuring) -> dict[str, LatencyStats]:
    """Benchmark fp32 and int8, and their split-batch modes if the batch divides by the threads.

    Unless int8 is faster by a clear margin, repeat in new processes, up to ATTEMPTS times, and keep each engine's fastest run, with the split-batch
    run beside it. Whoever wins by little may have had the better process: MTCNN's O-Net with 0.03 % integers once was 1.12 times as fast as in float.
    """
    with tempfile.TemporaryDirectory() as folder:
        engines = {}
        for name, model in (("fp32", fp32), ("int8", int8)):
            path = Path(folder) / f"{name}.onnx"
            path.write_bytes(model)
            engines[name] = EngineSpec(kind="onnx", path=str(path))
        found = _benchmark(engines, contract, batch, measuring)
        for _ in range(ATTEMPTS - 1):
            if found["int8"].lower_quartile_ms * CLEAR_SPEEDUP <= found["fp32"].lower_quartile_ms:
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
