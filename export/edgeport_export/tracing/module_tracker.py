"""Which module runs while torch.export adds a shape guard: torch has dropped the stack by the time a guard is found."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from edgeport_export.network.module_hooks import describe_module, module_hooks
from edgeport_export.rewrites.names import ROOT

# Operations in the formula of one size. Swin v2 has 66. TensorFlow's SAME padding, computed from the size, triples it wherever maps are halved: 681 after
# the fourth time, and tracing a whole network takes more than four minutes then.
LONGEST_SIZE = 400


def conditions(environment: Any) -> Iterator[Any]:
    """The conditions that tracing took for granted: bounds of one symbol (2 and less say nothing), then conditions on several."""
    for symbol, bounds in environment.var_to_range.items():
        if bounds.lower.is_finite and bounds.lower > 2:
            yield symbol >= bounds.lower
        if bounds.upper.is_finite and str(bounds.upper).isdigit():
            yield symbol <= bounds.upper
    for assertion in (each for listed in environment.deferred_runtime_asserts.values() for each in listed):
        yield from assertion.expr.args if type(assertion.expr).__name__ == "And" else (assertion.expr,)


def module_of(node: Any) -> str:
    """Path and class of the module that a node of the traced graph belongs to; empty if that is not known."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    if not stack:
        return ""
    path, kind = stack[-1]
    return describe_module(str(path).removeprefix(ROOT).removeprefix("."), str(getattr(kind, "__name__", kind)).rsplit(".", 1)[-1])


class SizeTooLong(BaseException):
    """A size became a formula that torch takes minutes to work with; `module` is where. No Exception, because torch would try again in other ways."""

    def __init__(self, module: str) -> None:
        super().__init__(module)
        self.module = module


class ModuleTracker:
    """Records, while a network is traced, the module that was running when each condition became known. Use it as a context.

    `failed_in`: the innermost module that was running when the first attempt to trace ended; None if it succeeded.
    `fixed_in`: sizes that tracing fixed for good, and the module that was running then.
    Raises SizeTooLong while it is traced.
    """

    def __init__(self, network: nn.Module) -> None:
        self.failed_in: str | None = None
        self.fixed_in: dict[int, str] = {}
        self.network = network
        self._outermost = describe_module("", type(network).__name__)
        self._modules: dict[str, str] = {}
        self._known: set[Any] = set()  # conditions: printing one takes long if its sizes are long
        self._lengths: dict[Any, int] = {}
        self._running: list[str] = []
        self._hooks: AbstractContextManager[None] | None = None

    def module_of_condition(self, condition: Any) -> str | None:
        """Path and class of the module that caused a condition; None if none was seen."""
        return self._modules.get(str(condition))

    def __enter__(self) -> "ModuleTracker":
        self._hooks = module_hooks(self.network, started=self._started, returned=self._returned, ended=self._record)
        self._hooks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._record_failure()
        if self._hooks is not None:
            self._hooks.__exit__(None, None, None)

    def _started(self, module: str, inputs: Any) -> None:
        if module == self._outermost:  # another attempt: what is still running is where the last one failed
            self._record_failure()
        if self._running:
            self._record(self._running[-1], inputs)
        self._running.append(module)

    def _returned(self, _module: str, _output: Any) -> None:
        if self._running:
            self._running.pop()

    def _record_failure(self) -> None:
        self.failed_in = self.failed_in or (self._running[-1] if self._running else None)
        self._running.clear()

    def _record(self, module: str, inputs: Any) -> None:
        """Conditions that were not known before belong to this module."""
        sizes: list[Any] = [size for value in inputs if isinstance(value, torch.Tensor) for size in value.shape if isinstance(size, torch.SymInt)]
        if not sizes:
            return
        if max(self._length(size.node.expr) for size in sizes) > LONGEST_SIZE:
            raise SizeTooLong(module)
        environment = sizes[0].node.shape_env
        for condition in conditions(environment):
            if condition not in self._known:
                self._known.add(condition)
                self._modules.setdefault(str(condition), module)
        for bounds in environment.var_to_range.values():
            if bounds.is_singleton():
                self.fixed_in.setdefault(int(bounds.lower), module)

    def _length(self, expression: Any) -> int:
        """Number of operations and symbols, each counted as often as it is written."""
        if expression not in self._lengths:
            self._lengths[expression] = 1 + sum(map(self._length, expression.args))
        return self._lengths[expression]
