from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeport_runtime import Bundle, BundleError, InputError, SessionOptions, selection
from edgeport_runtime.manifest import TARGETS_OF_FORMAT_1, Selection
from edgeport_runtime.selection import choose, not_run_here, require_batch, should_split_batch, with_exact_int8

MEASURED = Selection(precision="int8", reason="measured")
SLOWER_ALONE = Selection(precision="fp32", reason="slower alone", batch_precision="int8", from_batch=8)


@pytest.fixture
def bundle(classifier: Path) -> Bundle:
    return Bundle(classifier)


@pytest.mark.parametrize(
    ("device", "machine", "precisions", "target", "expected", "message"),
    [
        ("cpu", "x86_64", ("fp32", "int8"), "x86-vnni", "int8", "measured"),
        ("cpu", "aarch64", ("fp32", "int8"), "x86-vnni", "fp32", "made for x86-vnni, and this machine is aarch64"),
        ("cpu", "x86_64", ("fp32", "int8"), "arm64", "fp32", "made for arm64, and this machine is x86_64"),
        ("cpu", "arm64", ("fp32", "int8"), "arm64", "int8", "measured"),
        ("cuda", "x86_64", ("fp32", "int8"), "x86-vnni", "fp32", "no integer kernels on CUDA"),
        ("cuda", "x86_64", ("fp32", "int8", "fp16"), "x86-vnni", "fp16", "fp16 is the fast precision on CUDA"),
    ],
)
def test_auto_by_device_machine_and_variants(
    bundle: Bundle, device: str, machine: str, precisions: tuple[str, ...], target: str, expected: str, message: str
) -> None:
    first = bundle.manifest.variants[0]
    variants = tuple(replace(first, precision=each, target=TARGETS_OF_FORMAT_1[target] if each == "int8" else None) for each in precisions)
    bundle.manifest = replace(bundle.manifest, variants=variants, auto=MEASURED)
    chosen, reason = choose(bundle, device, "auto", machine)
    assert chosen == expected and message in reason and "golden" not in reason  # nothing was checked yet


@pytest.mark.parametrize(("batch", "expected"), [(1, "fp32"), (7, "fp32"), (8, "int8"), (16, "int8")])
def test_auto_goes_by_the_batch_if_int8_is_slower_alone(bundle: Bundle, batch: int, expected: str) -> None:
    bundle.manifest = replace(bundle.manifest, auto=SLOWER_ALONE)
    assert choose(bundle, "cpu", "auto", "x86_64", batch) == (expected, "slower alone")
    assert choose(bundle, "cpu", "fp32", "x86_64", batch)[0] == "fp32" and choose(bundle, "cuda", "auto", "x86_64", batch)[0] == "fp32"


def test_a_precision_that_is_asked_for_is_taken_or_refused(bundle: Bundle) -> None:
    assert choose(bundle, "cpu", "int8", "aarch64") == ("int8", "asked for")
    with pytest.raises(BundleError, match="no fp16 variant in this bundle"):
        choose(bundle, "cpu", "fp16", "x86_64")
    with pytest.raises(InputError, match=r"precision must be one of \['auto', 'fp32', 'int8', 'fp16'\], got 'int4'"):
        choose(bundle, "cpu", "int4", "x86_64")


SPLIT = replace(SLOWER_ALONE, from_batch=6, split_batch_from=6)


@pytest.mark.parametrize(
    ("auto", "precision", "batch", "options", "expected"),
    [
        (SPLIT, "int8", 8, {"threads": 2}, True),
        (SPLIT, "int8", 6, {"threads": 2}, True),
        (SPLIT, "int8", 4, {"threads": 2}, False),  # measured from 6 images on
        (SPLIT, "int8", 7, {"threads": 2}, False),  # does not divide
        (SPLIT, "int8", 8, {"threads": 3}, False),
        (SPLIT, "int8", 8, {"threads": 1}, False),
        (SPLIT, "fp32", 8, {"threads": 2}, False),  # measured with the other one
        (SPLIT, "int8", 8, {"threads": 2, "device": "cuda"}, False),
        (SLOWER_ALONE, "int8", 8, {"threads": 2}, False),  # never faster
        (replace(MEASURED, split_batch_from=8), "int8", 8, {"threads": 2}, True),
        (replace(MEASURED, split_batch_from=8), "fp32", 8, {"threads": 2}, False),
    ],
)
def test_batches_are_split_as_was_measured(bundle: Bundle, auto: Selection, precision: str, batch: int, options: dict[str, Any], expected: bool) -> None:
    bundle.manifest = replace(bundle.manifest, auto=auto)
    assert should_split_batch(bundle, SessionOptions(**options), precision, batch) == expected


@pytest.mark.parametrize(
    ("saturable", "device", "exact", "slower"),
    [(True, "cpu", False, True), (True, "cpu", True, False), (False, "cpu", False, False), (True, "cuda", False, False)],
)
def test_exact_products_are_taken_only_if_others_would_saturate(
    saturable: bool, device: str, exact: bool, slower: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "int8_products_are_exact", lambda: exact)
    options, reason = with_exact_int8(SessionOptions(device=device), "measured", saturable=saturable)
    assert options.exact_int8 is slower and reason.startswith("measured") and ("saturate" in reason) is slower


@pytest.mark.parametrize("batch", [1, 8, np.int64(8)])
def test_a_batch_that_the_contract_allows(bundle: Bundle, batch: int) -> None:
    found = require_batch(batch, bundle.manifest.contract)
    assert found == batch and type(found) is int


@pytest.mark.parametrize("batch", [0, -1, 9, "8", None, 2.0, float("nan"), True])
def test_another_batch_is_refused(bundle: Bundle, batch: object) -> None:
    with pytest.raises(InputError, match=f"the typical number of images per call, a whole number within 1..8, got {batch!r}"):
        require_batch(batch, bundle.manifest.contract)


@pytest.mark.parametrize(
    ("precision", "device", "machine", "words"),
    [
        ("fp32", "cpu", "riscv64", None),
        ("fp32", "cuda", "x86_64", None),
        ("int8", "cpu", "x86_64", None),
        ("int8", "cpu", "aarch64", "it was made for x86-vnni, and this machine is aarch64"),
        ("int8", "cuda", "x86_64", "int8 graphs have no integer kernels on CUDA"),
    ],
)
def test_what_a_device_does_not_run_says_why(classifier: Path, precision: str, device: str, machine: str, words: str | None) -> None:
    found = not_run_here(Bundle(classifier).variant(precision), device, machine)
    assert found is None if words is None else found is not None and words in found
