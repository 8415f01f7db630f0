"""The whole export, readable as its own summary: check, trace, compare with PyTorch, quantize, evaluate, decide, write."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeport_runtime import Bundle, Contract
from edgeport_runtime.engine import Engine
from edgeport_runtime.evaluation import Examples
from edgeport_runtime.manifest import Selection

from .benchmark import runner
from .bundle.environment import machine, versions
from .bundle.golden_cases import GoldenAnswers, answer_golden, golden_inputs
from .bundle.staging import reserved, staged
from .bundle.writer import BundleContents, write_contents
from .crowding import considerate_threads
from .errors import ExportError, NoIntegerProducts, ParityError, logged, shortened
from .network.contracts import ImageTask
from .network.preflight import check_behavior, check_modules
from .network.reference import TorchReference, prepared, weights_sha256
from .options import ExportOptions
from .progress import ProgressCallback, counter, no_progress
from .quantization.decision import LONGEST_REASON, decide
from .quantization.image_roles import calibration_sample
from .quantization.int8_settings import Measuring
from .quantization.int8_variant import MeasuredVariant, make_int8_variant
from .quantization.plan import Plan
from .quantization.summary import Latencies, summarize
from .request import ExportRequest, as_path, make_request
from .rewrites.finalize import finalize, finalize_fp32
from .scratch import scratch
from .tracing.exporter import Traced, trace
from .validation.parity import Parity, remedy
from .validation.quality import QualityEvaluator, QualityReport, quality_evaluator
from .validation.sweep import full_sweep, measure_parity


@considerate_threads()
def export_bundle(
    network: nn.Module,
    contract: Contract | ImageTask,
    out: str | Path,
    *,
    name: str | None = None,
    calibration: Examples | None = None,
    held_out: Examples | None = None,
    provenance: Mapping[str, str] | None = None,
    options: ExportOptions | None = None,
    force: bool = False,
    progress: ProgressCallback = no_progress,
) -> Bundle:
    """Make a bundle from a trained network and write it to `out`, whole or not at all. The network stays as it is.

    `contract`: a Contract, or an ImageTask from which `image_contract` makes one by running the network. `name`: the folder's if left out.
    `calibration`: images for int8, as a folder, an iterable of images or a torch Dataset of them; there is no int8 without. `held_out`: images with
    their truth, on which quality is evaluated, as `edgeport_runtime.evaluate` takes them: a folder, or an iterable of Examples or of pairs
    (image, truth). Without it the distance of int8 from fp32 alone decides.
    `provenance`: facts about the network's origin for the manifest, such as checkpoint_sha256; the weights' hash and the packages' versions are added.
    `force`: replace a bundle that is there. `progress`: called with each stage.
    Preprocessing cannot be extended: what the contract's Pixels say is all there is, because the device has to do the very same.

    Raises OutputError if `out` exists, InputError for data of another kind, ParityError if fp32 disagrees with PyTorch, ExportError and its kin otherwise.
    """
    with scratch(), reserved(as_path(out), force=force) as place:
        request = make_request(network, contract, name or place.name, calibration, held_out, provenance, options, progress)
        contents = _made(request)
        with staged(place) as folder:
            write_contents(folder, contents)
    return Bundle(place)


def _made(request: ExportRequest) -> BundleContents:
    """Everything but the writing."""
    reference, evaluator = _checked(request)
    fp32 = _fp32(reference, request)
    fp16 = _fp16(request)
    int8 = _int8(fp32.traced, evaluator, request)
    models = {"fp32": fp32.model, **({} if int8.variant is None else {"int8": int8.variant.model}), **fp16}
    with _engines(models, request) as engines:
        quality = _evaluated(engines, evaluator if int8.variant is None else int8.variant.judge, request)
        decision = _decided(int8, models, quality, request)
        golden = _golden(reference, {each: engines[each] for each in decision.kept}, fp32.parity, request)
    evidence = _evidence(models, fp32.parity, quality, _latencies(int8, fp32.model, request), decision, golden, request)
    return _contents({each: models[each] for each in decision.kept}, decision, golden, evidence, request)


def _checked(request: ExportRequest) -> tuple[TorchReference, QualityEvaluator | None]:
    """PyTorch's side of all comparisons, after the network, the images and the metric were checked."""
    check_modules(request.network, request.contract)
    request.require_readable_images()
    reference = TorchReference(request.network, request.contract)
    evaluator = quality_evaluator(reference, request.held_out, request.options.metric)
    request.progress("preflight", 0, 1)
    check_behavior(reference)
    return reference, evaluator


@dataclass(frozen=True, kw_only=True)
class _Fp32:
    traced: Traced
    model: bytes
    parity: Parity


def _fp32(reference: TorchReference, request: ExportRequest) -> _Fp32:
    """Trace a copy that never ran, so that nothing is left in it from a run. Raises ParityError naming the ranges in which the graph is right."""
    request.progress("tracing", 0, 1)
    contract = request.contract
    traced = trace(prepared(request.network), contract, extensions=request.options.extensions)
    model = finalize_fp32(traced.model, contract)
    parity = measure_parity(reference, model, sizes=full_sweep(reference, traced.guards), progress=request.progress)
    if not parity:
        why = f"the fp32 graph disagrees with PyTorch, so no bundle was written; {remedy(parity, contract, traced.guards)}"
        raise ParityError(logged(f"{why}{parity}", f"{why}{parity.full_text()}"))
    return _Fp32(traced=traced, model=model, parity=parity)


def _fp16(request: ExportRequest) -> dict[str, bytes]:
    """The fp16 variant if it was asked for; before int8, which takes minutes. Raises ExportError, which says that fp16 alone fails."""
    if "fp16" not in request.options.precisions:
        return {}
    request.progress("tracing fp16", 0, 1)
    try:
        traced = trace(prepared(request.network), request.contract, torch.float16, extensions=request.options.extensions)
        return {"fp16": finalize(traced.model, request.contract)}
    except ExportError as error:
        raise ExportError(f"fp32 was made, but fp16 cannot be, so no bundle was written; leave fp16 out with --precision: {error}") from error


@dataclass(frozen=True, kw_only=True)
class _Int8:
    """An int8 variant, or the reason why there is none."""

    variant: MeasuredVariant | None = None
    reason: str = "no calibration images were given, so there is no int8"


def _int8(traced: Traced, evaluator: QualityEvaluator | None, request: ExportRequest) -> _Int8:
    options = request.options
    if "int8" not in options.precisions:
        return _Int8(reason="the bundle was made without int8")
    if not request.wants_int8:
        return _Int8()
    if request.int8_refusal is not None:
        return _Int8(reason=request.int8_refusal)
    images = calibration_sample(request.calibration, options.calibration_images)
    measuring = Measuring(benchmark=runner.benchmark, pair_timer=runner.PairTimer)
    try:
        variant = make_int8_variant(traced.model, request.contract, options.int8(request.contract), images, evaluator, measuring, request.progress)
    except NoIntegerProducts as reason:
        if options.requires_int8:
            raise
        return _Int8(reason=str(reason))
    return _Int8(variant=variant)


@contextmanager
def _engines(models: Mapping[str, bytes], request: ExportRequest) -> Iterator[dict[str, Engine]]:
    """An engine for each variant; they are closed before anything is timed."""
    session = request.options.int8(request.contract).target.session
    with ExitStack() as stack:
        yield {precision: stack.enter_context(Engine(model, request.contract, session)) for precision, model in models.items()}


def _evaluated(engines: Mapping[str, Engine], evaluator: QualityEvaluator | None, request: ExportRequest) -> QualityReport | None:
    """Quality on held-out images, if there are any.

    Raises ParityError if fp32 gives another label than PyTorch, ExportError if fp16 loses more than is allowed.
    """
    if evaluator is None:
        return None
    count, max_drop = len(evaluator.examples), request.options.max_drop
    quality = evaluator.evaluate(engines, counter(request.progress, "evaluating on held-out images", count * len(engines)))
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


def _decided(int8: _Int8, models: Mapping[str, bytes], quality: QualityReport | None, request: ExportRequest) -> _Decision:
    """Whether int8 is taken. It is left out of the bundle if it neither pays nor was asked for in any case."""
    if int8.variant is None:
        return _Decision(kept=tuple(models), selection=Selection(precision="fp32", reason=shortened(int8.reason, LONGEST_REASON)))
    plan = decide(int8.variant, quality, request.options.budget)
    keeps_int8 = "int8" in plan.selection.precisions or request.options.requires_int8
    kept = tuple(each for each in models if each != "int8" or keeps_int8)
    return _Decision(kept=kept, selection=plan.selection, plan=plan, audit=int8.variant.audit)


def _contents(models: Mapping[str, bytes], decision: _Decision, golden: GoldenAnswers, evidence: Mapping[str, Any], request: ExportRequest) -> BundleContents:
    request.progress("writing", 0, 1)
    return BundleContents(
        name=request.name,
        contract=request.contract,
        models=models,
        target=request.options.int8(request.contract).target.cpu,
        plan=decision.stored_plan,
        selection=decision.selection,
        golden=golden,
        provenance={**versions(), "weights_sha256": weights_sha256(request.network), **request.options.extensions.names(), **request.provenance},
        evidence=evidence,
    )


def _golden(reference: TorchReference, engines: Mapping[str, Engine], parity: Parity, request: ExportRequest) -> GoldenAnswers:
    request.progress("golden cases", 0, 1)
    return answer_golden(golden_inputs(reference, request.held_out or request.calibration), reference, engines, parity)


def _latencies(int8: _Int8, fp32: bytes, request: ExportRequest) -> Latencies:
    """What was measured for int8, or fp32 alone."""
    if int8.variant is not None and int8.variant.latencies:
        return int8.variant.latencies
    request.progress("timing", 0, 1)
    batch = request.options.batch(request.contract)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(fp32)
        return {batch: runner.benchmark({"fp32": runner.EngineSpec(kind="onnx", path=str(path))}, batch=batch)}


def _evidence(
    models: Mapping[str, bytes],
    parity: Parity,
    quality: QualityReport | None,
    latencies: Latencies,
    decision: _Decision,
    golden: GoldenAnswers,
    request: ExportRequest,
) -> dict[str, Any]:
    batch = request.options.batch(request.contract)
    sizes = {precision: len(model) for precision, model in models.items()}
    return {
        "parity": {"fp32": parity.to_dict()},
        "quality": None if quality is None else quality.to_dict(),
        "speed": {
            "batch": batch,
            "ms_per_call": {precision: round(stats.median_ms, 4) for precision, stats in latencies[batch].items()},
            "latencies": [{"batch": size, **{name: asdict(stats) for name, stats in each.items()}} for size, each in latencies.items()],
        },
        "summary": summarize(sizes, latencies, quality, decision.plan, request.options.budget, golden.noticed),
        "int8": None if decision.stored_plan is None else {**decision.stored_plan, "audit": decision.audit},
        "images": {
            "given": len(request.calibration),
            "calibration": min(len(request.calibration), request.options.calibration_images) if request.wants_int8 else 0,
            "held_out": len(request.held_out),
        },
        "machine": machine(),
    }
