"""Guards: conditions on sizes that tracing froze.

Python code such as `if window >= height:` takes one way at the example's size, and the graph keeps that way for every size, silently: it is how
Swin exports 5 to 10 % off. torch.export does record the condition, as a deferred assertion of its shape environment, and then the exporter
drops it. Here the conditions are kept, so that the sweep can go to sizes at which they do not hold, and a refusal can name the axes and the ranges in which
the graph is right.

Two relatives are found as well. If Python takes the number of a size (`math.sqrt(height * width)`), tracing keeps that number for every
size: an equation that holds at the example alone (a specialization). And sizes that are computed with fractions (`int(0.57 * height)`) are
rounded from float64 in Python and from float32 in the graph: 0.57 * 100 is 56 rows there and 57 here.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from types import CodeType, SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._sympy.printers import PythonPrinter

from edgeport_export.network.size_sweep import Cost, Sizes, own_sizes
from edgeport_runtime import Contract, Range

from .module_tracker import ModuleTracker, conditions, module_of
from .stepped_dims import sizes_of_inputs, symbols_of_axes

MOST_POINTS = 12  # that a sweep is lengthened by, beyond one for every guard
MOST_PAIRS = 1_100_000  # of sides that are examined one by one: 32..1024 by 32..1024
MOST_SIZES = 2**16  # of one axis that are examined; a sound has a sample rate of them a second
RANDOM_POINTS = 20_000  # that are examined instead of pairs that are too many
MOST_FAILING = 1000  # points that are returned for one guard

Kind = Literal["branch", "specialization", "rounding"]
# What the printed conditions may call, for numbers and for arrays of them. Fractions are weighed in Python's precision, and in the graph's.
EXACT, SINGLE = "exact", "single"
NAMES = {
    "math": np,
    "BitwiseFn_bitwise_and": np.bitwise_and,
    "BitwiseFn_bitwise_or": np.bitwise_or,
    "torch": SimpleNamespace(sym_float=np.float64, sym_sqrt=np.sqrt, sym_max=np.maximum, sym_min=np.minimum),
    "max": lambda *values: reduce(np.maximum, values),
    "min": lambda *values: reduce(np.minimum, values),
    EXACT: partial(np.array, dtype=np.float64, ndmin=1),  # one axis at least: NumPy 1 weighs a lone float32 with a constant in float64
    SINGLE: partial(np.array, dtype=np.float32, ndmin=1),
}


@dataclass(frozen=True, kw_only=True)
class ShapeGuard:
    """A condition on sizes that held at the example's, and that the graph takes for granted.

    `where`: path and class of the module that caused it; None if that is not known. `kind`: what the graph does if it does not hold.
    """

    condition: str
    code: CodeType
    where: str | None = None
    kind: Kind = "branch"

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether the graph follows the network at these sizes, as far as this guard goes."""
        try:
            return bool(eval(self.code, dict(NAMES), dict(sizes)))
        except (ZeroDivisionError, NameError):
            return False

    def failing_points(self, points: Mapping[str, NDArray[np.int64]]) -> list[Sizes]:
        """The points at which the guard does not hold, by rising size; at most MOST_FAILING, evenly taken."""
        if not points:
            return []
        try:
            with np.errstate(all="ignore"):
                held = np.broadcast_to(np.asarray(eval(self.code, dict(NAMES), dict(points)), dtype=bool), len(next(iter(points.values()))))
        except (TypeError, ValueError, NameError, ZeroDivisionError, AttributeError):  # a condition that knows no arrays is asked point by point
            every = max(1, len(next(iter(points.values()))) // RANDOM_POINTS)
            points = {name: values[::every] for name, values in points.items()}
            held = np.array([self.holds(dict(zip(points, map(int, point), strict=True))) for point in zip(*points.values(), strict=True)])
        indices = np.flatnonzero(~held)
        taken = indices[np.unique(np.linspace(0, len(indices) - 1, min(len(indices), MOST_FAILING)).astype(int))] if len(indices) else indices
        return [{name: int(values[index]) for name, values in points.items()} for index in taken]


def shape_guards(program: Any, contract: Contract, tracker: ModuleTracker) -> list[ShapeGuard]:
    """The guards on dynamic axes that the exported program takes for granted, in terms of the contract's axes."""
    symbols, environment = _symbols(program, contract)
    if environment is None:
        return []
    found: dict[str, ShapeGuard] = {}
    for condition in conditions(environment):
        names = {str(symbol) for symbol in condition.free_symbols}
        if names and names <= set(symbols):  # Python's own `and` knows no arrays, so `conditions` has taken such apart
            text = _printed(condition, symbols)
            kind: Kind = "specialization" if _is_specialization(condition) else "branch"
            guard = ShapeGuard(condition=text, code=compile(text, "guard", "eval"), where=tracker.module_of_condition(condition), kind=kind)
            found.setdefault(text, guard)
    return [*found.values(), *_roundings(program, symbols)]


def _printed(expression: Any, symbols: Mapping[str, str]) -> str:
    """As Python, in terms of the contract's axes."""
    return str(PythonPrinter().doprint(expression.subs({each: type(each)(symbols[str(each)], integer=True) for each in expression.free_symbols})))


def _is_specialization(condition: Any) -> bool:
    """An equation between sizes and a number, except one of remainders and bits, which padding causes: tracing has put the number in their place."""
    return type(condition).__name__ == "Equality" and any(side.is_number for side in condition.args) and not re.search("Mod|Bitwise", str(condition))


def _roundings(program: Any, symbols: Mapping[str, str]) -> Iterator[ShapeGuard]:
    """Whole sizes that come from fractions: the graph has them if float32 rounds to the same number as float64."""
    found: set[str] = set()
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if not isinstance(value, torch.SymInt) or "ToFloat" not in str(value.node.expr):
            continue
        names = {str(symbol) for symbol in value.node.expr.free_symbols}
        if names and names <= set(symbols):
            text = _printed(value.node.expr, symbols)
            condition = " == ".join(f"({text.replace('torch.sym_float', precision)})" for precision in (EXACT, SINGLE))
            if condition not in found:
                found.add(condition)
                yield ShapeGuard(condition=condition, code=compile(condition, "guard", "eval"), where=module_of(node), kind="rounding")


def _symbols(program: Any, contract: Contract) -> tuple[dict[str, str], Any]:
    """torch's name of each dynamic size -> the contract's axis, or its number of steps; and the shape environment that knows them."""
    sizes = sizes_of_inputs(program, contract)
    environment = next((size.node.shape_env for size in sizes.values()), None)
    return symbols_of_axes(sizes, contract), environment


def broken(guards: Sequence[ShapeGuard], sizes: Mapping[str, int]) -> list[ShapeGuard]:
    """The guards that do not hold at these sizes."""
    return [guard for guard in guards if not guard.holds(sizes)]


def sizes_to_try(guards: Sequence[ShapeGuard], contract: Contract, cost: Cost, budget: float) -> list[Sizes]:
    """Sizes within the ranges and the budget so that every guard that can fail there fails at one of them, the smallest first."""
    points = points_of(contract) if guards else {}
    chosen: list[Sizes] = []
    for guard in guards:
        if any(not guard.holds(sizes) for sizes in chosen):
            continue
        failing = guard.failing_points(points)
        within = [sizes for sizes in (failing[:1] + failing[len(failing) // 2 :][:1] + failing[-1:]) if cost(sizes) <= budget]
        if not within and failing:
            within = next(([sizes] for sizes in failing if cost(sizes) <= budget), [])
        chosen += within[:1]
        if len(chosen) < MOST_POINTS:
            chosen += within[1:]
    return [dict(pairs) for pairs in dict.fromkeys(tuple(sorted(sizes.items())) for sizes in chosen)]


def points_of(contract: Contract) -> dict[str, NDArray[np.int64]]:
    """Points over all axes: every pair of sides at the own batch if they are few enough, else random ones; and random ones for all axes."""
    generator = np.random.default_rng(0)
    own = own_sizes(contract)
    ranges = {name: _sizes(sizes) for name, sizes in contract.axes.items()}
    drawn = {name: generator.choice(values, RANDOM_POINTS) for name, values in ranges.items()}
    sides = [name for name in ranges if name != "batch"]
    count = math.prod(len(ranges[name]) for name in sides)
    if sides and count <= MOST_PAIRS:
        mesh = dict(zip(sides, (axis.ravel() for axis in np.meshgrid(*(ranges[name] for name in sides), indexing="ij")), strict=True))
        drawn = {name: np.concatenate([mesh.get(name, np.full(count, own[name])), drawn[name]]) for name in ranges}
    lines = [{**own, name: int(size)} for name, values in ranges.items() for size in values]
    points = {name: np.concatenate([drawn[name], [each[name] for each in lines]]).astype(np.int64) for name in ranges}
    order = np.argsort(math.prod(values.astype(np.float64) for values in points.values()), kind="stable")
    return {name: values[order] for name, values in points.items()}


def _sizes(sizes: Range) -> NDArray[np.int64]:
    """All sizes of a range, or MOST_SIZES of them, evenly taken."""
    count = (sizes.high - sizes.low) // sizes.step + 1
    return sizes.low + sizes.step * np.unique(np.linspace(0, count - 1, min(count, MOST_SIZES)).round().astype(np.int64))
