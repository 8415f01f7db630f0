"""From values to the files of a bundle: variants, golden cases, manifest, evidence."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeport_runtime import Contract
from edgeport_runtime.bundle import EVIDENCE, MANIFEST
from edgeport_runtime.contract import strict_json
from edgeport_runtime.manifest import Manifest, Selection, Variant
from edgeport_runtime.protobuf import read_outline

from .compatibility import lowest_onnxruntime
from .environment import versions
from .golden_cases import GoldenAnswers, write_golden

FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx", "fp16": "model.fp16.onnx"}


@dataclass(frozen=True)
class BundleContents:
    """Everything that a bundle holds. `models`: precision -> the file's bytes. `plan`: of the int8 variant, as stored, if there is one.

    `provenance`: the network's origin; the versions of the packages are added. `evidence`: what was measured.
    """

    name: str
    contract: Contract
    models: Mapping[str, bytes]
    plan: Mapping[str, Any] | None
    selection: Selection
    golden: GoldenAnswers
    provenance: Mapping[str, str]
    evidence: Mapping[str, Any]


def write_contents(folder: Path, contents: BundleContents) -> None:
    """Write all files into an empty folder."""
    manifest = Manifest(
        name=contents.name,
        contract=contents.contract,
        variants=tuple(_write_variant(folder, precision, model, contents.plan) for precision, model in contents.models.items()),
        golden=write_golden(folder, contents.golden),
        auto=contents.selection,
        provenance={**versions(), **contents.provenance},
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    (folder / EVIDENCE).write_text(strict_json(contents.evidence, indent=1) + "\n", encoding="utf-8")


def _write_variant(folder: Path, precision: str, model: bytes, plan: Mapping[str, Any] | None) -> Variant:
    outline = read_outline(model)
    (folder / FILES[precision]).write_bytes(model)
    opset, own = outline.opsets["ai.onnx"], plan if precision == "int8" else None
    return Variant(
        precision=precision,
        file=FILES[precision],
        sha256=hashlib.sha256(model).hexdigest(),
        bytes=len(model),
        opset=opset,
        ir_version=outline.ir_version,
        onnxruntime=lowest_onnxruntime(opset, outline.ir_version),
        target=None if own is None else own["target"],
        plan=own or {},
    )
