"""How long one call takes on this machine: medians of single calls after a warm-up."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import Contract
from .errors import InputError

LEAST_CALLS = 5


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds per call: median, fastest and slowest of `calls`."""

    median_ms: float
    fastest_ms: float
    slowest_ms: float
    calls: int


def measure_calls(call: Callable[[], Any], *, seconds: float = 1.0, warm_up: int = 2) -> Timing:
    """Call again and again for `seconds` (at least LEAST_CALLS times) after `warm_up` calls that are not counted."""
    for _ in range(warm_up):
        call()
    spent_ms: list[float] = []
    end = time.perf_counter() + seconds
    while len(spent_ms) < LEAST_CALLS or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        spent_ms.append((time.perf_counter() - start) * 1e3)
    return Timing(median_ms=float(np.median(spent_ms)), fastest_ms=min(spent_ms), slowest_ms=max(spent_ms), calls=len(spent_ms))


def example_inputs(contract: Contract, *, batch: int, size_px: tuple[int, int] | None = None, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random inputs of the contract's shapes: pixels over the whole range, tensors as in `random_array`.

    Every axis is set to the contract's default size, `batch` and `size_px` (height, width). Raises InputError outside its ranges.
    """
    generator = np.random.default_rng(seed)
    if size_px is not None and all(each.pixels is None for each in contract.inputs):
        raise InputError(f"a size of {size_px[0]}x{size_px[1]} was asked for, but this model takes plain tensors and no image: leave it out")
    shapes: dict[str, tuple[int, ...]] = {}
    for each in contract.inputs:
        sizes: dict[str, int] = {"batch": batch}
        if each.pixels is not None:
            sizes |= {"height": each.pixels.height, "width": each.pixels.width}
        shape = tuple(axis if isinstance(axis, int) else sizes.get(axis, contract.axes[axis].low) for axis in each.shape)
        shapes[each.name] = shape if size_px is None or each.pixels is None else (shape[0], *size_px, *shape[3:])  # pixels are (N, H, W, C)
    try:
        contract.require_shapes(shapes)  # before anything is allocated
    except InputError as error:
        raise InputError(f"cannot run at batch {batch}{'' if size_px is None else f' and {size_px[0]}x{size_px[1]}'}: {error}") from error
    return {each.name: random_array(shapes[each.name], each.dtype, generator) for each in contract.inputs}


def random_array(shape: tuple[int, ...], dtype: str, generator: "np.random.Generator") -> NDArray[Any]:
    """Random numbers for an input that holds no pixels, or that need not look like an image.

    Floats from a normal distribution, uint8 over 0..255, bool as True and False. Other integers are 0 or 1, because they may be indices.
    """
    kind = np.dtype(dtype)
    if kind == np.bool_:
        return generator.integers(0, 2, shape).astype(bool)
    if np.issubdtype(kind, np.integer):
        return generator.integers(0, 256 if kind == np.uint8 else 2, shape).astype(kind)
    return generator.standard_normal(shape).astype(kind)
