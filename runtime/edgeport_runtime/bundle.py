"""The bundle on disk: the manifest read into values, and every file handed out only after its sha256 agreed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .compare import Tolerance
from .contract import Contract, canonical_json
from .errors import AlteredError, BundleError, ContractError, FormatError
from .protobuf import Array, read_tensor

FORMAT = 1
MANIFEST, EVIDENCE = "manifest.json", "evidence.json"


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of the bundle: path relative to it, content hash."""

    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One ONNX file at one precision. `onnxruntime`: the lowest version that loads it. `plan`: int8 only, which nodes run as integers."""

    precision: str
    file: str
    sha256: str
    bytes: int
    opset: int
    ir_version: int
    onnxruntime: str
    plan: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GoldenCase:
    """A stored input with PyTorch's outputs, each variant's outputs on the host, and what the device may differ by.

    `inputs`, `outputs`: tensor files in the contract's order. `levels`: for each pixel output, by name, what PyTorch gave before rounding.
    `host`: precision -> output files. `tolerance`: precision -> one Tolerance for each output. fp32 is held to PyTorch, every other
    precision to what it gave on the host, so that a drift cannot hide inside its own rounding.
    """

    folder: str
    inputs: tuple[File, ...]
    outputs: tuple[File, ...]
    levels: Mapping[str, File]
    host: Mapping[str, tuple[File, ...]]
    tolerance: Mapping[str, tuple[Tolerance, ...]]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The bundle's table of contents."""

    name: str
    contract: Contract
    variants: tuple[Variant, ...]
    golden: tuple[GoldenCase, ...]
    auto: Mapping[str, str]
    provenance: Mapping[str, str]
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(sealed(asdict(self)), sort_keys=True, indent=1, ensure_ascii=True) + "\n"


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with a hash over everything else in it, against accidents; whoever alters it on purpose can seal it again."""
    body = {key: value for key, value in data.items() if key != "sha256"}
    return {**body, "sha256": hashlib.sha256(canonical_json(body).encode()).hexdigest()}


class Bundle:
    """A bundle whose manifest has been read. Raises BundleError where there is none, FormatError where it cannot be read."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = _manifest(self.folder)

    def variant(self, precision: str) -> Variant:
        """Raises BundleError naming the precisions that the bundle has."""
        for each in self.manifest.variants:
            if each.precision == precision:
                return each
        raise BundleError(f"{self.folder}: no {precision} variant in this bundle; it has {', '.join(v.precision for v in self.manifest.variants)}")

    def read(self, file: File | Variant) -> bytes:
        """Read one file once and check it. Raises AlteredError where the content is not what the manifest says."""
        path = self.folder / file.file
        if Path(file.file).is_absolute() or ".." in Path(file.file).parts:
            raise FormatError(f"{self.folder / MANIFEST}: {file.file!r} points outside the bundle")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise AlteredError(f"{path}: the manifest lists this file, but it cannot be read ({error.strerror}); export or copy the bundle again") from error
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise AlteredError(f"{path}: the content differs from what the manifest promises (sha256); export or copy the bundle again")
        return data

    def read_all(self) -> None:
        """Check every file that the manifest lists. Raises AlteredError."""
        for case in self.manifest.golden:
            for file in (*case.inputs, *case.outputs, *case.levels.values(), *(each for files in case.host.values() for each in files)):
                self.read(file)
        for variant in self.manifest.variants:
            self.read(variant)

    def tensor(self, file: File) -> Array:
        """Read one golden tensor."""
        return read_tensor(self.read(file))[1]

    def evidence(self) -> dict[str, Any]:
        """What was measured when the bundle was made; empty where the file is missing."""
        path = self.folder / EVIDENCE
        try:
            return dict(json.loads(path.read_text())) if path.exists() else {}
        except (OSError, ValueError) as error:
            raise FormatError(f"{path}: the evidence cannot be read ({error})") from error


def _manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not folder.is_dir():
        came = "this is a file" if folder.exists() else "there is no such folder"
        raise BundleError(f"{folder}: expected a bundle (a folder with {MANIFEST}), but {came}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{folder}: expected a bundle, but there is no {MANIFEST} in this folder") from error
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: the manifest cannot be read ({error}); export or copy the bundle again") from error
    found = data.get("format") if isinstance(data, dict) else None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise FormatError(f"{path}: this is not a manifest of edgeport (no format version)")
    if found > FORMAT:
        raise FormatError(f"{path}: the bundle has format {found}, this edgeport-runtime reads up to {FORMAT}; upgrade edgeport-runtime")
    if sealed(data) != data:
        raise AlteredError(f"{path}: the content is not what was written (sha256); export or copy the bundle again")
    try:
        manifest = _parse(data)
        _require_whole(manifest)
    except (KeyError, TypeError, ValueError, AttributeError, ContractError) as error:
        raise FormatError(f"{path}: the manifest is incomplete or malformed ({type(error).__name__}: {error}); export or copy the bundle again") from error
    return manifest


def _require_whole(manifest: Manifest) -> None:
    """What the types cannot say: every case has a file for each input and output, and each variant's outputs. Raises ValueError."""
    precisions = [variant.precision for variant in manifest.variants]
    taken = {manifest.auto[key] for key in ("precision", "in_batches") if key == "precision" or key in manifest.auto}
    sized = {"in_batches": "from_batch", "data_parallel_from": "data_parallel_from"}  # what "auto" may hold, and the batch that it must name then
    smallest = min((int(manifest.auto[sized[key]]) for key in sized if key in manifest.auto), default=2)
    if not precisions or len(set(precisions)) < len(precisions) or not taken <= set(precisions) or not manifest.auto["reason"] or smallest < 2:
        raise ValueError(f"variants {precisions} with auto {dict(manifest.auto)}")
    counts = len(manifest.contract.inputs), len(manifest.contract.outputs)
    for case in manifest.golden:
        listed = (case.outputs, *(case.host[each] for each in precisions), *(case.tolerance[each] for each in precisions))
        if len(case.inputs) != counts[0] or any(len(each) != counts[1] for each in listed):
            raise ValueError(f"{case.folder} does not hold {counts[0]} inputs and {counts[1]} outputs for each variant")
    files = [file.file for case in manifest.golden for file in (*case.inputs, *case.outputs)] + [variant.file for variant in manifest.variants]
    if not all(isinstance(file, str) for file in files):
        raise ValueError("a file name is no text")


def _parse(data: Mapping[str, Any]) -> Manifest:
    return Manifest(
        name=str(data["name"]),
        contract=Contract.from_dict(data["contract"]),
        variants=tuple(Variant(**each) for each in data["variants"]),
        golden=tuple(_case(each) for each in data["golden"]),
        auto=dict(data["auto"]),
        provenance=dict(data["provenance"]),
        format=data["format"],
    )


def _case(data: Mapping[str, Any]) -> GoldenCase:
    def files(listed: list[dict[str, str]]) -> tuple[File, ...]:
        return tuple(File(**each) for each in listed)

    return GoldenCase(
        folder=data["folder"],
        inputs=files(data["inputs"]),
        outputs=files(data["outputs"]),
        levels={name: File(**each) for name, each in data["levels"].items()},
        host={precision: files(listed) for precision, listed in data["host"].items()},
        tolerance={precision: tuple(_tolerance(each) for each in listed) for precision, listed in data["tolerance"].items()},
    )


def _tolerance(data: Mapping[str, float | None]) -> Tolerance:
    largest, rms = data["max_abs"], data["rms"]
    if largest is None:
        raise ValueError("a tolerance without max_abs")
    return Tolerance(max_abs=float(largest), rms=None if rms is None else float(rms))
