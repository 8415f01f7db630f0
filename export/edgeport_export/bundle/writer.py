"""From values to the files of a bundle: variants, golden cases, manifest, evidence."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeport_export.errors import ExportError
from edgeport_runtime import Bundle, Contract
from edgeport_runtime.bundle import EVIDENCE, MANIFEST
from edgeport_runtime.errors import FormatError, first_line
from edgeport_runtime.json_text import strict_json
from edgeport_runtime.manifest import Manifest, Selection, TargetCpu, Variant
from edgeport_runtime.outline import read_outline

from .compatibility import lowest_onnxruntime
from .golden_cases import GoldenAnswers, write_golden

FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx", "fp16": "model.fp16.onnx"}


@dataclass(frozen=True)
class BundleContents:
    """Everything that a bundle holds. `models`: precision -> the file's bytes. `target`, `plan`: of the int8 variant, if there is one.

    `provenance`: the network's origin, and the versions of the packages. `evidence`: what was measured.
    """

    name: str
    contract: Contract
    models: Mapping[str, bytes]
    target: TargetCpu | None
    plan: Mapping[str, Any] | None
    selection: Selection
    golden: GoldenAnswers
    provenance: Mapping[str, str]
    evidence: Mapping[str, Any]


def write_contents(folder: Path, contents: BundleContents) -> None:
    """Write all files into an empty folder. Raises ExportError for what the runtime would refuse, before anybody has such a bundle."""
    manifest = Manifest(
        name=contents.name,
        contract=contents.contract,
        variants=tuple(_write_variant(folder, precision, contents) for precision in contents.models),
        golden=write_golden(folder, contents.golden),
        auto=contents.selection,
        provenance=dict(contents.provenance),
    )
    (folder / EVIDENCE).write_text(strict_json(contents.evidence, indent=1) + "\n", encoding="utf-8")
    try:
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        Bundle(folder)
    except (ValueError, FormatError) as error:
        raise ExportError(f"the bundle that was made cannot be read ({first_line(error)}); this is a fault of edgeport: please report it") from error


def _write_variant(folder: Path, precision: str, contents: BundleContents) -> Variant:
    model = contents.models[precision]
    outline = read_outline(model)
    (folder / FILES[precision]).write_bytes(model)
    opset, is_int8 = outline.opsets["ai.onnx"], precision == "int8"
    return Variant(
        precision=precision,
        file=FILES[precision],
        sha256=hashlib.sha256(model).hexdigest(),
        bytes=len(model),
        opset=opset,
        ir_version=outline.ir_version,
        onnxruntime=lowest_onnxruntime(opset, outline.ir_version),
        target=contents.target if is_int8 else None,
        plan=contents.plan if is_int8 else None,
    )
