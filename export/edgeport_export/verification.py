"""Verifying a bundle that exists, from the trained network: its files made again, parity at new inputs, every golden case and its stored answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from edgeport_runtime import Bundle, Contract, load
from edgeport_runtime.check import CheckReport
from edgeport_runtime.evaluation import Examples, read_examples

from .crowding import considerate_threads
from .diagnosis.bundle_blame import BundleBlame, blame_bundle
from .diagnosis.contract_changes import contract_changes
from .diagnosis.pipelines import Pipeline, find_pipeline
from .diagnosis.reproduction import Reproduction, reproduce
from .diagnosis.sides import GraphSide, NetworkSide
from .diagnosis.stages import StageBudget, stage_budget
from .diagnosis.stored_answers import StoredAnswers, stored_answers
from .diagnosis.two_models import ModelComparison, compare_models
from .errors import ExportError
from .network.contracts import ImageTask
from .network.preflight import check_modules
from .network.reference import TorchReference, weights_sha256
from .network.size_sweep import Sizes, own_sizes, sweep_inputs
from .network.wrapper import flatten
from .progress import ProgressCallback, no_progress
from .quantization.budget import Budget
from .validation.parity import Parity
from .validation.sweep import full_sweep, measure_parity

GOLDEN_FLOOR_DB = 20.0  # that int8 and fp16 keep on golden cases at the contract's own size, which are a few images
SEED = 10_000  # inputs that the export did not use


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The findings. True if nothing speaks against the bundle.

    `manifest_sha256`: which bundle it was.
    `parity`: of fp32 with PyTorch. `checks`: every variant's golden cases. `reproductions`: every variant made again, and compared byte by byte.
    `stored`: the golden cases' answers that the export stored as PyTorch's. `lossy`: variants that were not made again, held to PyTorch on the golden cases.
    `recipe`: where the contract differs from what the network itself promises. `blame`: what is to blame; `stages`: each stage's contribution from the
    file to the answer; None if they were not asked for.
    `replayed`: number of sizes that the evidence says the export looked at; they are looked at again. `same_weights`: None if the bundle does not
    hold the weights' hash, as those of format 1.
    """

    manifest_sha256: str
    parity: Parity
    checks: tuple[CheckReport, ...]
    reproductions: tuple[Reproduction, ...]
    stored: StoredAnswers
    lossy: tuple[ModelComparison, ...]
    replayed: int
    same_weights: bool | None
    recipe: tuple[str, ...] = ()
    blame: BundleBlame | None = None
    stages: StageBudget | None = None

    def __bool__(self) -> bool:
        compared = bool(self.parity) and bool(self.checks) and all(self.checks) and bool(self.stored) and all(self.lossy)
        promised = self.same_weights is not False and not self.recipe
        return compared and promised and all(self.reproductions) and (self.stages is None or bool(self.stages))

    def __str__(self) -> str:
        lines = ["FAILED the bundle was made from other weights than these"] if self.same_weights is False else []
        lines += [f"FAILED the contract is not the network's: {each}" for each in self.recipe]
        lines += [f"fp32 {self.parity}", *map(str, self.reproductions), *map(str, self.lossy), *map(str, self.checks), str(self.stored)]
        if not self.replayed:
            lines.append("the bundle's evidence lists no sizes, so those at which conditions inside the network change were not looked at again")
        if self.same_weights is None:
            lines.append("the weights were compared by their outputs alone: this bundle does not hold their hash")
        return "\n".join([*lines, *(str(each) for each in (self.blame, self.stages) if each is not None)])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "passed": bool(self),
            "manifest_sha256": self.manifest_sha256,
            "same_weights": self.same_weights,
            "recipe": list(self.recipe),
            "replayed": self.replayed,
            "golden": {check.precision: bool(check) for check in self.checks},
            "stored_answers": bool(self.stored),
            "reproduced": {each.precision: each.same for each in self.reproductions},
            "changes": {each.precision: list(map(str, each.changes)) for each in self.reproductions if each.changes},
            "lossy": [each.to_dict() for each in self.lossy],
            "parity": self.parity.to_dict(),
            **({} if self.blame is None else {"blame": self.blame.to_dict()}),
            **({} if self.stages is None else {"stages": self.stages.to_dict()}),
        }


@considerate_threads()
def verify(
    bundle: Bundle | str | Path,
    network: nn.Module,
    *,
    contract: Contract | ImageTask | None = None,
    calibration: Examples | None = None,
    blame: bool = False,
    stages: bool = False,
    pipeline: str | Callable[[Image.Image], Any] | None = None,
    inputs: Examples | None = None,
    progress: ProgressCallback = no_progress,
) -> Verification:
    """Make the bundle's files again, compare fp32 with PyTorch at inputs that the export did not use, re-run all golden cases, and hold their answers to
    PyTorch's.

    `network`: the trained network, which is taken under the bundle's own contract and stays as it is. Sizes are those of the sweep, and
    those that the export looked at besides, because a condition inside the network changes there. `contract`: what the network itself promises, such as
    a checkpoint's own; where the bundle's differs in more than axes is a failure. `calibration`: the images that the export was
    given; only an int8 variant whose weights were rounded for each other needs them, and is held to PyTorch on the golden cases if they are missing.
    `blame`: look for the first module that differs, and for what int8 costs at each product. `stages`: tell what each stage contributes, from an image
    file to the answer. `pipeline`: for that, the preprocessing that the network was trained with, see `find_pipeline`; one whose recipe is not the
    contract's is a failure. `inputs`: the images for that, files at sizes of their own; made-up ones if left out.
    Raises BundleError and its kin if the bundle cannot be read, NetworkFailure or ExportError if the network does not fit the contract.
    """
    if not isinstance(network, nn.Module):
        raise ExportError(f"network must be the torch.nn.Module that the bundle was made from, got {type(network).__name__}")
    opened = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    promised = opened.manifest.contract
    check_modules(network, promised)
    reference = TorchReference(network, promised)
    found_pipeline = _pipeline(pipeline, promised) if stages or pipeline is not None else None
    _require_fit(reference)
    swept = _swept(opened.evidence(), promised)
    sizes = [*full_sweep(reference), *swept]
    parity = measure_parity(reference, opened.read(opened.variant("fp32")), sizes=_once(sizes), seed=SEED, progress=progress)
    checks = tuple(load(opened.folder, precision=variant.precision).check() for variant in opened.manifest.variants)
    given = () if calibration is None else read_examples(calibration)
    reproductions = reproduce(opened, network, given, progress)
    failed_at = [dict(case.sizes) for case in parity.failures()]
    stored = opened.manifest.provenance.get("weights_sha256")
    same = None if stored is None else stored == weights_sha256(network)
    return Verification(
        manifest_sha256=opened.sha256,
        parity=parity,
        checks=checks,
        reproductions=reproductions,
        stored=stored_answers(opened, reference, parity),
        lossy=tuple(_held_to_torch(opened, each.precision, network) for each in reproductions if each.precision != "fp32" and not each.same),
        replayed=len(swept),
        same_weights=same,
        recipe=() if contract is None else contract_changes(opened.manifest.contract, contract),
        blame=blame_bundle(opened, reference, reproductions, failed_at, progress) if blame else None,
        stages=_stages(opened, reference, found_pipeline, inputs, progress) if found_pipeline is not None else None,
    )


def _pipeline(given: str | Callable[[Image.Image], Any] | None, contract: Contract) -> Pipeline:
    if contract.inputs[0].pixels is None or len(contract.inputs) > 1:
        raise ExportError("stages lead from an image file to the answer, and this model takes tensors: leave them out")
    return find_pipeline(given, contract.pixels)


def _stages(bundle: Bundle, reference: TorchReference, pipeline: Pipeline, images: Examples | None, progress: ProgressCallback) -> StageBudget:
    return stage_budget(bundle, reference, pipeline, () if images is None else read_examples(images), progress)


def _held_to_torch(bundle: Bundle, precision: str, network: nn.Module) -> ModelComparison:
    side = GraphSide.of_bundle(bundle, precision)
    network_side = NetworkSide(name="the network", network=network)
    return compare_models(side, network_side, budget=Budget(sqnr_floor_db=GOLDEN_FLOOR_DB))


def _require_fit(reference: TorchReference) -> None:
    """Raises NetworkFailure, ExportError if the network does not take the contract's inputs, or gives another number of outputs."""
    contract = reference.contract
    given = flatten(reference.answer(sweep_inputs(contract, own_sizes(contract), SEED)))
    if len(given) != len(contract.outputs):
        raise ExportError(f"the bundle was made from another network: this one gives {len(given)} outputs, the contract has {len(contract.outputs)}")
    for tensor, output in zip(given, contract.outputs, strict=True):
        axes = output.shape if output.kind != "pixels" else (*output.shape[:1], output.shape[-1], *output.shape[1:-1])
        if tensor.ndim != len(axes) or any(isinstance(axis, int) and axis != size for axis, size in zip(axes, tensor.shape, strict=True)):
            raise ExportError(
                f"the bundle was made from another network: this one gives {output.name!r} the shape {tuple(tensor.shape)}, the contract says {axes}"
            )


def _swept(evidence: Mapping[str, Any], contract: Contract) -> list[Sizes]:
    """The sizes of the export's sweep, if the evidence is there; those alone that the contract promises, because nothing seals the evidence."""
    cases = ((evidence.get("parity") or {}).get("fp32") or {}).get("cases") or []
    found = [dict(case["sizes"]) for case in cases]
    return _once([each for each in found if set(each) == set(contract.axes) and all(size in contract.axes[axis] for axis, size in each.items())])


def _once(sizes: list[Sizes]) -> list[Sizes]:
    return [dict(pairs) for pairs in dict.fromkeys(tuple(sorted(each.items())) for each in sizes)]
