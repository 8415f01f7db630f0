"""The ranges that a refusal names: those in which every guard holds; and the guards that do not, in words."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from edgeport_export.network.size_sweep import Sizes, own_sizes
from edgeport_runtime import Contract, Range

from .shape_guards import ShapeGuard, broken, points_of

SHRINKS = 20  # times that a range is made a quarter smaller before none is named
STEPS = (2, 4, 8, 16, 32, 64)  # that are named if a guard looks at a remainder

SENTENCES = {
    "branch": "branches on its {axes}{where}, and the graph keeps the way it took when it was traced",
    "specialization": "computes with the number of its {axes}{where}, and the graph keeps the number it had when it was traced",
    "rounding": "rounds a fraction of its {axes}{where}, in float64, and the graph does so in float32",
}


def explained(guards: Sequence[ShapeGuard], contract: Contract, failed: Sequence[Sizes], passed: Sequence[Sizes]) -> str:
    """Whether guards are to blame for the sizes that failed, and the ranges around the contract's own size in which the graph is right.

    A guard that is broken at a size that passed does no harm: both its ways give the same numbers.
    """
    guilty = [guard for guard in guards if not all(map(guard.holds, failed)) and all(map(guard.holds, passed))]
    if not guilty:
        return ""
    involved = [name for name in contract.axes if any(re.search(rf"\b{name}\b", guard.condition) for guard in guilty)]
    start = f"the network {SENTENCES[guilty[0].kind].format(axes=' and '.join(involved), where=_places(guilty, failed))}; "
    stepped = _in_steps(guilty, contract, involved)
    if stepped:
        return f"{start}it holds for --dynamic {stepped}"
    valid = _valid_ranges(guilty, contract)
    if broken(guilty, own_sizes(contract)) or valid is None:
        return f"{start}leave {' and '.join(involved)} out of --dynamic"
    ranges = ",".join(f"{name}={low}..{high}" for name, (low, high) in valid.items())
    return f"{start}it holds for --dynamic {ranges}"


def specialized_axes(guards: Sequence[ShapeGuard], contract: Contract) -> str:
    """In words, which axes have become a number that the contract's ranges do not keep to; empty if none has.

    Such a graph is wrong nearly everywhere, but the sizes at which that shows may lie between any two points of a sweep.
    """
    specializations = [guard for guard in guards if guard.kind == "specialization"]
    points = points_of(contract) if specializations else {}
    guilty = [guard for guard in specializations if guard.failing_points(points)]
    if not guilty:
        return ""
    axes = " and ".join(name for name in contract.axes if any(re.search(rf"\b{name}\b", guard.condition) for guard in guilty))
    where = f" in {guilty[0].where}" if guilty[0].where else ""
    return f"the network {SENTENCES['specialization'].format(axes=axes, where=where)}; leave {axes} out of --dynamic"


def _in_steps(guards: Sequence[ShapeGuard], contract: Contract, involved: Sequence[str]) -> str:
    """The whole ranges in the smallest steps in which every guard holds, for guards on a remainder (`if height % 2:`); empty if no step does.

    A network that pads odd sides is right at even ones, which is more than the single size that the stretch around its own would leave.
    """
    own = own_sizes(contract)
    if not any(re.search("%|Mod|Bitwise", guard.condition) for guard in guards):
        return ""
    for step in STEPS:
        axes = dict(contract.axes)
        for name in involved:
            sizes = axes[name]
            whole = math.lcm(step, sizes.step)
            axes[name] = Range(low=sizes.low + (own[name] - sizes.low) % whole, high=sizes.high, step=whole)
        points = points_of(replace(contract, axes=axes))
        if not any(guard.failing_points(points) for guard in guards):
            return ",".join(f"{name}={sizes.low}..{sizes.high}" + (f":{sizes.step}" if sizes.step > 1 else "") for name, sizes in axes.items())
    return ""


def _places(guilty: Sequence[ShapeGuard], failed: Sequence[Sizes]) -> str:
    """The first module with a guard that does not hold at a size that failed."""
    places = [guard.where for guard in guilty if guard.where and not all(map(guard.holds, failed))]
    return f" in {places[0]}" if places else ""


def _valid_ranges(guards: Sequence[ShapeGuard], contract: Contract) -> dict[str, tuple[int, int]] | None:
    """For each axis a stretch around its own size so that every guard holds if all axes are inside; None if none was found.

    Each axis is stretched alone first. While that box still holds points that fail, the sides shrink towards their own size.
    """
    own = own_sizes(contract)
    valid = {name: _stretch(guards, contract, own, name) for name in contract.axes}
    points = points_of(contract)
    failing = [sizes for guard in guards for sizes in guard.failing_points(points)]
    for _ in range(SHRINKS):
        inside = [sizes for sizes in failing if all(low <= sizes[name] <= high for name, (low, high) in valid.items())]
        if not inside:
            whole = all(pair == (contract.axes[name].low, contract.axes[name].high) for name, pair in valid.items())
            return None if whole else valid
        for name in [each for each in valid if each != "batch"]:
            low, high = valid[name]
            sizes = contract.axes[name]
            valid[name] = (sizes.nearest(own[name] - (own[name] - low) * 3 // 4), sizes.nearest(own[name] + (high - own[name]) * 3 // 4))
    return None


def _stretch(guards: Sequence[ShapeGuard], contract: Contract, own: Sizes, name: str) -> tuple[int, int]:
    """The other axes at their own size."""
    sizes, low, high = contract.axes[name], own[name], own[name]
    while low - sizes.step >= sizes.low and not broken(guards, {**own, name: low - sizes.step}):
        low -= sizes.step
    while high + sizes.step <= sizes.high and not broken(guards, {**own, name: high + sizes.step}):
        high += sizes.step
    return low, high
