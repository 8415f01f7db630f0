"""What to blame in a bundle: the first module of fp32 that differs from PyTorch, and the products of int8 that cost most."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from edgeport_export.network.reference import TorchReference
from edgeport_export.network.size_sweep import Sizes, sweep_inputs
from edgeport_export.progress import ProgressCallback, no_progress
from edgeport_export.quantization.recovery.smoothing import smoothed
from edgeport_export.rewrites.names import WRAPPER
from edgeport_runtime import Bundle
from edgeport_runtime.engine import Arrays
from edgeport_runtime.golden_inputs import case_inputs

from .blame import SEED, Blame, blame, blame_inputs
from .int8_blame import Int8Blame, int8_blame
from .reproduction import Reproduction

CHANGED = "not what this network exports to"
OWN = WRAPPER.removesuffix("/")  # the "module" of nodes that stand outside of the network: normalization, layout, rounding


@dataclass(frozen=True, kw_only=True)
class BundleBlame:
    """`modules`: every module of fp32 against PyTorch. `products`: int8's, None if there is no int8. `changed`: modules whose nodes or stored values are
    not what the network exports to, by precision, from the files that were made again. True if nothing is to blame."""

    modules: Blame
    products: Int8Blame | None
    changed: dict[str, tuple[str, ...]]

    def __bool__(self) -> bool:
        return bool(self.modules) and (self.products is None or bool(self.products)) and not any(self.changed.values())

    def __str__(self) -> str:
        named = {precision: [f"what {OWN} adds around the network" if each == OWN else each for each in found] for precision, found in self.changed.items()}
        lines = [f"{precision}: {', '.join(found)} {'is' if len(found) == 1 else 'are'} {CHANGED}" for precision, found in named.items() if found]
        lines.append(f"fp32: {self.modules}")
        return "\n".join([*lines, *([] if self.products is None else [f"int8: {self.products}"])])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        products = None if self.products is None else self.products.to_dict()
        return {"passed": bool(self), "changed": {key: list(each) for key, each in self.changed.items()}, "fp32": self.modules.to_dict(), "int8": products}


def blame_bundle(
    bundle: Bundle,
    reference: TorchReference,
    reproductions: Sequence[Reproduction] = (),
    failed_at: Sequence[Sizes] = (),
    progress: ProgressCallback = no_progress,
) -> BundleBlame:
    """`reproductions`: of the same bundle, whose changes name modules. `failed_at`: sizes at which fp32 disagreed, of which the first is looked at.

    Integer products are looked at on the golden cases, which are real images if the export had some. Raises AlteredError, NetworkFailure.
    """
    fp32 = onnx.load_from_string(bundle.read(bundle.variant("fp32")))
    inputs = blame_inputs(reference)
    if failed_at:
        inputs = [*inputs[1:], sweep_inputs(reference.contract, failed_at[0], SEED)]
    changed = {each.precision: tuple(dict.fromkeys(change.module for change in each.changes)) for each in reproductions if each.decides}
    return BundleBlame(modules=blame(fp32, reference, inputs, progress), products=_products(bundle, fp32, progress), changed=changed)


def _products(bundle: Bundle, fp32: onnx.ModelProto, progress: ProgressCallback) -> Int8Blame | None:
    variant = next((each for each in bundle.manifest.variants if each.precision == "int8"), None)
    if variant is None or not bundle.manifest.golden:
        return None
    manifest, plan = bundle.manifest, variant.plan or {}
    golden: list[Arrays] = [case_inputs(bundle, case) for case in manifest.golden if case.sizes is None]
    int8 = onnx.load_from_string(bundle.read(variant))
    fp32 = smoothed(fp32, plan.get("smoothing") or {})  # what was moved into weights is no fault, and changes no answer
    return int8_blame(fp32, int8, manifest.contract, golden, rounded_to_nearest=plan.get("recovery") is None, progress=progress)
