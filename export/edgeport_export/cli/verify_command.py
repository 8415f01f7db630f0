"""`edgeport verify`: a bundle against the network that it was made from, or any two models against each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeport_export.progress import ProgressCallback
from edgeport_runtime import Bundle, Example, InputError
from edgeport_runtime.bundle import MANIFEST
from edgeport_runtime.evaluation import read_examples

if TYPE_CHECKING:
    from edgeport_export.sources import NetworkSource


@dataclass(frozen=True, kw_only=True)
class VerifyJob:
    """`first`, `second`: names as `diagnosis.named_sides` reads them; with `second` None, `first` is a bundle, and its network is named by `checkpoint`
    and `model`. `calibration`, `blame`, `stages`, `pipeline`: see `verify`. `inputs`: "sweep", "golden", a folder of images, an .npz file or a folder of them.
    `contract`: a file. `changes_to`: a folder."""

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
    calibration: str | None = None
    blame: bool = False
    stages: bool = False
    pipeline: str | None = None


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """`text` for people, `data` for JSON."""

    passed: bool
    text: str
    data: dict[str, Any]


def run_verify(job: VerifyJob, progress: ProgressCallback) -> VerifyResult:
    """Raises InputError for arguments that do not belong together, and whatever the comparison raises."""
    for option, value in (("--max-drop", job.max_drop), ("--max-changed", job.max_changed)):
        if not value >= 0:
            raise InputError(f"{option} is what may be lost, a number of at least 0, got {value:g}")
    if job.second is None:
        return _against_its_network(job, progress)
    if job.checkpoint is not None or job.model is not None:
        raise InputError("--checkpoint and --model name the network of a single bundle; beside a second model, name it as my.package:factory@weights.pt")
    if job.calibration is not None or job.blame or job.stages or job.pipeline is not None:
        of_one = "--calibration, --blame, --stages and --pipeline"
        raise InputError(f"{of_one} are for one bundle and the network that it was made from: leave the second model out")
    from edgeport_export.diagnosis.two_models import compare_models
    from edgeport_export.network.contract_files import read_contract
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
    if job.contract is not None or job.changes_to is not None:
        raise InputError("--contract and --changes are for two models: name the second one after the bundle")
    if job.inputs is not None and not (job.stages or job.pipeline is not None):
        raise InputError("--inputs are for two models, or the images of --stages: name the second model after the bundle, or add --stages")
    bundle = Bundle(job.first)
    source = source_of_bundle(bundle, job.checkpoint, job.model, same_contract=False)
    wanted: dict[str, Any] = {"contract": source.own, "blame": job.blame, "stages": job.stages, "pipeline": job.pipeline, "inputs": job.inputs}
    found = verify(bundle, source.network, calibration=_calibration(job, bundle, source), **wanted, progress=progress)
    return VerifyResult(passed=bool(found), text=str(found), data=found.to_dict())


def _calibration(job: VerifyJob, bundle: Bundle, source: "NetworkSource") -> Sequence[Example] | None:
    """The images that the export was given: those that are named, or what a network of the registry learned from, if it is at hand.

    A folder with labels may have been halved, one half to judge; the evidence tells how many images were given.
    """
    from edgeport_export.sources import load_examples, own_examples
    from edgeport_models import DataError

    data = job.calibration or source.data
    if data is None:
        return None
    contract = source.contract
    try:
        found = own_examples(data, None, contract)[0] if source.data is None else load_examples(data, contract)[0]
    except DataError:
        if job.calibration is not None:
            raise
        return None
    given = (bundle.evidence().get("images") or {}).get("given")
    if source.data is None and given not in (None, len(found)):
        everything = read_examples(data)
        return everything if len(everything) == given else found
    return found
