"""`edgeport report`: a page, and a model card, from what bundles hold and what is beside them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from edgeport_export.diagnosis.pipelines import find_pipeline
from edgeport_export.diagnosis.stages import stage_budget
from edgeport_export.errors import OutputError
from edgeport_export.network.reference import TorchReference
from edgeport_export.progress import ProgressCallback
from edgeport_export.report.page import Subject, model_card, report_page, write_texts
from edgeport_export.sources import load_examples, own_examples
from edgeport_models import DataError
from edgeport_runtime import Bundle, Example, InputError
from edgeport_runtime.errors import first_line
from edgeport_runtime.json_text import strict_json
from edgeport_runtime.regular_files import read_text, what_is

CARD = "README.md"
STAGE_IMAGES = 16  # beside an export; `edgeport verify --stages` takes more


@dataclass(frozen=True, kw_only=True)
class ReportJob:
    """`held_out`: the images that judged, as the export was given them; `verification`: what `edgeport verify --json` printed. Both are of one bundle."""

    folders: Sequence[Path]
    out: Path
    card: Path | None = None
    images: bool = True
    held_out: str | None = None
    verification: Path | None = None
    force: bool = False


def free_file(path: Path, *, force: bool) -> Path:
    """Raises OutputError if it exists, and is not to be replaced, or is no file."""
    if (there := what_is(path)) not in (None, "a file"):
        raise OutputError(f"{path} is {there}: give the name of a file (--out, --card)")
    if path.exists() and not force:
        raise OutputError(f"{path} exists already; give another file, or replace it (--force)")
    return path


def run_report(job: ReportJob) -> list[Path]:
    """Write the page, and the card of one bundle. The files that were written. Raises InputError, OutputError, DataError, and what `Bundle` raises."""
    for option, given in (("--card", job.card), ("--held-out", job.held_out), ("--verification", job.verification)):
        if given is not None and len(job.folders) > 1:
            raise InputError(f"{option} is of one bundle, got {len(job.folders)}: leave it out, or name one bundle")
    if job.held_out is not None and not job.images:
        raise InputError("--held-out shows images, and --no-images leaves them out: give one of the two")
    bundles = [Bundle(folder) for folder in job.folders]
    places = [free_file(each, force=job.force) for each in (job.out, job.card) if each is not None]
    _require_own(places, job.verification, bundles)
    found = {} if job.verification is None else read_verification(job.verification)
    guesses = () if job.held_out is None else held_out_guesses(job.held_out, bundles[0])
    texts = {job.out: report_page([Subject(bundle=each, guesses=guesses, verification=found) for each in bundles], images=job.images)}
    if job.card is not None:
        texts[job.card] = model_card(bundles[0])
    return write_texts(texts)


def _require_own(places: Sequence[Path], verification: Path | None, bundles: Sequence[Bundle]) -> None:
    """Nothing that is read is written over: files of a bundle (a card beside them is none), what verify printed, or the page by the card."""
    taken = {path.resolve(): "a file of the bundle" for each in bundles for path in each.folder.rglob("*") if path.name != CARD}
    taken |= {} if verification is None else {verification.resolve(): "the verification"}
    for place in places:
        if (what := taken.get(place.resolve())) is not None:
            raise OutputError(f"{place} is {what}: give another file (--out, --card)")
        taken[place.resolve()] = "the other file to write"


def read_verification(path: Path) -> Mapping[str, Any]:
    """Raises InputError for a file that is not what `edgeport verify --json` prints for one bundle."""
    wanted = "expected what `edgeport verify BUNDLE --stages --json` prints"
    try:
        found = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: {wanted}, and it cannot be read ({first_line(error)})") from error
    if not isinstance(found, dict) or "manifest_sha256" not in found:
        raise InputError(f"{path}: {wanted}, got something else")
    return found


def stages_of(bundle: Bundle, network: nn.Module, examples: Sequence[Example], progress: ProgressCallback) -> dict[str, Any]:
    """The part of a verification that tells where differences come from; nothing for a network that takes no image. Raises what `stage_budget` raises."""
    contract = bundle.manifest.contract
    if not contract.takes_one_image:
        return {}
    shown = examples[:: max(1, -(-len(examples) // STAGE_IMAGES))]
    found = stage_budget(bundle, TorchReference(network, contract), find_pipeline(None, contract.pixels), shown, progress)
    return {"manifest_sha256": bundle.sha256, "stages": json.loads(strict_json(found.to_dict()))}


def held_out_guesses(data: str, bundle: Bundle) -> list[Sequence[Example]]:
    """All that an export may have held out of these data: a folder as a whole, the half of it that judges, or the part that a training left out.

    Raises InputError with the first fault if the data cannot be read in any of these ways.
    """
    contract = bundle.manifest.contract
    ways: list[Callable[[], Sequence[Example]]] = [
        lambda: own_examples(None, data, contract)[1],
        lambda: own_examples(data, None, contract)[1],
        lambda: load_examples(data, contract)[1],
    ]
    found: list[Sequence[Example]] = []
    faults: list[Exception] = []
    for way in ways:
        try:
            found.append(way())
        except (DataError, InputError) as error:
            faults.append(error)
    if not any(found):
        why = first_line(faults[0]) if faults else "it holds no images with their truth"
        raise InputError(f"{data} cannot be the held-out images of {bundle.manifest.name}: {why}")
    return [each for each in found if each]
