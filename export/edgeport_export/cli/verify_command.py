"""`edgeport verify`: a bundle against the network that it was made from, or any two models against each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeport_export.progress import ProgressCallback
from edgeport_runtime import Bundle, InputError
from edgeport_runtime.bundle import MANIFEST


@dataclass(frozen=True, kw_only=True)
class VerifyJob:
    """`first`, `second`: names as `diagnosis.named_sides` reads them; with `second` None, `first` is a bundle, and its network is named by `checkpoint`
    and `model`. `inputs`: "sweep", "golden", a folder of images, an .npz file or a folder of them. `contract`: a file. `changes_to`: a folder."""

    first: str
    second: str | None = None
    checkpoint: Path | None = None
    model: str | None = None
    inputs: str | None = None
    contract: Path | None = None
    max_drop: float = 0.5
    max_changed: float = 1.0
    sqnr_floor_db: float = 30.0
    changes_to: Path | None = None


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """`text` for people, `data` for JSON."""

    passed: bool
    text: str
    data: dict[str, Any]


def run_verify(job: VerifyJob, progress: ProgressCallback) -> VerifyResult:
    """Raises InputError for arguments that do not belong together, and whatever the comparison raises."""
    if job.second is None:
        return _against_its_network(job, progress)
    if job.checkpoint is not None or job.model is not None:
        raise InputError("--checkpoint and --model name the network of a single bundle; beside a second model, name it as my.package:factory@weights.pt")
    from edgeport_export.diagnosis.two_models import compare_models
    from edgeport_export.network.contracts import read_contract
    from edgeport_export.quantization.budget import Budget

    found = compare_models(
        job.first,
        job.second,
        inputs=job.inputs,
        contract=None if job.contract is None else read_contract(job.contract),
        budget=Budget(max_drop=job.max_drop, max_changed=job.max_changed, sqnr_floor_db=job.sqnr_floor_db),
        changes_to=job.changes_to,
        progress=progress,
    )
    return VerifyResult(passed=bool(found), text=str(found), data=found.to_dict())


def _against_its_network(job: VerifyJob, progress: ProgressCallback) -> VerifyResult:
    from edgeport_export.sources import source_of_bundle
    from edgeport_export.verification import verify

    if not (Path(job.first) / MANIFEST).exists() and (Path(job.first).is_file() or "@" in job.first or ":" in job.first):
        raise InputError(f"{job.first} is no bundle's folder: name a second model to compare it with")
    if job.inputs is not None or job.contract is not None or job.changes_to is not None:
        raise InputError("--inputs, --contract and --changes are for two models: name the second one after the bundle")
    bundle = Bundle(job.first)
    source = source_of_bundle(bundle, job.checkpoint, job.model)
    found = verify(bundle, source.network, progress=progress)
    golden = {check.precision: bool(check) for check in found.checks}
    data = {"passed": bool(found), "same_weights": found.same_weights, "replayed": found.replayed, "golden": golden, "parity": found.parity.to_dict()}
    return VerifyResult(passed=bool(found), text=str(found), data=data)
