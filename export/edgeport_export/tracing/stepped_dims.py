"""Sides that are promised in steps, traced as multiples of them: torch then knows that 32 n / 16 is whole."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from edgeport_runtime import Contract


def stepped_dims(contract: Contract) -> dict[str, Any]:
    """Axis -> torch's dimension, step * n, or step * n + rest. Axes without steps are left to torch."""
    return {name: _dim(name, sizes.low, sizes.high, sizes.step) for name, sizes in contract.axes.items() if sizes.step > 1}


def _dim(name: str, low: int, high: int, step: int) -> Any:
    rest = low % step
    count = torch.export.Dim(f"{name}_steps", min=low // step, max=(high - rest) // step)
    return step * count + rest if rest else step * count


def symbols_of_axes(sizes: Mapping[str, Any], contract: Contract) -> dict[str, str]:
    """torch's symbol in the size of each axis -> that symbol in terms of the axis, as Python: the axis itself, or how many steps it has."""
    found: dict[str, str] = {}
    for axis, size in sizes.items():
        free = {str(symbol) for symbol in size.node.expr.free_symbols}
        if free == {str(size.node.expr)}:
            found[str(size.node.expr)] = axis
        elif len(free) == 1 and axis in contract.axes:
            found[free.pop()] = f"({axis}//{contract.axes[axis].step})"
    return found


def sizes_of_inputs(program: Any, contract: Contract) -> dict[str, Any]:
    """Axis -> its symbolic size in the exported program."""
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in program.graph_signature.user_inputs]
    found: dict[str, Any] = {}
    for value, each in zip(values, contract.inputs, strict=True):
        for axis, size in zip(each.shape, value.shape, strict=True):
            if isinstance(axis, str) and isinstance(size, torch.SymInt):
                found.setdefault(axis, size)
    return found


def name_stepped_dims(program: Any, contract: Contract) -> None:
    """Call the axes of the inputs by their names in the ONNX graph, and write every other size in terms of them."""
    symbols = symbols_of_axes(sizes_of_inputs(program.exported_program, contract), contract)
    stepped = {symbol: text for symbol, text in symbols.items() if "//" in text}
    if not stepped:
        return
    graph = program.model.graph
    for value, each in zip(graph.inputs, contract.inputs, strict=True):
        value.shape = type(value.shape)([axis if isinstance(axis, str) else size for axis, size in zip(each.shape, value.shape, strict=True)])
    counts = stepped | {f"{axis}_steps": f"({axis}//{sizes.step})" for axis, sizes in contract.axes.items()}
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, counts))})\b")
    for value in [*graph.outputs, *(made for node in graph for made in node.outputs)]:
        if value.shape is not None:
            value.shape = type(value.shape)([pattern.sub(lambda found: counts[found[1]], _text(dim)) if _text(dim) else dim for dim in value.shape])


def _text(dim: Any) -> str:
    """A size that is no number, as torch writes it; empty for a number."""
    text = getattr(dim, "value", None)
    return text if isinstance(text, str) else ""
