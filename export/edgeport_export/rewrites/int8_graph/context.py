"""What the int8 passes know of the variant that is being made, and what one pass hands on to the next."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar

from edgeport_export.rewrites.graph import GraphEditor, PassResult, Ranges
from edgeport_runtime import Contract, Pixels

Fact = TypeVar("Fact")


@dataclass(frozen=True, kw_only=True)
class Int8Context:
    """`products`: names of the products that run as integers. `followers`: names of the other nodes that do. `ranges`: of activations.

    `facts`: what earlier passes have found out, such as a `QuadStem`.
    """

    contract: Contract
    products: frozenset[str]
    ranges: Ranges
    followers: frozenset[str] = frozenset()
    facts: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranges", MappingProxyType(dict(self.ranges)))  # a pass that wrote into them would change other variants

    @property
    def pixels(self) -> Pixels | None:
        """Of the first input; None if it is no image."""
        return self.contract.inputs[0].pixels

    def known(self, kind: type[Fact]) -> list[Fact]:
        """The facts of this class."""
        return [each for each in self.facts if isinstance(each, kind)]

    def after(self, result: PassResult) -> "Int8Context":
        """The context for the next pass."""
        ranges, followers = {**self.ranges, **result.ranges}, self.followers | result.followers
        return replace(self, ranges=ranges, followers=followers, facts=self.facts + result.facts)


def run_passes(passes: Iterable[Callable[[GraphEditor, Int8Context], PassResult]], editor: GraphEditor, context: Int8Context) -> Int8Context:
    """Run the passes in order. Returns the context after the last one."""
    for each in passes:
        context = context.after(each(editor, context))
    return context
