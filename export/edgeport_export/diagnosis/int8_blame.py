"""What each integer product costs, why, and what would mend it.

A product's cost is the outputs' distance from fp32 if it alone runs as integers. Its cause is looked for in what is rounded: its input, whose values are
clipped by the range or told apart too coarsely, and its weights.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeport_export.network.wrapper import compared_outputs
from edgeport_export.progress import ProgressCallback, no_progress
from edgeport_export.quantization.macs import session_with_outputs
from edgeport_export.quantization.output_error import sqnr_db
from edgeport_runtime import Contract
from edgeport_runtime.engine import Arrays

from .int8_products import Int8Products, IntegerProduct, RoundedWeights, Rounding

NEAREST = 0.75  # steps that a weight may be off if it was rounded to its nearest one; half a step, and what a shift of the gain adds
LEAST_SPREAD = 0.01  # of the widest channel's, for a channel to be missed
OUTLIER = 8.0  # times the median channel's largest value
SHOWN = 8
Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Cause:
    """`kind`: "altered weights", "dead channel", "clipped range", "outlier channel", "coarse input" or "coarse weights".

    `told`: the figures, `remedy`: what would mend it, in words. `is_fault`: whether rounding cannot explain it."""

    kind: str
    told: str
    remedy: str
    is_fault: bool = False


@dataclass(frozen=True, kw_only=True)
class ProductCost:
    """One product. `alone_db`: signal over error of the outputs if it alone runs as integers; of the worst output. `local_db`: of its own output.

    `share`: of the error of all products, 0..1, as if each added its own.
    """

    module: str
    node: str
    alone_db: float
    local_db: float
    share: float
    cause: Cause

    def __str__(self) -> str:
        figures = f"{100 * self.share:.0f} % of int8's error, {self.alone_db:.1f} dB at the outputs if it alone runs as integers"
        return f"{self.module}: {figures}; {self.cause.kind}: {self.cause.told}; {self.cause.remedy}"


@dataclass(frozen=True, kw_only=True)
class Int8Blame:
    """Every product, what rounding cannot explain first, then the dearest. `unmatched`: products that could not be looked at by themselves."""

    costs: tuple[ProductCost, ...]
    unmatched: tuple[str, ...]

    def __bool__(self) -> bool:
        return not any(cost.cause.is_fault for cost in self.costs)

    def __str__(self) -> str:
        faults = [cost for cost in self.costs if cost.cause.is_fault]
        head = "rounding does not explain int8's error" if faults else f"the dearest of {len(self.costs)} integer products"
        lines = [f"  {'-> ' if cost.cause.is_fault else ''}{cost}" for cost in self.costs[:SHOWN]]
        left = f"  not looked at by themselves: {', '.join(self.unmatched)}"
        return "\n".join([head, *lines, *([left] if self.unmatched else [])])

    def to_dict(self) -> dict[str, Any]:
        """For JSON: every product."""
        return {"passed": bool(self), "products": [asdict(cost) for cost in self.costs], "unmatched": list(self.unmatched)}


def int8_blame(
    fp32: onnx.ModelProto,
    int8: onnx.ModelProto,
    contract: Contract,
    inputs: Sequence[Arrays],
    *,
    rounded_to_nearest: bool,
    progress: ProgressCallback = no_progress,
) -> Int8Blame:
    """`fp32`, `int8`: variants of one bundle. `inputs`: by the names of the contract; real images tell most. `rounded_to_nearest`: whether each weight
    went to its nearest step; those that were rounded for each other may be many steps off, and cost nothing for it."""
    products = Int8Products(fp32, int8, inputs[0])
    made = {value for node in fp32.graph.node for value in node.output}
    names = [name if name in made else output.name for name, output in zip(compared_outputs(contract), contract.outputs, strict=True)]
    exact = _run(fp32, names, inputs)
    found = []
    for number, product in enumerate(products.products):
        progress("looking at each integer product", number, len(products.products))
        found.append(_cost(products, product, names, exact, inputs, rounded_to_nearest=rounded_to_nearest))
    total = sum(_power(cost.alone_db) for cost in found) or 1.0
    shared = [ProductCost(**{**vars(cost), "share": _power(cost.alone_db) / total}) for cost in found]
    return Int8Blame(costs=tuple(sorted(shared, key=lambda cost: (not cost.cause.is_fault, cost.alone_db))), unmatched=tuple(products.unmatched))


def _power(decibels: float) -> float:
    return float(10 ** (-min(decibels, 300.0) / 10)) if np.isfinite(decibels) or decibels > 0 else 1e30


def _run(model: onnx.ModelProto, names: Sequence[str], inputs: Sequence[Arrays]) -> dict[str, list[Array]]:
    session = session_with_outputs(model, list(dict.fromkeys(names)))
    answers = [session.run(list(dict.fromkeys(names)), arrays) for arrays in inputs]
    return {name: [answer[index] for answer in answers] for index, name in enumerate(dict.fromkeys(names))}


def _cost(
    products: Int8Products, product: IntegerProduct, names: Sequence[str], exact: dict[str, list[Array]], inputs: Sequence[Arrays], *, rounded_to_nearest: bool
) -> ProductCost:
    placed = products.in_place_of(product)
    roundings = products.roundings(product)
    renamed = {name: placed.value if name == product.output else name for name in names}
    got = _run(placed.model, [*renamed.values(), placed.value], inputs)
    own = _run(products.fp32.model, [product.output, *(each.value for each in roundings)], inputs)
    alone = min(sqnr_db(exact[name], got[renamed[name]]) for name in names)
    local = sqnr_db(own[product.output], got[placed.value])
    weights_share = 0.0
    if products.can_read_exact_inputs(product):
        exact_inputs = products.in_place_of(product, with_exact_inputs=True)
        of_weights = sqnr_db(own[product.output], _run(exact_inputs.model, [exact_inputs.value], inputs)[exact_inputs.value])
        weights_share = _power(of_weights) / max(_power(local), 1e-30)
    dead = _dead_channel(own[product.output], got[placed.value])
    inputs_told = [_input_cause(each, own[each.value]) for each in roundings]
    cause = _cause(products.weights(product), dead, inputs_told, weights_share, rounded_to_nearest=rounded_to_nearest)
    return ProductCost(module=product.module, node=product.name, alone_db=alone, local_db=local, share=0.0, cause=cause)


def _dead_channel(exact: Sequence[Array], got: Sequence[Array]) -> int | None:
    """A channel of a product's output that is constant though fp32's is not."""
    a, b = (np.concatenate([_by_channel(each) for each in side], axis=1) for side in (exact, got))
    spread = np.ptp(a, axis=1)
    dead = (np.ptp(b, axis=1) == 0) & (spread > LEAST_SPREAD * spread.max())
    return int(dead.argmax()) if dead.any() else None


def _by_channel(values: Array) -> NDArray[np.float64]:
    """(channels, everything else): the second axis of images, the last of tokens and rows."""
    moved = np.moveaxis(values, 1 if values.ndim >= 4 else -1, 0).astype(np.float64)
    return moved.reshape(len(moved), -1)


@dataclass(frozen=True, kw_only=True)
class _InputError:
    """`clipped`, `stepped`: error over signal, as powers. `cause`: what is worse of the two."""

    clipped: float
    stepped: float
    cause: Cause


def _input_cause(rounding: Rounding, values: Sequence[Array]) -> _InputError:
    flat = np.concatenate([each.ravel() for each in values]).astype(np.float64)
    signal = max(float(flat.var()), 1e-30)
    beyond = np.clip(flat, rounding.low, rounding.high)
    clipped, stepped = float(np.square(flat - beyond).mean()) / signal, rounding.step**2 / 12 / signal
    largest = np.abs(np.concatenate([_by_channel(each) for each in values], axis=1)).max(axis=1)
    channel, median = int(largest.argmax()), float(np.median(largest[largest >= min(rounding.step, largest.max())]))  # what is smaller than a step is gone
    if clipped > stepped:
        share = float((flat != beyond).mean())
        told = f"{100 * share:.2g} % of {rounding.value} lie beyond {rounding.low:.3g}..{rounding.high:.3g}, up to {np.abs(flat).max():.3g}"
        cause = Cause(kind="clipped range", told=told, remedy="calibrate with images that reach so far, or leave it in float")
    elif largest[channel] > OUTLIER * max(median, 1e-12):
        told = f"channel {channel} of {rounding.value} reaches {largest[channel]:.3g}, the median one {median:.3g}, and all have one step"
        cause = Cause(kind="outlier channel", told=told, remedy="leave it in float, or scale this channel down in the layer before")
    else:
        told = f"a step of {rounding.value} is {rounding.step:.3g}, {rounding.step / signal**0.5:.2g} of its spread"
        cause = Cause(kind="coarse input", told=told, remedy="leave it in float if it must be nearer")
    return _InputError(clipped=clipped, stepped=stepped, cause=cause)


def _cause(weights: RoundedWeights | None, dead: int | None, inputs: Sequence[_InputError], weights_share: float, *, rounded_to_nearest: bool) -> Cause:
    """`weights_share`: of the product's own error, what is left if its inputs are exact."""
    if weights is not None and weights.exact is not None and rounded_to_nearest:
        altered = _altered(weights)
        if altered is not None:
            return altered
    if dead is not None:
        told = f"channel {dead} of its output is constant, and fp32's is not"
        return Cause(kind="dead channel", told=told, remedy="leave it in float: its values lie under one step of its input")
    worse = max(inputs, key=lambda each: each.clipped + each.stepped, default=None)
    if worse is not None and weights_share < 0.5:
        return worse.cause
    told = f"rounding them makes {100 * min(1.0, weights_share):.0f} % of its own error"
    return Cause(kind="coarse weights", told=told, remedy="export with --recover thorough, or leave it in float")


def _steps(weights: RoundedWeights) -> NDArray[np.float64]:
    """The steps, so that they multiply the integers."""
    shape = [1] * weights.integers.ndim
    shape[weights.axis] = -1
    return weights.steps.reshape(shape)


def _altered(weights: RoundedWeights) -> Cause | None:
    assert weights.exact is not None
    off = np.abs(weights.integers - weights.exact / _steps(weights))
    place = tuple(int(each) for each in np.unravel_index(int(off.argmax()), off.shape))
    if off[place] <= NEAREST:
        return None
    told = f"the weight at {list(place)} is {off[place]:.1f} steps off fp32's, and rounding explains half a step"
    return Cause(kind="altered weights", told=told, remedy="the file is not what the export made: export again", is_fault=True)
