"""The whole export, readable as its own summary: look, trace, compare, quantise, judge, store, prove, write."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeport_runtime import Contract, __version__
from edgeport_runtime.bundle import EVIDENCE, MANIFEST, Manifest, Variant
from edgeport_runtime.contract import strict_json
from edgeport_runtime.device import usable_threads
from edgeport_runtime.engine import Engine
from edgeport_runtime.evaluate import Example
from edgeport_runtime.protobuf import read_outline

from .branches import Branch
from .compatibility import lowest_onnxruntime
from .contracts import require_classes
from .errors import ExportError, NoIntegerProducts, ParityError
from .golden import golden_inputs, write_golden
from .options import ExportOptions
from .parity import Parity, full_sweep, measure_parity, remedy
from .preflight import preflight, prepared
from .progress import Watch, counting, unwatched
from .quality import METRIC_TASKS, Judgement, Jury, load_metric
from .quantization import Int8, calibration_sample, make_int8, unfit
from .race import Contender, Heat, race
from .trace import Traced, finish, trace
from .verdict import decide, takes_int8
from .wrap import Reference
from .write import repair, require_free, staged

FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx", "fp16": "model.fp16.onnx"}
KINDS: Mapping[str, tuple[type, ...]] = {"network": (nn.Module,), "contract": (Contract,), "out": (str, Path), "name": (str,), "options": (ExportOptions,)}
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")


@dataclass(kw_only=True)
class _Made:
    """What has been made so far: models by precision, and what is known of them."""

    models: dict[str, bytes]
    parity: Parity
    int8: Int8 | None = None
    judgement: Judgement | None = None
    heats: Mapping[int, Mapping[str, Heat]] = field(default_factory=dict)
    auto: Mapping[str, str] = field(default_factory=lambda: {"precision": "fp32", "reason": "the bundle was made without int8"})


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
    watch: Watch = unwatched,
) -> Path:
    """Make a bundle from a trained network and write it to `out`, whole or not at all.

    `calibration`: images for int8. `held_out`: images with their truth, on which quality is judged; both in the contract's task.
    Raises OutputError where `out` exists, ParityError where fp32 disagrees with PyTorch, ExportError and its kin otherwise.
    """
    options = options if options is not None else ExportOptions()
    _require_sense(network, contract, out, name, options, calibration, held_out)
    out = Path(out)
    repair(out)
    require_free(out, force=force)
    wants_int8 = "int8" in options.precisions and bool(calibration or options.insist or options.plan is not None)
    refusal = unfit(contract)
    if wants_int8 and refusal and (options.insist or options.plan is not None):
        raise ExportError(refusal)
    reference = Reference(prepared(network), contract)
    jury = _jury(contract, reference, held_out, options)
    watch("preflight", 0, 1)
    preflight(network, contract)
    network = prepared(network)
    watch("tracing", 0, 1)
    traced = trace(network, contract)
    fp32 = finish(traced.model, contract)
    made = _Made(models={"fp32": fp32}, parity=_require_parity(network, contract, traced.branches, fp32, watch))
    half = {"fp16": _half(network, contract, watch)} if "fp16" in options.precisions else {}  # before int8, which takes minutes
    if wants_int8 and refusal:
        made.auto = {"precision": "fp32", "reason": refusal}
    elif wants_int8:
        _add_int8(made, traced, contract, calibration, jury, options, watch)
    made.models |= half
    engines = {precision: Engine(model, contract, options.cpu.session) for precision, model in made.models.items()}
    _judge(made, engines, jury, options.max_drop, watch)
    _decide(made, options)
    with staged(out, force=force) as folder:
        variants = tuple(_write_variant(folder, precision, model, made.int8) for precision, model in made.models.items())
        watch("golden cases", 0, 1)
        kept = {precision: engines[precision] for precision in made.models}
        golden = write_golden(folder, contract, golden_inputs(contract, held_out or calibration), reference, kept, made.parity)
        engines.clear()  # their thread pools would disturb the race
        kept.clear()
        _time(made, folder, contract, options, watch)
        manifest = Manifest(name=name, contract=contract, variants=variants, golden=golden, auto=made.auto, provenance={**versions(), **(provenance or {})})
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        (folder / EVIDENCE).write_text(strict_json(_evidence(made, contract, options), indent=1) + "\n", encoding="utf-8")
        watch("writing", 0, 1)
    return out


def _half(network: nn.Module, contract: Contract, watch: Watch) -> bytes:
    """The fp16 variant. Raises ExportError, which says that it is fp16 alone that fails."""
    watch("tracing fp16", 0, 1)
    try:
        return finish(trace(network, contract, torch.float16).model, contract)
    except ExportError as error:
        raise ExportError(f"fp32 was made, but fp16 cannot be, so no bundle was written; leave fp16 out with --precision: {error}") from error


def _require_sense(network: Any, contract: Any, out: Any, name: Any, options: Any, calibration: Any, held_out: Any) -> None:
    """Raises ContractError for a classifier of one class, ExportError where something is of another kind, or images are no examples."""
    given = {"network": network, "contract": contract, "out": out, "name": name, "options": options}
    for which, kinds in KINDS.items():
        if not isinstance(given[which], kinds):
            raise ExportError(f"{which} must be {' or '.join(_kind_name(each) for each in kinds)}, got {type(given[which]).__name__}")
    require_classes(contract)
    if contract.largest_batch < options.race_batch != ExportOptions.race_batch:
        raise ExportError(f"speed was to be measured at batches of {options.race_batch} (--batch), but the contract allows at most {contract.largest_batch}")
    for images, which in ((calibration, "calibration"), (held_out, "held_out")):
        if not isinstance(images, Sequence) or not all(isinstance(each, Example) for each in images):
            raise ExportError(f"{which} takes a list of edgeport_runtime.evaluate.Example(source=…, truth=…), got {_kind(images)}")


def _kind_name(kind: type) -> str:
    return {nn.Module: "a torch.nn.Module", Contract: "an edgeport_runtime.Contract", ExportOptions: "an ExportOptions"}.get(kind, f"a {kind.__name__}")


def _kind(images: Any) -> str:
    strange = [type(each).__name__ for each in images if not isinstance(each, Example)] if isinstance(images, list | tuple) else []
    return f"{type(images).__name__}{f' of {strange[0]}' if strange else ''}"


def _jury(contract: Contract, reference: Reference, held_out: Sequence[Example], options: ExportOptions) -> Jury | None:
    """None where there is nothing to judge on, or nothing to judge by. Raises ExportError for a metric without images."""
    metric = (options.metric, load_metric(options.metric)) if options.metric else None
    if metric is not None and not held_out:
        raise ExportError("a metric was named, but there are no held-out images with their truth to apply it to")
    if not held_out or not (metric or contract.task in METRIC_TASKS):
        return None
    jury = Jury(contract, reference, held_out, metric)
    if metric is not None:
        _ = jury.torch  # a metric that fails should say so before anything else is made
    return jury


def _require_parity(network: nn.Module, contract: Contract, branches: Sequence[Branch], model: bytes, watch: Watch) -> Parity:
    """The sweep, lengthened by sizes at which a frozen branch does not hold. Raises ParityError that says where the graph is right."""
    parity = measure_parity(network, contract, model, sizes=full_sweep(network, contract, branches), watch=watch)
    if not parity:
        raise ParityError(f"the fp32 graph disagrees with PyTorch, so no bundle was written; {remedy(parity, contract, branches)}{parity}")
    return parity


def _add_int8(made: _Made, traced: Traced, contract: Contract, calibration: Sequence[Example], jury: Jury | None, options: ExportOptions, watch: Watch) -> None:
    sample = calibration_sample(calibration, options.calibration_images)
    batch = min(options.race_batch, contract.largest_batch)
    try:
        made.int8 = make_int8(traced.model, contract, options.cpu, sample, jury, options.budget, batch=batch, replay=options.plan, watch=watch)
    except NoIntegerProducts as reason:
        if options.insist or options.plan is not None:
            raise
        made.auto = {"precision": "fp32", "reason": str(reason)}
        return
    made.models["int8"], made.heats = made.int8.model, made.int8.heats


def _judge(made: _Made, engines: Mapping[str, Engine], jury: Jury | None, max_drop: float, watch: Watch) -> None:
    """Quality on held-out images, where there are any.

    Raises ParityError where fp32 gives another label than PyTorch, ExportError where fp16 loses more than is allowed.
    """
    if jury is None:
        return
    count = len(jury.examples)
    made.judgement = jury.judge(engines, counting(watch, "judging on held-out images", count * len(engines)))
    if made.judgement.decided.get("fp32"):
        raise ParityError(f"fp32 gives another label than PyTorch on {made.judgement.decided['fp32']} of {count} held-out images, so no bundle was written")
    if "fp16" in engines and not made.judgement.drop("fp16") <= max_drop:
        raise ExportError(f"fp16 loses {made.judgement.drop('fp16'):.3g} on the held-out images, {max_drop:g} allowed: leave fp16 out with --precision")


def _decide(made: _Made, options: ExportOptions) -> None:
    """Put int8 into words, take it or not, and leave it out where it neither pays nor was insisted on. A replayed plan was decided before."""
    if made.int8 is None:
        return
    plan = made.int8.plan
    if not plan.verdict:
        sizes = {precision: len(model) for precision, model in made.models.items()}
        taken = decide(plan, made.heats, sizes, made.judgement, options.budget)
        plan = replace(plan, verdict=taken["reason"], auto=taken)
    elif takes_int8(plan.auto) and made.judgement is not None and made.judgement.drop("int8") > options.max_drop:
        raise ExportError(f"the replayed plan does not keep the quality budget: int8 loses {made.judgement.drop('int8'):.3g}, {options.max_drop:g} allowed")
    elif takes_int8(plan.auto) and made.judgement is None and plan.sqnr_db < options.sqnr_floor_db:
        raise ExportError(f"the replayed plan does not keep the quality budget: {plan.sqnr_db:g} dB from fp32, {options.sqnr_floor_db:g} asked for")
    made.int8 = replace(made.int8, plan=plan)
    made.auto = plan.auto
    if not takes_int8(plan.auto) and not options.insist and options.plan is None:
        del made.models["int8"]


def _write_variant(folder: Path, precision: str, model: bytes, int8: Int8 | None) -> Variant:
    outline = read_outline(model)
    (folder / FILES[precision]).write_bytes(model)
    opset = outline.opsets["ai.onnx"]
    return Variant(
        precision=precision,
        file=FILES[precision],
        sha256=hashlib.sha256(model).hexdigest(),
        bytes=len(model),
        opset=opset,
        ir_version=outline.ir_version,
        onnxruntime=lowest_onnxruntime(opset, outline.ir_version),
        plan=int8.plan.to_dict() if int8 is not None and precision == "int8" else {},
    )


def _time(made: _Made, folder: Path, contract: Contract, options: ExportOptions, watch: Watch) -> None:
    """fp32 alone, where int8 has not been raced against it."""
    if not made.heats:
        watch("timing", 0, 1)
        batch = min(options.race_batch, contract.largest_batch)
        made.heats = {batch: race({"fp32": Contender(kind="onnx", path=str(folder / FILES["fp32"]))}, batch=batch)}


def _evidence(made: _Made, contract: Contract, options: ExportOptions) -> dict[str, Any]:
    batch = min(options.race_batch, contract.largest_batch)
    return {
        "parity": {"fp32": made.parity.to_dict()},
        "quality": made.judgement and made.judgement.to_dict(),
        "speed": {
            "batch": batch,
            "ms_per_call": {precision: round(heat.median_ms, 4) for precision, heat in made.heats[batch].items()},
            "heats": [{"batch": size, **{name: asdict(heat) for name, heat in heats.items()}} for size, heats in made.heats.items()],
        },
        "int8": {**made.int8.plan.to_dict(), "audit": made.int8.audit} if made.int8 is not None else None,
        "machine": machine(),
    }


def versions() -> dict[str, str]:
    """Versions that decide the bytes of a bundle."""
    return {"edgeport": __version__, **{package: importlib.metadata.version(package) for package in PACKAGES}}


def machine() -> dict[str, Any]:
    """The machine that the evidence was measured on."""
    return {"processor": processor(), "system": f"{platform.system()} {platform.machine()}", "threads": usable_threads(), "python": platform.python_version()}


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name as Linux tells it, else what Python knows."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown")
