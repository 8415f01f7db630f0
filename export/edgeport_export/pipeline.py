"""The whole export, readable as its own summary: look, trace, compare, quantise, judge, store, prove, write."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from edgeport_runtime import Contract, SessionOptions, __version__
from edgeport_runtime.bundle import EVIDENCE, MANIFEST, Manifest, Variant
from edgeport_runtime.contract import strict_json
from edgeport_runtime.device import usable_threads
from edgeport_runtime.engine import Engine
from edgeport_runtime.evaluate import Example
from edgeport_runtime.protobuf import read_outline

from .branches import Branch
from .compatibility import lowest_onnxruntime
from .errors import ExportError, ParityError
from .golden import golden_inputs, write_golden
from .parity import Parity, full_sweep, measure_parity, remedy
from .preflight import preflight, prepared
from .progress import Watch, counting, unwatched
from .quality import Judgement, judge
from .quantize import Plan, calibration_sample, quantize
from .race import Contender, Heat, race
from .trace import finish, trace
from .wrap import Reference
from .write import repair, require_free, staged

FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")
WORTH_IT = 1.05  # int8 must be this much faster than fp32 to be taken by itself


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to make, and what int8 may cost.

    `precisions`: "fp32" always, "int8" where there is calibration data. `calibration_images`: at most that many are used.
    `max_drop`: points of accuracy, or dB of PSNR for an image output, that int8 may lose before it is no longer taken by itself.
    `race_batch`: batch size at which speed is measured.
    """

    precisions: tuple[str, ...] = ("fp32", "int8")
    calibration_images: int = 128
    max_drop: float = 0.5
    race_batch: int = 8

    def __post_init__(self) -> None:
        unknown = sorted(set(self.precisions) - set(FILES))
        if unknown or "fp32" not in self.precisions:
            raise ExportError(f"precisions must include fp32 and be among {', '.join(FILES)}, got {', '.join(self.precisions)}")
        if not self.max_drop >= 0:
            raise ExportError(f"max_drop must be at least 0, got {self.max_drop}")
        if self.calibration_images < 1 or self.race_batch < 1:
            raise ExportError("calibration_images and race_batch must be at least 1")


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
    options, out = options or ExportOptions(), Path(out)
    repair(out)
    require_free(out, force=force)
    watch("preflight", 0, 1)
    preflight(network, contract)
    network = prepared(network)
    watch("tracing", 0, 1)
    traced = trace(network, contract)
    models = {"fp32": finish(traced.model, contract)}
    parity = _require_parity(network, contract, traced.branches, models["fp32"], watch)
    plan = _quantize(traced.model, contract, calibration, options, models, watch) if "int8" in options.precisions else None
    reference = Reference(network, contract)
    engines = {precision: Engine(model, contract, SessionOptions()) for precision, model in models.items()}
    judgement = _judge(contract, reference, engines, held_out, watch)
    with staged(out, force=force) as folder:
        variants = tuple(_write_variant(folder, precision, model, plan) for precision, model in models.items())
        watch("golden cases", 0, 1)
        golden = write_golden(folder, contract, golden_inputs(contract, held_out or calibration), reference, engines, parity)
        engines.clear()  # their thread pools would disturb the race
        heats = _race(folder, contract, models, options, watch)
        manifest = Manifest(
            name=name,
            contract=contract,
            variants=variants,
            golden=golden,
            auto=_auto(heats, judgement, options),
            provenance={**versions(), **(provenance or {})},
        )
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        evidence = {
            "parity": {"fp32": parity.to_dict()},
            "quality": judgement and judgement.to_dict(),
            "speed": _speed(heats, contract, options),
            "machine": machine(),
        }
        (folder / EVIDENCE).write_text(strict_json(evidence, indent=1) + "\n", encoding="utf-8")
        watch("writing", 0, 1)
    return out


def _require_parity(network: nn.Module, contract: Contract, branches: Sequence[Branch], model: bytes, watch: Watch) -> Parity:
    """The sweep, lengthened by sizes at which a frozen branch does not hold. Raises ParityError that says where the graph is right."""
    parity = measure_parity(network, contract, model, sizes=full_sweep(network, contract, branches), watch=watch)
    if not parity:
        raise ParityError(f"the fp32 graph disagrees with PyTorch, so no bundle was written; {remedy(parity, contract, branches)}{parity}")
    return parity


def _quantize(
    traced: onnx.ModelProto, contract: Contract, calibration: Sequence[Example], options: ExportOptions, models: dict[str, bytes], watch: Watch
) -> Plan:
    sample = calibration_sample(calibration, options.calibration_images)
    models["int8"], plan = quantize(traced, contract, sample, counting(watch, "calibrating int8", len(sample)))
    return plan


def _judge(contract: Contract, reference: Reference, engines: Mapping[str, Engine], held_out: Sequence[Example], watch: Watch) -> Judgement | None:
    """Quality on held-out images; None where there are none. Raises ParityError where fp32 gives another label than PyTorch."""
    if not held_out:
        return None
    step = counting(watch, "judging on held-out images", len(held_out) * (1 + len(engines)))
    judgement = judge(contract, reference, engines, held_out, step)
    if judgement.decided["fp32"]:
        raise ParityError(f"fp32 gives another label than PyTorch on {judgement.decided['fp32']} of {len(held_out)} held-out images, so no bundle was written")
    return judgement


def _write_variant(folder: Path, precision: str, model: bytes, plan: Plan | None) -> Variant:
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
        plan=plan.to_dict() if plan is not None and precision == "int8" else {},
    )


def _race(folder: Path, contract: Contract, models: Mapping[str, bytes], options: ExportOptions, watch: Watch) -> dict[str, Heat]:
    """fp32 against int8 on this machine, as files that the runtime loads."""
    watch("timing", 0, 1)
    batch = min(options.race_batch, contract.largest_batch)
    return race({precision: Contender(kind="onnx", path=str(folder / FILES[precision])) for precision in models}, batch=batch)


def _auto(heats: Mapping[str, Heat], judgement: Judgement | None, options: ExportOptions) -> dict[str, str]:
    """What `precision="auto"` runs on a CPU, and why. The figures behind it are in the evidence, so that equal decisions give equal bytes."""
    if "int8" not in heats:
        return {"precision": "fp32", "reason": "the bundle was made without int8"}
    if judgement is None:
        return {"precision": "fp32", "reason": "int8 was not judged, because there were no held-out images"}
    if judgement.drop("int8") > options.max_drop:
        unit = "points" if judgement.qualities["torch"].metric == "accuracy" else "dB"
        return {"precision": "fp32", "reason": f"int8 loses more than the {options.max_drop:g} {unit} allowed; see the evidence"}
    if heats["fp32"].median_ms < WORTH_IT * heats["int8"].median_ms:
        return {"precision": "fp32", "reason": "int8 was not faster than fp32 where the bundle was made; see the evidence"}
    return {"precision": "int8", "reason": "int8 was faster than fp32 where the bundle was made, and within the quality budget; see the evidence"}


def _speed(heats: Mapping[str, Heat], contract: Contract, options: ExportOptions) -> dict[str, Any]:
    batch = min(options.race_batch, contract.largest_batch)
    return {"batch": batch, "ms_per_call": {precision: round(heat.median_ms, 4) for precision, heat in heats.items()}}


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
