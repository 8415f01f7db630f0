"""The sizes at which a network is run and a variant is compared with PyTorch, and the random inputs for them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgeport_runtime import Contract, Range
from edgeport_runtime.engine import Arrays
from edgeport_runtime.timing import random_array

from .reference import without_weights
from .wrapper import ExportWrapper

VALUES_FOR_EACH_INPUT = 64  # intermediate results for each number that goes in, if they cannot be counted
MEMORY_BUDGET_BYTES = 256 * 2**20  # for all intermediate results of one float64 run
BISECTIONS = 12  # 1/4096 of a range: less than one step of 32..1024 px
Sizes = dict[str, int]
Cost = Callable[[Mapping[str, int]], float]


def sweep_sizes(contract: Contract, cost: Cost | None = None) -> list[Sizes]:
    """Sizes inside the contract's ranges, without repeats. The contract's own size comes first.

    Batch 1, 2 and odd; the contract's own size, odd, non-square, larger, smaller; one side changed at a time; the smallest corner.
    With `cost` (bytes at some sizes): only those that fit MEMORY_BUDGET_BYTES, and the largest image and the largest batch that do. The
    contract's own size is among them at batch 1 and 2 at any cost: a network is run there anyhow.
    """
    height, width = _own_sides(contract)
    wanted = [
        (1, height, width),
        (2, height, width),
        (3, height + 1, width),
        (2, height, width + width // 2 + 1),
        (1, 2 * height, 2 * width),
        (5, height // 2, height // 2 + 3),
        (1, 1, 1),
        (2, 1, width),
        (7, height - 1, width + 5),
    ]
    points = [dict(_named(contract, point)) for point in wanted]
    if cost is not None:
        points = [*points[:2], *(point for point in points[2:] if cost(point) <= MEMORY_BUDGET_BYTES), *_corners(contract, cost)]
    return [dict(pairs) for pairs in dict.fromkeys(tuple(sorted(point.items())) for point in points)]


def edge_sizes(contract: Contract, cost: Cost) -> list[Sizes]:
    """The smallest sizes of all axes; the largest image at batch 1, and the largest batch at the contract's own size, whose cost fits MEMORY_BUDGET_BYTES."""
    found = [dict(_named(contract, (1, 1, 1))), *_corners(contract, cost)]
    return [dict(pairs) for pairs in dict.fromkeys(tuple(sorted(point.items())) for point in found)]


def own_sizes(contract: Contract) -> Sizes:
    """Every axis at the contract's own size, the batch at 1."""
    return dict(_named(contract, (1, *_own_sides(contract))))


def example_sizes(contract: Contract, *, near: bool = False) -> Sizes:
    """Sizes to trace at: batch 2, unequal sides, neither 0 nor 1, so that no axis is taken for fixed; inside the ranges if they allow it.

    `near`: the width is the contract's own and one step, instead of a quarter more.
    """
    height, width = _own_sides(contract)
    sizes = dict(_named(contract, (2, max(2, height), max(2, width + (1 if near else max(1, width // 4))))))
    if sizes.get("height") == sizes.get("width") and {"height", "width"} <= set(contract.axes):
        sides = contract.axes["height"]
        others = (sizes["height"] - sides.step, sizes["height"] + sides.step)
        sizes["height"] = next((size for size in others if size in sides and size > 1), sizes["height"])
    return sizes


def other_sizes(axes: Mapping[str, Range], own: Mapping[str, int], *, least: int) -> Sizes:
    """For every axis another size than its own, if its range has one of at least `least`; far enough to show after a stem that divides by 16.

    The sizes differ from each other if the ranges allow it, since equal ones could be taken for each other.
    """
    found = dict(own)
    taken: set[int] = set()
    for index, (name, sizes) in enumerate(axes.items()):
        away = own[name] * index // 4 + (2 + index) * sizes.step
        wished = map(sizes.nearest, (own[name] + away, own[name] - away, sizes.high, sizes.low))
        others = [size for size in wished if size != own[name] and size >= least]
        found[name] = min(others, key=lambda size: (size == 1, size in taken), default=own[name])  # 1 last: it may be broadcast
        taken.add(found[name])
    return found


def _own_sides(contract: Contract) -> tuple[int, int]:
    image = next((each.pixels for each in contract.inputs if each.pixels is not None), None)
    return (image.height, image.width) if image else (2, 2)


def _named(contract: Contract, point: tuple[int, int, int]) -> Iterator[tuple[str, int]]:
    """One size for each axis. Axes that are no batch, height or width differ from each other, so that a swap would show."""
    known = dict(zip(("batch", "height", "width"), point, strict=True))
    for index, (name, sizes) in enumerate(contract.axes.items()):
        yield name, sizes.nearest(known.get(name, point[0] + 2 + index))


def _corners(contract: Contract, cost: Cost) -> list[Sizes]:
    """The largest image at batch 1, and the largest batch at the contract's own size, that the budget allows."""
    height, width = _own_sides(contract)
    tops = {name: contract.axes[name].high if name in contract.axes else 1 for name in ("batch", "height", "width")}

    def image(share: float) -> Sizes:
        return dict(_named(contract, (1, round(height + share * (tops["height"] - height)), round(width + share * (tops["width"] - width)))))

    def batch(share: float) -> Sizes:
        return dict(_named(contract, (round(1 + share * (tops["batch"] - 1)), height, width)))

    return [corner for largest in (image, batch) if (corner := _largest(largest, cost)) is not None]


def _largest(at: Callable[[float], Sizes], cost: Cost) -> Sizes | None:
    """Bisect for the largest share, 0..1, of the way to the top whose cost fits."""
    if cost(at(0.0)) > MEMORY_BUDGET_BYTES:
        return None
    low, high = 0.0, 1.0
    if cost(at(1.0)) <= MEMORY_BUDGET_BYTES:
        return at(1.0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(at(middle)) <= MEMORY_BUDGET_BYTES else (low, middle)
    return at(low)


class _Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """Adds up the bytes of every result that a run makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, Tensor):
                self.bytes += each.numel() * each.element_size()
        return result


def measured_cost(network: nn.Module, contract: Contract) -> Cost:
    """Bytes of all intermediate results in float64, from two runs on torch's meta device, which computes shapes alone.

    Between and beyond the two sizes a power law is assumed: 1 for convolutions, up to 2 for attention. If the network does not run on the
    meta device, the cost is measured at the contract's own size alone and the power taken as 1.
    """
    height, width = _own_sides(contract)
    small = own_sizes(contract)
    large = dict(_named(contract, (1, 2 * height, 2 * width)))
    meta = ExportWrapper(without_weights(network), contract).to("meta").eval()
    try:
        first, second = _bytes(meta, contract, small, "meta"), _bytes(meta, contract, large, "meta")
        power = math.log(second / first) / math.log(_area(large) / _area(small)) if _area(large) > _area(small) else 1.0
    except (RuntimeError, NotImplementedError, TypeError):
        try:
            first, power = _bytes(ExportWrapper(network, contract).eval(), contract, small, "cpu"), 1.0
        except NotImplementedError:  # torch.cond takes no mode that it does not know
            elements = sum(array.size for array in sweep_inputs(contract, small, seed=0).values())
            first, power = VALUES_FOR_EACH_INPUT * 8 * elements, 1.0
    base = _area(small)
    return lambda sizes: 2 * first * sizes.get("batch", 1) * (_area(sizes) / base) ** power  # float64 is twice float32


def _area(sizes: Mapping[str, int]) -> int:
    return math.prod(size for name, size in sizes.items() if name != "batch")


def _bytes(module: nn.Module, contract: Contract, sizes: Mapping[str, int], device: str) -> int:
    inputs = [torch.from_numpy(array).to(device) for array in sweep_inputs(contract, sizes, seed=0).values()]
    with torch.no_grad(), _Tally() as tally:
        module(*inputs)
    return max(1, int(tally.bytes))


def sweep_inputs(contract: Contract, sizes: Mapping[str, int], seed: int) -> Arrays:
    """Random inputs at one point: smooth fields with grain for pixels, `random_array` for tensors."""
    generator = np.random.default_rng(seed)
    arrays: Arrays = {}
    for each in contract.inputs:
        shape = tuple(axis if isinstance(axis, int) else sizes[axis] for axis in each.shape)
        arrays[each.name] = random_image(shape, generator) if each.pixels is not None else random_array(shape, each.dtype, generator)
    return arrays


def scaled(contract: Contract, arrays: Arrays, factor: float) -> Arrays:
    """The inputs with float tensors multiplied by `factor`, and the contrast of pixels.

    A weaker image is a dark one, as by night: its levels lie between 0 and 255 * factor. A stronger one is scaled around the middle and clipped.
    """
    made: Arrays = {}
    for each in contract.inputs:
        array = arrays[each.name]
        if each.pixels is not None:
            middle = 127.5 if factor > 1 else 0.0
            made[each.name] = np.clip(middle + factor * (array - middle), 0, 255).astype(np.uint8)
        else:
            made[each.name] = (factor * array).astype(array.dtype) if array.dtype.kind == "f" else array
    return made


def random_image(shape: Sequence[int], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Waves of random direction and color with grain on top, full range: nearer to photographs than white noise. uint8 (N, H, W, C)."""
    batch, height, width, channels = shape
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = generator.uniform(-12, 12, (batch, 1, 1, channels, 2))
    phase = generator.uniform(0, 2 * np.pi, (batch, 1, 1, channels))
    field = np.sin(waves[..., 0] * y[None, :, :, None] + waves[..., 1] * x[None, :, :, None] + phase)
    made: NDArray[np.uint8] = np.clip(127.5 + 100 * field + generator.normal(0, 25, shape), 0, 255).astype(np.uint8)
    return made
