"""Which module asks for what while a network is traced: torch has dropped the stack by the time a condition is found."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn


def conditions(environment: Any) -> Iterator[Any]:
    """What tracing took for granted: bounds of one symbol, of which 2 and less say nothing, then conditions on several."""
    for symbol, limits in environment.var_to_range.items():
        if limits.lower.is_finite and limits.lower > 2:
            yield symbol >= limits.lower
        if limits.upper.is_finite and str(limits.upper).isdigit():
            yield symbol <= limits.upper
    for assertion in (each for listed in environment.deferred_runtime_asserts.values() for each in listed):
        yield from assertion.expr.args if type(assertion.expr).__name__ == "And" else (assertion.expr,)


def module_of(node: Any) -> str:
    """Path and class of the module that a node of the traced graph belongs to; empty where that is not known."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    if not stack:
        return ""
    path, kind = stack[-1]
    path = str(path).removeprefix("network").removeprefix(".")
    return f"{path or 'the network'} ({str(getattr(kind, '__name__', kind)).rsplit('.', 1)[-1]})"


class Askers:
    """Which module asked for each condition, seen by hooks while a network is traced: the one that was running when it became known.

    `failed_in`: the innermost module that was running when the first attempt to trace ended; empty where it came to its end.
    `fixed_in`: sizes that tracing fixed for good, and the module that was running then.
    """

    def __init__(self, network: nn.Module) -> None:
        self._modules: dict[str, str] = {}
        self._running: list[str] = []
        self.failed_in = ""
        self.fixed_in: dict[int, str] = {}
        self._hooks = []
        for path, module in network.named_modules():
            name = f"{path or 'the network'} ({type(module).__name__})"
            self._hooks += [
                module.register_forward_pre_hook(partial(self._begins, name, module is network)),
                module.register_forward_hook(partial(self._ended, name), always_call=True),
                module.register_forward_hook(self._came_through),
            ]

    def _begins(self, module: str, outermost: bool, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if outermost:  # another attempt: what is still running is where the last one failed
            self._note_failure()
        if self._running:
            self._note(self._running[-1], inputs)
        self._running.append(module)

    def _came_through(self, *_: Any) -> None:
        if self._running:
            self._running.pop()

    def _note_failure(self) -> None:
        self.failed_in = self.failed_in or (self._running[-1] if self._running else "")
        self._running.clear()

    def _ended(self, module: str, _module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        self._note(module, inputs)

    def _note(self, module: str, inputs: tuple[Any, ...]) -> None:
        """Conditions that were not known before are of this module."""
        sizes: list[Any] = [size for value in inputs if isinstance(value, torch.Tensor) for size in value.shape if isinstance(size, torch.SymInt)]
        if not sizes:
            return
        environment = sizes[0].node.shape_env
        for condition in conditions(environment):
            self._modules.setdefault(str(condition), module)
        for limits in environment.var_to_range.values():
            if limits.is_singleton():
                self.fixed_in.setdefault(int(limits.lower), module)

    def of(self, condition: Any) -> str:
        """The module's path and class; empty where none was seen."""
        return self._modules.get(str(condition), "")

    def __enter__(self) -> "Askers":
        return self

    def __exit__(self, *_: object) -> None:
        self._note_failure()
        for hook in self._hooks:
            hook.remove()
