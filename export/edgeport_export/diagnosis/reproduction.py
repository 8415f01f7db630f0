"""A bundle's files made again from the network: if they come out byte for byte, they are what this network exports to, down to the last weight.

Outputs alone cannot show that: one median weight of a layer that is off by 1 % may move them less than rounding does. An export is deterministic, so
the same network, contract and plan give the same bytes with the same versions of the packages. Where a file comes out otherwise, the changes are named by
module.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import nn

from edgeport_export.bundle.environment import versions
from edgeport_export.errors import ExportError, logged
from edgeport_export.network.reference import prepared
from edgeport_export.progress import ProgressCallback, no_progress
from edgeport_export.quantization.image_roles import Images, calibration_sample, roles_of
from edgeport_export.quantization.plan import plan_from_dict
from edgeport_export.quantization.recovery.recovery_choice import replayed_builder
from edgeport_export.quantization.targets import find_target
from edgeport_export.quantization.variants import QuantizableGraph
from edgeport_export.rewrites.finalize import finalize, finalize_fp32
from edgeport_export.tracing.exporter import trace
from edgeport_runtime import Bundle, Contract, Example
from edgeport_runtime.manifest import Variant

from .graph_changes import GraphChange, graph_changes, told

MAKERS = ("edgeport", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")  # packages whose version may change the bytes
ADDITIONS = ("translations", "passes")  # of the provenance: a user's own, which are not at hand here


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """One variant. `same`: whether it came out byte for byte, or but for rounding; None if it was not made again, for `reason`.

    `changes`: by module, if it came out otherwise. `decides`: whether a change is a failure; not if other versions of the packages made the bundle.
    True if nothing speaks against the file.
    """

    precision: str
    same: bool | None
    reason: str = ""
    changes: tuple[GraphChange, ...] = ()
    decides: bool = True

    def __bool__(self) -> bool:
        return self.same is not False or not self.decides

    def __str__(self) -> str:
        if self.same is None:
            return f"{self.precision} was not made again: {self.reason}"
        if self.same:
            return f"{self.precision} is {self.reason or 'byte for byte'} what this network exports to"
        head = f"{'FAILED ' if self.decides else ''}{self.precision} is not what this network exports to{'' if self.decides else f' ({self.reason})'}: "
        return logged(head + told(self.changes), head + "\n".join(map(str, self.changes)))


def reproduce(bundle: Bundle, network: nn.Module, calibration: Sequence[Example] = (), progress: ProgressCallback = no_progress) -> tuple[Reproduction, ...]:
    """Every variant. `calibration`: the images that the export was given; an int8 plan whose weights were rounded for each other needs them again.
    Of these as many are taken as the evidence says.

    Raises ImageError for an image that cannot be read.
    """
    manifest = bundle.manifest
    additions = [each for each in ADDITIONS if manifest.provenance.get(each)]
    if additions:
        why = f"the export had {' and '.join(additions)} of its own, which are not at hand"
        return tuple(Reproduction(precision=each.precision, same=None, reason=why) for each in manifest.variants)
    progress("making the files again", 0, 1)
    other = _other_versions(manifest.provenance)
    images = calibration_sample(calibration, (bundle.evidence().get("images") or {}).get("calibration") or len(calibration))
    found = []
    traced: dict[Any, onnx.ModelProto] = {}
    for variant in manifest.variants:
        dtype = torch.float16 if variant.precision == "fp16" else torch.float32
        try:
            if dtype not in traced:
                traced[dtype] = trace(prepared(network), manifest.contract, dtype).model
            made = _made(variant, traced[dtype], manifest.contract, images, progress)
        except ExportError as error:
            found.append(Reproduction(precision=variant.precision, same=None, reason=str(error)))
            continue
        found.append(_compared(variant.precision, made, bundle.read(variant), other))
    return tuple(found)


def _made(variant: Variant, traced: onnx.ModelProto, contract: Contract, images: Images, progress: ProgressCallback) -> bytes:
    if variant.precision == "fp16":
        return finalize(traced, contract)
    if variant.precision == "fp32":
        return finalize_fp32(traced, contract)
    plan = plan_from_dict(variant.plan)
    if plan.recovery is not None and not images.sample:
        raise ExportError("its weights were rounded for each other with the calibration images: name them with --calibration")
    graph = QuantizableGraph.of(traced, contract, find_target(plan.target))
    with ExitStack() as stack:
        builder = replayed_builder(stack, graph, plan, roles_of(images, None).rounded_with if images.sample else [], progress)
        return finalize(builder.model(frozenset(plan.integer)), contract)


def _compared(precision: str, made: bytes, shipped: bytes, other: str) -> Reproduction:
    if made == shipped:
        return Reproduction(precision=precision, same=True)
    changes = graph_changes(onnx.load_from_string(made), onnx.load_from_string(shipped))
    if not changes:
        return Reproduction(precision=precision, same=True, reason="but for rounding")
    return Reproduction(precision=precision, same=False, reason=other, changes=tuple(changes), decides=not other)


def _other_versions(provenance: Mapping[str, str]) -> str:
    """Packages of other versions than made the bundle, in words; empty if there are none."""
    here = versions()
    differ = [f"{name} {provenance[name]} then, {here[name]} now" for name in MAKERS if name in provenance and name in here and provenance[name] != here[name]]
    return ", ".join(differ)
