"""Which variant runs on this machine, and how: the bundle's decision, the device, the CPU and the typical batch together."""

from dataclasses import replace
from typing import Any

from .axes import is_whole
from .bundle import Bundle
from .contract import Contract
from .device import SessionOptions
from .engine import divides
from .errors import InputError
from .int8_probe import int8_products_are_exact
from .manifest import Variant
from .threads import usable_threads

PRECISIONS = ("auto", "fp32", "int8", "fp16")
SATURATES = "this CPU's int8 products saturate, so exact ones are used, which are slower"


def choose(bundle: Bundle, device: str, precision: str, machine: str, batch: int = 1) -> tuple[str, str]:
    """The precision to run, and why. `machine`: as `platform.machine()` names it. `batch`: the typical number of images per call.

    Raises InputError for an unknown precision, BundleError if the bundle lacks it.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {list(PRECISIONS)}, got {precision!r}")
    if precision != "auto":
        return bundle.variant(precision).precision, "asked for"
    if device == "cuda":
        if any(variant.precision == "fp16" for variant in bundle.manifest.variants):
            return "fp16", "fp16 is the fast precision on CUDA"
        return "fp32", "the bundle has no fp16, and int8 graphs have no integer kernels on CUDA (microsoft/onnxruntime#12229)"
    auto = bundle.manifest.auto
    variant = bundle.variant(auto.taken(batch))
    if variant.target is not None and machine not in variant.target.machines:
        return "fp32", f"int8 was made for {variant.target.name}, and this machine is {machine}, on which its number formats are slow"
    return variant.precision, auto.reason


def not_run_here(variant: Variant, device: str, machine: str) -> str | None:
    """Why this device does not run a variant, or only in a way that nobody would ship; None if it does. `machine`: as `platform.machine()` names it."""
    if variant.precision == "int8" and device == "cuda":
        return "int8 graphs have no integer kernels on CUDA (microsoft/onnxruntime#12229)"
    if variant.target is not None and machine not in variant.target.machines:
        return f"it was made for {variant.target.name}, and this machine is {machine}"
    return None


def should_split_batch(bundle: Bundle, options: SessionOptions, precision: str, batch: int) -> bool:
    """Whether batches of this size and precision were faster with images of its own for each thread, and divide evenly among the threads here."""
    auto = bundle.manifest.auto
    if options.device != "cpu" or precision != (auto.batch_precision or auto.precision) or auto.split_batch_from is None:
        return False
    return batch >= auto.split_batch_from and divides(bundle.manifest.contract, batch, options.threads or usable_threads())


def with_exact_int8(options: SessionOptions, reason: str, *, saturable: bool) -> tuple[SessionOptions, str]:
    """Options and reason with exact int8 products, if this CPU's saturate. `saturable`: whether the variant's products can."""
    if not saturable or options.device != "cpu" or int8_products_are_exact():
        return options, reason
    return replace(options, exact_int8=True), f"{reason}; {SATURATES}"


def require_batch(batch: Any, contract: Contract) -> int:
    """A typical batch size that the contract allows. Raises InputError."""
    largest = contract.largest_batch
    if not is_whole(batch) or not 1 <= batch <= largest:
        raise InputError(f"batch is the typical number of images per call, a whole number within 1..{largest}, got {batch!r}")
    return int(batch)
