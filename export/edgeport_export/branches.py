"""Branches on a size that tracing froze.

Python code such as `if window >= height:` takes one way at the example's size, and the graph keeps that way for every size, without
a word: it is how Swin exports 5 to 10 % off. torch.export does record the condition, as a deferred assertion of its shape
environment, and then the exporter drops it. Here the conditions are kept, so that the sweep can go where they do not hold, and a
refusal can name the axes and the ranges in which the graph is right.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import CodeType
from typing import Any

import torch
from torch import nn
from torch.utils._sympy.printers import PythonPrinter

from edgeport_runtime import Contract

from .sweep import Cost, Sizes, own_sizes

MOST_POINTS = 8  # that a sweep is lengthened by


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A condition on sizes that held at the example's and is taken for granted in the graph.

    `where`: path and class of the module that asked; empty where that is not known.
    """

    condition: str
    code: CodeType
    where: str = ""

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether the graph follows the network at these sizes, as far as this branch goes."""
        try:
            return bool(eval(self.code, {"math": math}, dict(sizes)))
        except (ZeroDivisionError, NameError):
            return False


def frozen_branches(program: Any, contract: Contract, askers: "Askers") -> list[Branch]:
    """Conditions on dynamic axes that the exported program takes for granted, in terms of the contract's axes."""
    symbols, environment = _symbols(program, contract)
    if environment is None:
        return []
    found: dict[str, Branch] = {}
    for condition in _conditions(environment):
        names = {str(symbol) for symbol in condition.free_symbols}
        if names and names <= set(symbols):
            renamed = condition.subs({symbol: type(symbol)(symbols[str(symbol)], integer=True) for symbol in condition.free_symbols})
            text = PythonPrinter().doprint(renamed)
            found.setdefault(text, Branch(condition=text, code=compile(text, "branch", "eval"), where=askers.of(condition)))
    return list(found.values())


def _conditions(environment: Any) -> Iterator[Any]:
    """What tracing took for granted: bounds of one symbol, of which 2 and less say nothing, then conditions on several."""
    for symbol, limits in environment.var_to_range.items():
        if limits.lower.is_finite and limits.lower > 2:
            yield symbol >= limits.lower
        if limits.upper.is_finite and str(limits.upper).isdigit():
            yield symbol <= limits.upper
    yield from (assertion.expr for listed in environment.deferred_runtime_asserts.values() for assertion in listed)


class Askers:
    """Which module asked for each condition, seen by hooks while a network is traced: the first whose call ended with the condition known."""

    def __init__(self, network: nn.Module) -> None:
        self._modules: dict[str, str] = {}
        self._hooks = [
            module.register_forward_hook(partial(self._ended, f"{path or 'the network'} ({type(module).__name__})"), always_call=True)
            for path, module in network.named_modules()
        ]

    def _ended(self, module: str, _module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        sizes: list[Any] = [size for value in inputs if isinstance(value, torch.Tensor) for size in value.shape if isinstance(size, torch.SymInt)]
        for condition in _conditions(sizes[0].node.shape_env) if sizes else ():
            self._modules.setdefault(str(condition), module)

    def of(self, condition: Any) -> str:
        """The module's path and class; empty where none was seen."""
        return self._modules.get(str(condition), "")

    def __enter__(self) -> "Askers":
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


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
        return (
            f"the network branches on its size{_places(guilty, failed)}, and the graph does not even take its way at the contract's own: "
            "leave height and width out of --dynamic"
        )
    safe = _safe_ranges(guilty, contract)
    axes = [name for name, limits in contract.axes.items() if safe[name] != (limits.low, limits.high)]
    ranges = ",".join(f"{name}={low}..{high}" for name, (low, high) in safe.items())
    return (
        f"the network branches on its {' and '.join(axes)}{_places(guilty, failed)}, and the graph keeps the way it took when it was traced; "
        f"it holds for --dynamic {ranges}"
    )


def _places(guilty: Sequence[Branch], failed: Sequence[Sizes]) -> str:
    """The first module that asked something which does not hold at a size that failed."""
    places = [branch.where for branch in guilty if branch.where and not all(map(branch.holds, failed))]
    return f" in {places[0]}" if places else ""


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
