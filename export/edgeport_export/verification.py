"""Verifying a bundle that exists: parity with PyTorch again from the trained network, and every golden case."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from edgeport_runtime import Bundle, CheckReport, Contract, load

from .errors import ExportError
from .network.preflight import check_modules
from .network.reference import TorchReference, weights_sha256
from .network.size_sweep import Sizes, own_sizes, sweep_inputs
from .network.wrapper import flatten
from .progress import ProgressCallback, no_progress
from .validation.parity import Parity
from .validation.sweep import full_sweep, measure_parity

SEED = 10_000  # inputs that the export did not use


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The findings. True if fp32 agrees with PyTorch at every size, every variant's golden cases pass, and the weights are the exported ones.

    `replayed`: number of sizes that the evidence says the export looked at; they are looked at again. `same_weights`: None if the bundle does not
    hold the weights' hash, as those of format 1.
    """

    parity: Parity
    checks: tuple[CheckReport, ...]
    replayed: int
    same_weights: bool | None

    def __bool__(self) -> bool:
        return bool(self.parity) and bool(self.checks) and all(self.checks) and self.same_weights is not False

    def __str__(self) -> str:
        lines = ["FAILED the bundle was made from other weights than these"] if self.same_weights is False else []
        lines += [f"fp32 {self.parity}", *map(str, self.checks)]
        if not self.replayed:
            lines.append("the bundle's evidence lists no sizes, so those at which conditions inside the network change were not looked at again")
        if self.same_weights is None:
            lines.append("the weights were compared by their outputs alone: this bundle does not hold their hash")
        return "\n".join(lines)


def verify(bundle: Bundle | str | Path, network: nn.Module, *, progress: ProgressCallback = no_progress) -> Verification:
    """Compare the bundle's fp32 variant with PyTorch at inputs that the export did not use, and re-run all golden cases of every variant.

    `network`: the trained network, which is taken under the bundle's own contract and stays as it is. Sizes are those of the sweep, and
    those that the export looked at besides, because a condition inside the network changes there.
    Raises BundleError and its kin if the bundle cannot be read, NetworkFailure or ExportError if the network does not fit the contract.
    """
    if not isinstance(network, nn.Module):
        raise ExportError(f"network must be the torch.nn.Module that the bundle was made from, got {type(network).__name__}")
    opened = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    contract = opened.manifest.contract
    check_modules(network, contract)
    reference = TorchReference(network, contract)
    _require_fit(reference)
    swept = _swept(opened.evidence(), contract)
    sizes = [*full_sweep(reference), *swept]
    parity = measure_parity(reference, opened.read(opened.variant("fp32")), sizes=_once(sizes), seed=SEED, progress=progress)
    checks = tuple(load(opened.folder, precision=variant.precision).check() for variant in opened.manifest.variants)
    stored = opened.manifest.provenance.get("weights_sha256")
    same = None if stored is None else stored == weights_sha256(network)
    return Verification(parity=parity, checks=checks, replayed=len(swept), same_weights=same)


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
