"""Hooks that tell which module is running, for every message that names one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

Started = Callable[[str, Any], None]  # name, inputs
Returned = Callable[[str, Any], None]  # name, output
Ended = Callable[[str, Any], None]  # name, inputs


def describe_module(path: str, kind: str) -> str:
    """A module's path and class, as messages give it: "layer1.0.conv1 (Conv2d)"."""
    return f"{path or 'the network'} ({kind})"


@contextmanager
def module_hooks(network: nn.Module, *, started: Started | None = None, returned: Returned | None = None, ended: Ended | None = None) -> Iterator[None]:
    """Call these for every module while the context is open; each gets the module's path and class first.

    `started`: before it runs. `returned`: after it gave an output. `ended`: after it ran, even if it failed.
    """
    handles: list[Any] = []
    for path, module in network.named_modules():
        name = describe_module(path, type(module).__name__)
        if started is not None:
            handles.append(module.register_forward_pre_hook(partial(_started, started, name)))
        if ended is not None:
            handles.append(module.register_forward_hook(partial(_ended, ended, name), always_call=True))
        if returned is not None:
            handles.append(module.register_forward_hook(partial(_returned, returned, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _started(call: Started, name: str, _module: nn.Module, inputs: Any) -> None:
    call(name, inputs)


def _ended(call: Ended, name: str, _module: nn.Module, inputs: Any, _output: Any) -> None:
    call(name, inputs)


def _returned(call: Returned, name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
    call(name, output)
