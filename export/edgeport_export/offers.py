"""What a refusal says of frozen branches, and the ranges that it offers instead: those in which every one of them holds."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from edgeport_runtime import Contract, Range

from .branches import Branch, broken, failing_at, points_of
from .sweep import Sizes, own_sizes

DRAWN_IN = 20  # times that a range is made a quarter smaller before none is offered
STEPS = (2, 4, 8, 16, 32, 64)  # that are offered where a branch asks for a remainder

SAID = {
    "branches": "branches on its {axes}{where}, and the graph keeps the way it took when it was traced",
    "numbers": "computes with the number of its {axes}{where}, and the graph keeps the number it had when it was traced",
    "rounds": "rounds a fraction of its {axes}{where}, in float64, and the graph does so in float32",
}


def explained(branches: Sequence[Branch], contract: Contract, failed: Sequence[Sizes], passed: Sequence[Sizes]) -> str:
    """Whether frozen branches are to blame for the sizes that failed, and on which ranges around its own size the graph is right.

    A branch that is broken at a size that passed does no harm: both its ways give the same numbers.
    """
    guilty = [branch for branch in branches if not all(map(branch.holds, failed)) and all(map(branch.holds, passed))]
    if not guilty:
        return ""
    involved = [name for name in contract.axes if any(re.search(rf"\b{name}\b", branch.condition) for branch in guilty)]
    start = f"the network {SAID[guilty[0].kind].format(axes=' and '.join(involved), where=_places(guilty, failed))}; "
    stepped = _in_steps(guilty, contract, involved)
    if stepped:
        return f"{start}it holds for --dynamic {stepped}"
    safe = _safe_ranges(guilty, contract)
    if broken(guilty, own_sizes(contract)) or safe is None:
        return f"{start}leave {' and '.join(involved)} out of --dynamic"
    ranges = ",".join(f"{name}={low}..{high}" for name, (low, high) in safe.items())
    return f"{start}it holds for --dynamic {ranges}"


def _in_steps(branches: Sequence[Branch], contract: Contract, involved: Sequence[str]) -> str:
    """The whole ranges in the smallest steps in which every branch holds, for branches on a remainder (`if height % 2:`); empty where no step does.

    A network that pads odd sides is right at even ones, which is more than the single size that the stretch around its own would offer.
    """
    own = own_sizes(contract)
    if not any(re.search("%|Mod|Bitwise", branch.condition) for branch in branches):
        return ""
    for step in STEPS:
        axes = dict(contract.axes)
        for name in involved:
            limits = axes[name]
            whole = math.lcm(step, limits.step)
            axes[name] = Range(low=limits.low + (own[name] - limits.low) % whole, high=limits.high, step=whole)
        narrower = replace(contract, axes=axes)
        if not any(failing_at(branch, points_of(narrower)) for branch in branches):
            return ",".join(f"{name}={limits.low}..{limits.high}" + (f":{limits.step}" if limits.step > 1 else "") for name, limits in axes.items())
    return ""


def _places(guilty: Sequence[Branch], failed: Sequence[Sizes]) -> str:
    """The first module that asked something which does not hold at a size that failed."""
    places = [branch.where for branch in guilty if branch.where and not all(map(branch.holds, failed))]
    return f" in {places[0]}" if places else ""


def frozen_numbers(branches: Sequence[Branch], contract: Contract) -> str:
    """In words, which axes have become a number that the contract's ranges do not keep to; empty where none has.

    Such a graph is wrong nearly everywhere, but where it matters may lie between any two points of a sweep.
    """
    points = points_of(contract)
    guilty = [branch for branch in branches if branch.kind == "numbers" and failing_at(branch, points)]
    if not guilty:
        return ""
    axes = " and ".join(name for name in contract.axes if re.search(rf"\b{name}\b", guilty[0].condition))
    where = f" in {guilty[0].where}" if guilty[0].where else ""
    return f"the network {SAID['numbers'].format(axes=axes, where=where)}; leave {axes} out of --dynamic"


def _safe_ranges(branches: Sequence[Branch], contract: Contract) -> dict[str, tuple[int, int]] | None:
    """For each axis a stretch around its own size so that every branch holds wherever all axes are inside; None where none was found.

    Each axis is stretched alone first; where that box still holds points that fail, the sides are drawn in towards their own size.
    """
    own = own_sizes(contract)
    safe = {name: _stretch(branches, contract, own, name) for name in contract.axes}
    points = points_of(contract)
    failing = [sizes for branch in branches for sizes in failing_at(branch, points)]
    for _ in range(DRAWN_IN):
        inside = [sizes for sizes in failing if all(low <= sizes[name] <= high for name, (low, high) in safe.items())]
        if not inside:
            whole = all(pair == (contract.axes[name].low, contract.axes[name].high) for name, pair in safe.items())
            return None if whole else safe
        for name in [each for each in safe if each != "batch"]:
            low, high = safe[name]
            limits = contract.axes[name]
            safe[name] = (limits.nearest(own[name] - (own[name] - low) * 3 // 4), limits.nearest(own[name] + (high - own[name]) * 3 // 4))
    return None


def _stretch(branches: Sequence[Branch], contract: Contract, own: Sizes, name: str) -> tuple[int, int]:
    """The other axes at their own size."""
    limits, low, high = contract.axes[name], own[name], own[name]
    while low - limits.step >= limits.low and not broken(branches, {**own, name: low - limits.step}):
        low -= limits.step
    while high + limits.step <= limits.high and not broken(branches, {**own, name: high + limits.step}):
        high += limits.step
    return low, high
