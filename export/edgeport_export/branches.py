"""Branches on a size that tracing froze.

Python code such as `if window >= height:` takes one way at the example's size, and the graph keeps that way for every size, without
a word: it is how Swin exports 5 to 10 % off. torch.export does record the condition, as a deferred assertion of its shape
environment, and then the exporter drops it. Here the conditions are kept, so that the sweep can go where they do not hold, and a
refusal can name the axes and the ranges in which the graph is right.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch.utils._sympy.printers import PythonPrinter

from edgeport_runtime import Contract

from .sweep import Cost, Sizes, own_sizes

MOST_POINTS = 8  # that a sweep is lengthened by


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A condition on sizes that held at the example's and is taken for granted in the graph."""

    condition: str
    code: CodeType

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether the graph follows the network at these sizes, as far as this branch goes."""
        try:
            return bool(eval(self.code, {"math": math}, dict(sizes)))
        except (ZeroDivisionError, NameError):
            return False


def frozen_branches(program: Any, contract: Contract) -> list[Branch]:
    """Conditions on dynamic axes that the exported program takes for granted, in terms of the contract's axes."""
    symbols, environment = _symbols(program, contract)
    if environment is None:
        return []
    found = {text: Branch(condition=text, code=compile(text, "branch", "eval")) for text in _bounds(environment, symbols)}
    for assertion in (each for listed in environment.deferred_runtime_asserts.values() for each in listed):
        names = {str(symbol) for symbol in assertion.expr.free_symbols}
        if not names or not names <= set(symbols):
            continue
        renamed = assertion.expr.subs({symbol: type(symbol)(symbols[str(symbol)], integer=True) for symbol in assertion.expr.free_symbols})
        text = PythonPrinter().doprint(renamed)
        found.setdefault(text, Branch(condition=text, code=compile(text, "branch", "eval")))
    return list(found.values())


def _bounds(environment: Any, symbols: Mapping[str, str]) -> Iterator[str]:
    """A comparison of one axis with a number is kept as the bound of its symbol, not as an assertion. 2 and less say nothing."""
    for symbol, limits in environment.var_to_range.items():
        if str(symbol) in symbols:
            low, high = str(limits.lower), str(limits.upper)
            parts = ([f"{low} <= "] if low.isdigit() and int(low) > 2 else []) + [symbols[str(symbol)]] + ([f" <= {high}"] if high.isdigit() else [])
            if len(parts) > 1:
                yield "".join(parts)


def _symbols(program: Any, contract: Contract) -> tuple[dict[str, str], Any]:
    """torch's name of each dynamic size -> the contract's axis; and the shape environment that knows them."""
    names: dict[str, str] = {}
    environment = None
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in program.graph_signature.user_inputs]
    for value, each in zip(values, contract.inputs, strict=True):
        for axis, size in zip(each.shape, value.shape, strict=True):
            if isinstance(axis, str) and isinstance(size, torch.SymInt):
                names[str(size.node.expr)] = axis
                environment = size.node.shape_env
    return names, environment


def broken(branches: Sequence[Branch], sizes: Mapping[str, int]) -> list[Branch]:
    """The branches whose condition does not hold at these sizes."""
    return [branch for branch in branches if not branch.holds(sizes)]


def sizes_to_try(branches: Sequence[Branch], contract: Contract, cost: Cost, budget: float) -> list[Sizes]:
    """For each branch the smallest and the largest sizes, within the ranges and the budget, at which it does not hold."""
    points: dict[tuple[tuple[str, int], ...], Sizes] = {}
    for branch in branches:
        failing = [sizes for sizes in _line_of_sizes(contract) if not branch.holds(sizes) and cost(sizes) <= budget]
        for sizes in (failing[:1] + failing[-1:]) if failing else []:
            points.setdefault(tuple(sorted(sizes.items())), sizes)
    return list(points.values())[:MOST_POINTS]


def _line_of_sizes(contract: Contract) -> Iterator[Sizes]:
    """Every promised size of one axis at a time, the others at their own; then both sides together."""
    own = own_sizes(contract)
    for name, limits in contract.axes.items():
        for size in range(limits.low, limits.high + 1, limits.step):
            yield {**own, name: size}
    sides = [name for name in ("height", "width") if name in contract.axes]
    if len(sides) == 2:
        limits = contract.axes["height"]
        for size in range(limits.low, limits.high + 1, limits.step):
            yield {**own, "height": size, "width": contract.axes["width"].nearest(size)}


def explained(branches: Sequence[Branch], contract: Contract, failed: Sequence[Sizes], passed: Sequence[Sizes]) -> str:
    """Whether frozen branches are to blame for the sizes that failed, and on which ranges around its own size the graph is right.

    A branch that is broken at a size that passed does no harm: both its ways give the same numbers.
    """
    guilty = [branch for branch in branches if not all(map(branch.holds, failed)) and all(map(branch.holds, passed))]
    if not guilty:
        return ""
    if broken(guilty, own_sizes(contract)):
        return "the network branches on its size, and the graph does not even take its way at the contract's own: leave height and width out of --dynamic"
    safe = _safe_ranges(guilty, contract)
    axes = [name for name, limits in contract.axes.items() if safe[name] != (limits.low, limits.high)]
    ranges = ",".join(f"{name}={low}..{high}" for name, (low, high) in safe.items())
    return f"the network branches on its {' and '.join(axes)}, and the graph keeps the way it took when it was traced; it holds for --dynamic {ranges}"


def _safe_ranges(branches: Sequence[Branch], contract: Contract) -> dict[str, tuple[int, int]]:
    """For each axis the stretch around its own size in which every branch holds."""
    own = own_sizes(contract)
    safe = {}
    for name, limits in contract.axes.items():
        low = high = own[name]
        while low - limits.step >= limits.low and not broken(branches, {**own, name: low - limits.step}):
            low -= limits.step
        while high + limits.step <= limits.high and not broken(branches, {**own, name: high + limits.step}):
            high += limits.step
        safe[name] = (low, high)
    return safe
