"""The whole export, readable as its own summary: check, trace, compare with PyTorch, quantize, evaluate, decide, write."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeport_runtime import Contract
from edgeport_runtime.engine import Engine
from edgeport_runtime.evaluate import Example
from edgeport_runtime.manifest import Selection

from .benchmark import runner
from .bundle.environment import machine
from .bundle.golden_cases import GoldenAnswers, answer_golden, golden_inputs
from .bundle.staging import free_place, staged
from .bundle.writer import BundleContents, write_contents
from .errors import ExportError, NoIntegerProducts, ParityError
from .network.contracts import require_classes
from .network.preflight import check_behavior, check_modules
from .network.reference import TorchReference, prepared
from .options import ExportOptions
from .progress import ProgressCallback, counter, no_progress
from .quantization.decision import decide
from .quantization.int8_variant import MeasuredVariant, Measuring, calibration_sample, int8_unsupported_reason, make_int8_variant
from .quantization.plan import Plan
from .rewrites.finalize import finalize
from .tracing.exporter import Traced, trace
from .validation.parity import Parity, full_sweep, measure_parity, remedy
from .validation.quality import QualityEvaluator, QualityReport, quality_evaluator

Latencies = Mapping[int, Mapping[str, runner.LatencyStats]]  # batch size -> engine -> what was measured


def export_bundle(
    network: nn.Module,
    contract: Contract,
    out: str | Path,
    *,
    name: str,
    calibration: Sequence[Example] = (),
    held_out: Sequence[Example] = (),
    provenance: Mapping[str, str] | None = None,
    options: ExportOptions | None = None,
    force: bool = False,
    progress: ProgressCallback = no_progress,
) -> Path:
    """Make a bundle from a trained network and write it to `out`, whole or not at all. The network stays as it is.

    `calibration`: images for int8. `held_out`: images with their truth, on which quality is evaluated; both in the contract's task.
    Raises OutputError if `out` exists, ParityError if fp32 disagrees with PyTorch, ExportError and its kin otherwise.
    """
    options = ExportOptions() if options is None else options
    _require_kinds({"network": network, "contract": contract, "out": out, "name": name, "options": options})
    request = _Request(contract=contract, calibration=calibration, held_out=held_out, options=options, progress=progress)
    place = free_place(Path(out), force=force)
    reference, evaluator = _checked(network, request)
    fp32 = _fp32(network, reference, request)
    fp16 = _fp16(network, request)
    int8 = _int8(fp32.traced, evaluator, request)
    models = {"fp32": fp32.model, **({} if int8.variant is None else {"int8": int8.variant.model}), **fp16}
    with _engines(models, request) as engines:
        quality = _evaluated(engines, evaluator, request)
        decision = _decided(int8, models, quality, request)
        golden = _golden(reference, {each: engines[each] for each in decision.kept}, fp32.parity, request)
    evidence = _evidence(fp32.parity, quality, _latencies(int8, fp32.model, request), decision, request)
    kept = {each: models[each] for each in decision.kept}
    with staged(place, force=force) as folder:
        write_contents(folder, BundleContents(name, contract, kept, decision.stored_plan, decision.selection, golden, provenance or {}, evidence))
        progress("writing", 0, 1)
    return place


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What one export was asked for. Raises ExportError, ContractError if it makes no sense."""

    contract: Contract
    calibration: Sequence[Example]
    held_out: Sequence[Example]
    options: ExportOptions
    progress: ProgressCallback

    def __post_init__(self) -> None:
        require_classes(self.contract)
        largest, asked = self.contract.largest_batch, self.options.benchmark_batch
        if largest < asked != ExportOptions.benchmark_batch:
            raise ExportError(f"speed was to be measured at batches of {asked} (--batch), but the contract allows at most {largest}")
        for images, which in ((self.calibration, "calibration"), (self.held_out, "held_out")):
            if not isinstance(images, Sequence) or not all(isinstance(each, Example) for each in images):
                raise ExportError(f"{which} takes a list of edgeport_runtime.evaluate.Example(source=…, truth=…), got {_kind(images)}")
        if self.options.requires_int8 and self.int8_refusal:
            raise ExportError(self.int8_refusal)

    @property
    def wants_int8(self) -> bool:
        return "int8" in self.options.precisions and bool(self.calibration or self.options.requires_int8)

    @property
    def int8_refusal(self) -> str:
        """Why int8 was wanted and cannot be made; empty if it can, or was not wanted."""
        return int8_unsupported_reason(self.contract) if self.wants_int8 else ""


def _require_kinds(given: Mapping[str, Any]) -> None:
    """Raises ExportError if an argument is of another kind."""
    kinds: Mapping[str, tuple[tuple[type, ...], str]] = {
        "network": ((nn.Module,), "a torch.nn.Module"),
        "contract": ((Contract,), "an edgeport_runtime.Contract"),
        "out": ((str, Path), "a str or a Path"),
        "name": ((str,), "a str"),
        "options": ((ExportOptions,), "an ExportOptions"),
    }
    for which, (types, words) in kinds.items():
        if not isinstance(given[which], types):
            raise ExportError(f"{which} must be {words}, got {type(given[which]).__name__}")


def _kind(images: Any) -> str:
    others = [type(each).__name__ for each in images if not isinstance(each, Example)] if isinstance(images, list | tuple) else []
    return f"{type(images).__name__}{f' of {others[0]}' if others else ''}"


def _checked(network: nn.Module, request: _Request) -> tuple[TorchReference, QualityEvaluator | None]:
    """PyTorch's side of all comparisons, after the network and the metric were checked."""
    check_modules(network, request.contract)
    reference = TorchReference(network, request.contract)
    evaluator = quality_evaluator(reference, request.held_out, request.options.metric)
    request.progress("preflight", 0, 1)
    check_behavior(reference)
    return reference, evaluator


@dataclass(frozen=True, kw_only=True)
class _Fp32:
    traced: Traced
    model: bytes
    parity: Parity


def _fp32(network: nn.Module, reference: TorchReference, request: _Request) -> _Fp32:
    """Trace a copy that never ran, so that nothing is left in it from a run. Raises ParityError naming the ranges in which the graph is right."""
    request.progress("tracing", 0, 1)
    contract, traced = request.contract, trace(prepared(network), request.contract)
    model = finalize(traced.model, contract)
    parity = measure_parity(reference, model, sizes=full_sweep(reference, traced.guards), progress=request.progress)
    if not parity:
        raise ParityError(f"the fp32 graph disagrees with PyTorch, so no bundle was written; {remedy(parity, contract, traced.guards)}{parity}")
    return _Fp32(traced=traced, model=model, parity=parity)


def _fp16(network: nn.Module, request: _Request) -> dict[str, bytes]:
    """The fp16 variant if it was asked for; before int8, which takes minutes. Raises ExportError, which says that fp16 alone fails."""
    if "fp16" not in request.options.precisions:
        return {}
    request.progress("tracing fp16", 0, 1)
    try:
        return {"fp16": finalize(trace(prepared(network), request.contract, torch.float16).model, request.contract)}
    except ExportError as error:
        raise ExportError(f"fp32 was made, but fp16 cannot be, so no bundle was written; leave fp16 out with --precision: {error}") from error


@dataclass(frozen=True, kw_only=True)
class _Int8:
    """An int8 variant, or the reason why there is none."""

    variant: MeasuredVariant | None = None
    reason: str = "the bundle was made without int8"


def _int8(traced: Traced, evaluator: QualityEvaluator | None, request: _Request) -> _Int8:
    options = request.options
    if not request.wants_int8:
        return _Int8()
    if request.int8_refusal:
        return _Int8(reason=request.int8_refusal)
    sample = calibration_sample(request.calibration, options.calibration_images)
    measuring = Measuring(benchmark=runner.benchmark, pair_timer=runner.PairTimer)
    try:
        variant = make_int8_variant(traced.model, request.contract, options.int8(request.contract), sample, evaluator, measuring, request.progress)
    except NoIntegerProducts as reason:
        if options.requires_int8:
            raise
        return _Int8(reason=str(reason))
    return _Int8(variant=variant)


@contextmanager
def _engines(models: Mapping[str, bytes], request: _Request) -> Iterator[dict[str, Engine]]:
    """An engine for each variant; they are closed before anything is timed."""
    session = request.options.int8(request.contract).target.session
    with ExitStack() as stack:
        yield {precision: stack.enter_context(Engine(model, request.contract, session)) for precision, model in models.items()}


def _evaluated(engines: Mapping[str, Engine], evaluator: QualityEvaluator | None, request: _Request) -> QualityReport | None:
    """Quality on held-out images, if there are any.

    Raises ParityError if fp32 gives another label than PyTorch, ExportError if fp16 loses more than is allowed.
    """
    if evaluator is None:
        return None
    count, max_drop = len(evaluator.examples), request.options.max_drop
    quality = evaluator.evaluate(engines, counter(request.progress, "judging on held-out images", count * len(engines)))
    if quality.non_tie_changes.get("fp32"):
        changed = quality.non_tie_changes["fp32"]
        raise ParityError(f"fp32 gives another label than PyTorch on {changed} of {count} held-out images, so no bundle was written")
    if "fp16" in engines and not quality.drop("fp16") <= max_drop:
        raise ExportError(f"fp16 loses {quality.drop('fp16'):.3g} on the held-out images, {max_drop:g} allowed: leave fp16 out with --precision")
    return quality


@dataclass(frozen=True, kw_only=True)
class _Decision:
    """`kept`: precisions that are written. `plan`, `audit`: of int8, also if it is left out."""

    kept: tuple[str, ...]
    selection: Selection
    plan: Plan | None = None
    audit: Mapping[str, Any] | None = None

    @property
    def stored_plan(self) -> dict[str, Any] | None:
        """The plan as the manifest and the evidence hold it."""
        return None if self.plan is None else self.plan.to_dict()


def _decided(int8: _Int8, models: Mapping[str, bytes], quality: QualityReport | None, request: _Request) -> _Decision:
    """Whether int8 is taken. It is left out of the bundle if it neither pays nor was asked for in any case."""
    if int8.variant is None:
        return _Decision(kept=tuple(models), selection=Selection(precision="fp32", reason=int8.reason))
    plan = decide(int8.variant, {precision: len(model) for precision, model in models.items()}, quality, request.options.budget)
    keeps_int8 = "int8" in plan.selection.precisions or request.options.requires_int8
    kept = tuple(each for each in models if each != "int8" or keeps_int8)
    return _Decision(kept=kept, selection=plan.selection, plan=plan, audit=int8.variant.audit)


def _golden(reference: TorchReference, engines: Mapping[str, Engine], parity: Parity, request: _Request) -> GoldenAnswers:
    request.progress("golden cases", 0, 1)
    return answer_golden(golden_inputs(request.contract, request.held_out or request.calibration), reference, engines, parity)


def _latencies(int8: _Int8, fp32: bytes, request: _Request) -> Latencies:
    """What was measured for int8, or fp32 alone."""
    if int8.variant is not None and int8.variant.latencies:
        return int8.variant.latencies
    request.progress("timing", 0, 1)
    batch = request.options.batch(request.contract)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(fp32)
        return {batch: runner.benchmark({"fp32": runner.EngineSpec(kind="onnx", path=str(path))}, batch=batch)}


def _evidence(parity: Parity, quality: QualityReport | None, latencies: Latencies, decision: _Decision, request: _Request) -> dict[str, Any]:
    batch = request.options.batch(request.contract)
    return {
        "parity": {"fp32": parity.to_dict()},
        "quality": None if quality is None else quality.to_dict(),
        "speed": {
            "batch": batch,
            "ms_per_call": {precision: round(stats.median_ms, 4) for precision, stats in latencies[batch].items()},
            "latencies": [{"batch": size, **{name: asdict(stats) for name, stats in each.items()}} for size, each in latencies.items()],
        },
        "int8": None if decision.stored_plan is None else {**decision.stored_plan, "audit": decision.audit},
        "machine": machine(),
    }
