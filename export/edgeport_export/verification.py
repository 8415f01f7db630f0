"""Verifying a bundle that exists: parity with PyTorch again from the checkpoint, and every golden case."""

from dataclasses import dataclass
from pathlib import Path

from edgeport_runtime import Bundle, BundleError, CheckReport, load

from .network.reference import TorchReference
from .progress import ProgressCallback, no_progress
from .sources import NetworkSource
from .validation.parity import Parity, measure_parity

SEED = 10_000  # inputs that the export did not use


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The findings. True if the fp32 sweep passed, every variant's golden cases did, and the checkpoint is the one exported."""

    parity: Parity
    checks: tuple[CheckReport, ...]
    same_checkpoint: bool

    def __bool__(self) -> bool:
        return bool(self.parity) and bool(self.checks) and all(self.checks) and self.same_checkpoint

    def __str__(self) -> str:
        lines = [f"fp32 {self.parity}", *map(str, self.checks)]
        return "\n".join(lines if self.same_checkpoint else [*lines, "FAILED the bundle was made from another checkpoint than this one"])


def require_same_contract(bundle: Bundle, source: NetworkSource) -> None:
    """Raises BundleError if the bundle promises something else than the network it is compared with."""
    if bundle.manifest.contract != source.contract:
        raise BundleError(f"{bundle.folder}: this bundle was made for another contract than the checkpoint's; export the checkpoint again")


def verify(bundle: str | Path, source: NetworkSource, progress: ProgressCallback = no_progress) -> Verification:
    """Compare the bundle's fp32 variant with PyTorch over the sweep, at inputs the export did not use, and re-run all golden cases.

    Raises BundleError and its kin if the bundle cannot be read, or was made for another contract.
    """
    opened = Bundle(bundle)
    require_same_contract(opened, source)
    model = opened.read(opened.variant("fp32"))
    parity = measure_parity(TorchReference(source.network, source.contract), model, seed=SEED, progress=progress)
    checks = tuple(load(bundle, precision=variant.precision).check() for variant in opened.manifest.variants)
    same = opened.manifest.provenance.get("checkpoint_sha256") == source.checkpoint_sha256
    return Verification(parity=parity, checks=checks, same_checkpoint=same)
