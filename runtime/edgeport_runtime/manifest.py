"""The manifest as values: what a bundle holds, promises and has decided, read from every format that there has been.

Format 2 (this one) holds the decision for "auto" as a `Selection`, and an int8 variant's target as a `TargetCpu`. Format 1 held the decision as
text, and the target by name inside the plan. Its manifests are read into the same values. `docs/manifest.schema.json` describes both formats.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from .axes import is_whole
from .contract import Contract
from .json_text import canonical_json
from .typed import type_fault

FORMAT = 2
MOST_BYTES = 2**31 - 1  # of one file; protobuf has no larger messages


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The largest difference allowed, and if it matters the root mean square, in the units of the output."""

    max_abs: float
    rms: float | None = None


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of the bundle: path relative to it, content hash."""

    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class TargetCpu:
    """The kind of CPU that an int8 variant was made for.

    `machines`: the names that `platform.machine()` gives there. `narrow_weights`: whether weights keep to 7 bits, so that products cannot
    saturate (microsoft/onnxruntime#14642).
    """

    name: str
    machines: tuple[str, ...]
    narrow_weights: bool


X86, ARM = ("x86_64", "AMD64"), ("aarch64", "arm64", "ARM64")
TARGETS_OF_FORMAT_1 = {
    "x86-vnni": TargetCpu(name="x86-vnni", machines=X86, narrow_weights=False),
    "x86": TargetCpu(name="x86", machines=X86, narrow_weights=True),
    "arm64": TargetCpu(name="arm64", machines=ARM, narrow_weights=False),
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One ONNX file at one precision. `onnxruntime`: the lowest version that loads it.

    `target`: int8 only. `plan`: int8 only, the products that run as integers, and why; the host replays it.
    """

    precision: str
    file: str
    sha256: str
    bytes: int
    opset: int
    ir_version: int
    onnxruntime: str
    target: TargetCpu | None = None
    plan: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class GoldenCase:
    """A stored input with PyTorch's outputs, each variant's outputs on the host, and the differences allowed on the device.

    `inputs`, `outputs`: tensor files in the contract's order. `levels`: for each pixel output, by name, PyTorch's values before rounding.
    `host`: precision -> output files. `tolerance`: precision -> one Tolerance for each output. fp32 is held to PyTorch, every other
    precision to what it gave on the host, so that a drift cannot hide inside its own rounding.
    `sizes`: of the axes, if the input is no file but made by the formula of `golden_inputs`. `every`: outputs hold each so many-th value, flat.
    """

    folder: str
    inputs: tuple[File, ...]
    outputs: tuple[File, ...]
    levels: Mapping[str, File]
    host: Mapping[str, tuple[File, ...]]
    tolerance: Mapping[str, tuple[Tolerance, ...]]
    sizes: Mapping[str, int] | None = None
    every: int = 1


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What `precision="auto"` takes, as it was measured when the bundle was made.

    `precision`: of the variant; `reason`: why, in one sentence. `batch_precision`, `from_batch`: the variant for calls of at least so many images,
    if another one is faster there. `split_batch_from`: the batch size from which it is faster that each thread runs images of its own.
    """

    precision: str
    reason: str
    batch_precision: str | None = None
    from_batch: int | None = None
    split_batch_from: int | None = None

    @property
    def precisions(self) -> set[str]:
        """All that it may take."""
        return {self.precision, self.batch_precision or self.precision}

    def taken(self, batch: int) -> str:
        """The precision for calls of `batch` images."""
        return self.batch_precision if self.batch_precision is not None and self.from_batch is not None and batch >= self.from_batch else self.precision


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The bundle's table of contents. `format`: of the file that it was read from."""

    name: str
    contract: Contract
    variants: tuple[Variant, ...]
    golden: tuple[GoldenCase, ...]
    auto: Selection
    provenance: Mapping[str, str]
    format: int = FORMAT

    def to_json(self) -> str:
        """Canonical text with a hash over all of it: equal manifests give equal bytes. Raises ValueError for a number that is not finite: JSON has none."""
        data = sealed({**asdict(self), "contract": self.contract.to_dict()})
        return json.dumps(data, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with a hash over everything else in it, against accidents; whoever alters it on purpose can seal it again."""
    body = {key: value for key, value in data.items() if key != "sha256"}
    return {**body, "sha256": hashlib.sha256(canonical_json(body).encode()).hexdigest()}


def parse_manifest(data: Mapping[str, Any]) -> Manifest:
    """Read a manifest whose seal was checked. Raises KeyError, TypeError, ValueError, AttributeError, ContractError if something is missing or wrong."""
    old = data["format"] == 1
    if not old:
        _require_known(data, {each.name for each in fields(Manifest)} | {"sha256"}, "the manifest")
    manifest = Manifest(
        name=str(data["name"]),
        contract=Contract.from_dict(data["contract"]),
        variants=tuple(_variant_of_format_1(each) if old else _variant(each) for each in data["variants"]),
        golden=tuple(_case(each) for each in data["golden"]),
        auto=selection_of_format_1(data["auto"]) if old else Selection(**data["auto"]),
        provenance=dict(data["provenance"]),
        format=data["format"],
    )
    fault = type_fault(manifest)
    if fault is not None:
        raise TypeError(fault)
    faults = [*_faults(manifest), *_golden_faults(manifest), *_file_faults(manifest)]
    if faults:
        raise ValueError("; ".join(faults))
    return manifest


def _require_known(data: Mapping[str, Any], known: set[str], where: str) -> None:
    """Format 2 is frozen: what it does not have belongs to another format."""
    unknown = sorted(map(str, set(data) - known))
    if unknown:
        raise ValueError(f"{where} has fields that format {FORMAT} does not know: {', '.join(unknown)[:100]}")


def selection_of_format_1(auto: Mapping[str, Any]) -> Selection:
    """Format 1 held numbers as text and left out what did not apply. Raises KeyError, ValueError."""
    batch, split = auto.get("from_batch"), auto.get("data_parallel_from")
    return Selection(
        precision=auto["precision"],
        reason=auto["reason"],
        batch_precision=auto.get("in_batches"),
        from_batch=None if batch is None else int(batch),
        split_batch_from=None if split is None else int(split),
    )


def _variant(data: Mapping[str, Any]) -> Variant:
    target = data["target"]
    return Variant(**{**data, "target": None if target is None else TargetCpu(**{**target, "machines": tuple(target["machines"])})})


def _variant_of_format_1(data: Mapping[str, Any]) -> Variant:
    plan = data.get("plan") or None
    return Variant(**{**data, "plan": plan, "target": None if plan is None else TARGETS_OF_FORMAT_1[plan["target"]]})


def _faults(manifest: Manifest) -> list[str]:
    """What the types cannot tell: every case has a file for each input and output, and each variant's outputs."""
    precisions, auto, found = [variant.precision for variant in manifest.variants], manifest.auto, []
    if not precisions or len(set(precisions)) < len(precisions) or not auto.precisions <= set(precisions) or not auto.reason:
        found.append(f"variants {precisions} with auto {asdict(auto)}")
    if (auto.batch_precision is None) != (auto.from_batch is None):
        found.append("auto.batch_precision and auto.from_batch belong together")
    for name, size in (("from_batch", auto.from_batch), ("split_batch_from", auto.split_batch_from)):
        if size is not None and (not is_whole(size) or size < 2):
            found.append(f"auto.{name} must be a batch of at least 2, got {size!r}")
    found += [f"{each.file} has {each.bytes} bytes" for each in manifest.variants if not 0 < each.bytes <= MOST_BYTES]
    return found


def _golden_faults(manifest: Manifest) -> Iterator[str]:
    contract, precisions = manifest.contract, [variant.precision for variant in manifest.variants]
    counts = len(contract.inputs), len(contract.outputs)
    for case in manifest.golden:
        listed = (case.outputs, *(case.host[each] for each in precisions), *(case.tolerance[each] for each in precisions))
        if len(case.inputs) != (counts[0] if case.sizes is None else 0) or any(len(each) != counts[1] for each in listed):
            yield f"{case.folder} does not hold {counts[0]} inputs and {counts[1]} outputs for each variant"
        sizes = case.sizes
        if case.every < 1 or (sizes is not None and (set(sizes) != set(contract.axes) or any(size not in contract.axes[name] for name, size in sizes.items()))):
            yield f"{case.folder} has sizes {sizes} and every {case.every}, which the contract's axes do not allow"


def files_of(case: GoldenCase) -> Iterator[File]:
    """All files of a golden case."""
    yield from (*case.inputs, *case.outputs, *case.levels.values(), *(each for files in case.host.values() for each in files))


def _file_faults(manifest: Manifest) -> Iterator[str]:
    """A name is a path below the bundle's folder, on any system."""
    for name in (*(each.file for each in manifest.variants), *(each.file for case in manifest.golden for each in files_of(case))):
        path, windows = PurePosixPath(name), PureWindowsPath(name)
        if not path.parts or "\0" in name or path.is_absolute() or windows.drive or windows.root or ".." in windows.parts:
            yield f"{name!r} points outside the bundle"


def _case(data: Mapping[str, Any]) -> GoldenCase:
    _require_known(data, {each.name for each in fields(GoldenCase)}, "a golden case")

    def files(listed: list[dict[str, str]]) -> tuple[File, ...]:
        return tuple(File(**each) for each in listed)

    return GoldenCase(
        folder=data["folder"],
        inputs=files(data["inputs"]),
        outputs=files(data["outputs"]),
        levels={name: File(**each) for name, each in data["levels"].items()},
        host={precision: files(listed) for precision, listed in data["host"].items()},
        tolerance={precision: tuple(_tolerance(each) for each in listed) for precision, listed in data["tolerance"].items()},
        sizes=None if data.get("sizes") is None else dict(data["sizes"]),
        every=data.get("every", 1),
    )


def _tolerance(data: Mapping[str, float | None]) -> Tolerance:
    largest, rms = data["max_abs"], data["rms"]
    if largest is None:
        raise ValueError("a tolerance without max_abs")
    return Tolerance(max_abs=largest, rms=rms)
