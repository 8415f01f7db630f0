"""Inputs of golden cases that are made by a formula instead of being stored: a case at the largest size would take megabytes.

The formula is whole numbers alone, so that any language makes the same inputs. With the flat index i of a value, in the order of its axes:

    pixels       (7 y + 11 x + 53 c + 89 n + x y // 16) mod 256         n image, y row, x column, c channel
    floats       (7919 i mod 2048 - 1024) / 512                         exact in half precision
    uint8        31 i mod 256
    other        i mod 2
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .contract import Contract, Input
from .engine import Arrays
from .errors import FormatError
from .manifest import GoldenCase

MOST_VALUES = 2**27  # of the inputs of a case: 134 MB of pixels
BLOCK = 2**20  # values that are made at once


def case_inputs(bundle: Bundle, case: GoldenCase) -> Arrays:
    """By the names of the contract. Raises AlteredError."""
    contract = bundle.manifest.contract
    if case.sizes is not None:
        return formula_inputs(contract, case.sizes)
    return {each.name: bundle.tensor(file) for each, file in zip(contract.inputs, case.inputs, strict=True)}


def formula_inputs(contract: Contract, sizes: Mapping[str, int]) -> Arrays:
    """`sizes`: of the dynamic axes."""
    shapes = {each.name: tuple(axis if isinstance(axis, int) else sizes[axis] for axis in each.shape) for each in contract.inputs}
    values = sum(map(math.prod, shapes.values()))
    if values > MOST_VALUES:
        raise FormatError(f"a golden case at {dict(sizes)} would have {values:,} values, more than {MOST_VALUES:,}")
    return {each.name: _made(each, shapes[each.name]) for each in contract.inputs}


def sampled(values: NDArray[Any], every: int) -> NDArray[Any]:
    """Each `every`-th value of the flat array; the array as it is if that is 1."""
    return values if every == 1 else np.ascontiguousarray(values).ravel()[::every]


def _made(given: Input, shape: tuple[int, ...]) -> NDArray[Any]:
    """Block by block, because whole numbers on the way take eight times the memory of pixels."""
    if given.pixels is not None:
        return _pixels(shape)
    made = np.empty(shape, np.dtype(given.dtype))
    flat = made.reshape(-1)
    for start in range(0, made.size, BLOCK):
        index = np.arange(start, min(start + BLOCK, made.size), dtype=np.int64)
        if made.dtype.kind == "f":
            flat[start : start + BLOCK] = (7919 * index % 2048 - 1024) / 512
        else:
            flat[start : start + BLOCK] = 31 * index % 256 if made.dtype == np.uint8 else index % 2
    return made


def _pixels(shape: tuple[int, ...]) -> NDArray[Any]:
    made = np.empty(shape, np.uint8)
    rows = max(1, BLOCK // max(1, math.prod(shape[2:])))
    for n in range(shape[0]):
        for top in range(0, shape[1], rows):
            y, x, c = np.ogrid[top : min(top + rows, shape[1]), : shape[2], : shape[3]]
            made[n, top : top + rows] = (7 * y + 11 * x + 53 * c + 89 * n + x * y // 16) % 256
    return made
