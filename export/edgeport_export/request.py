"""What one export was asked for: the arguments of `export_bundle` as checked values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from edgeport_runtime import Contract, Example, ImageError, InputError
from edgeport_runtime.evaluation import Examples, labeled_examples, read_examples
from edgeport_runtime.images import pixel_batches

from .errors import ExportError
from .network.contracts import ImageTask, image_contract, require_classes, require_unit_range
from .options import ExportOptions
from .progress import ProgressCallback
from .quantization.image_roles import JUDGED, calibration_sample, spread
from .quantization.int8_variant import int8_unsupported_reason


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What one export was asked for. Raises ExportError, ContractError if it makes no sense.

    `name`: of the bundle. `calibration`: images for int8. `held_out`: images with their truth. `provenance`: the caller's facts.
    """

    network: nn.Module
    contract: Contract
    name: str
    calibration: Sequence[Example]
    held_out: Sequence[Example]
    provenance: Mapping[str, str]
    options: ExportOptions
    progress: ProgressCallback

    def __post_init__(self) -> None:
        require_classes(self.contract)
        largest, asked = self.contract.largest_batch, self.options.benchmark_batch
        if largest < asked != ExportOptions.benchmark_batch:
            raise ExportError(f"speed was to be measured at batches of {asked} (--batch), but the contract allows at most {largest}")
        if self.options.requires_int8 and self.int8_refusal is not None:
            raise ExportError(self.int8_refusal)

    @property
    def wants_int8(self) -> bool:
        """Whether int8 is asked for, and there are images to calibrate it with or a plan."""
        return "int8" in self.options.precisions and bool(self.calibration or self.options.requires_int8)

    @property
    def int8_refusal(self) -> str | None:
        """Why int8 was wanted and cannot be made; None if it can, or was not wanted."""
        return int8_unsupported_reason(self.contract) if self.wants_int8 else None

    def require_readable_images(self) -> None:
        """Read each image that int8 is calibrated with or judged by once. Raises ImageError that counts those that cannot be, before minutes of work."""
        if not self.wants_int8 or self.int8_refusal is not None:
            return
        images = calibration_sample(self.calibration, self.options.calibration_images)
        read = [*images.sample, *([] if self.held_out else spread(images.spare, JUDGED))]
        faults: dict[int, ImageError] = {}
        for _ in pixel_batches([each.source for each in read], self.contract, prepared_at_once=1, faults=faults):
            pass
        if faults:
            others = f" (and {len(faults) - 1} more images)" if len(faults) > 1 else ""
            kept = any(each.pixels is not None and each.pixels.resize == "keep" for each in self.contract.inputs)
            sizes = ", or promise their sizes (--dynamic height=LOW..HIGH,width=LOW..HIGH)" if kept else ""
            raise ImageError(f"calibration: {next(iter(faults.values()))}{others}; mend or remove what cannot be read{sizes}")


def make_request(
    network: nn.Module,
    contract: Contract | ImageTask,
    name: str,
    calibration: Examples | None,
    held_out: Examples | None,
    provenance: Mapping[str, str] | None,
    options: ExportOptions | None,
    progress: ProgressCallback,
) -> ExportRequest:
    """Everything that the caller gave, as values. Raises ExportError, InputError naming the argument that is of another kind."""
    settings = ExportOptions() if options is None else options
    facts = {} if provenance is None else provenance
    _require_kinds({"network": network, "contract": contract, "name": name, "provenance": facts, "options": settings})
    settled = contract if isinstance(contract, Contract) else image_contract(network, contract)
    for each in settled.inputs:
        if each.pixels is not None:
            require_unit_range(each.pixels)
    return ExportRequest(
        network=network,
        contract=settled,
        name=name,
        calibration=_examples("calibration", calibration, None),
        held_out=_examples("held_out", held_out, settled),
        provenance=dict(facts),
        options=settings,
        progress=progress,
    )


def as_path(out: str | Path) -> Path:
    """The folder that was asked for. Raises ExportError."""
    _require_kinds({"out": out})
    return Path(out)


KINDS: Mapping[str, tuple[Any, str]] = {
    "network": (nn.Module, "a torch.nn.Module"),
    "contract": (Contract | ImageTask, "an edgeport_runtime.Contract or an edgeport_export.ImageTask"),
    "out": (str | Path, "a str or a Path"),
    "name": (str, "a str"),
    "provenance": (Mapping, "a mapping of str to str"),
    "options": (ExportOptions, "an ExportOptions"),
}


def _require_kinds(given: Mapping[str, Any]) -> None:
    for which, value in given.items():
        types, words = KINDS[which]
        if not isinstance(value, types):
            raise ExportError(f"{which} must be {words}, got {type(value).__name__}")
    facts = given.get("provenance", {})
    if not all(isinstance(each, str) for pair in facts.items() for each in pair):
        raise ExportError(f"provenance must hold text alone, such as {{'checkpoint_sha256': '…'}}, got {dict(facts)!r}")


def _examples(which: str, given: Examples | None, contract: Contract | None) -> list[Example]:
    """`contract`: of a model that the images' truth belongs to; None if they need none."""
    if given is None:
        return []
    try:
        return read_examples(given) if contract is None else labeled_examples(given, contract)
    except InputError as error:
        raise InputError(f"{which}: {error}") from error
