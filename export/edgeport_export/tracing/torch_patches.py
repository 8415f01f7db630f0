"""What torch.export does wrong with sizes, put right for as long as a trace takes (torch 2.15)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch._dynamo
import torch._export.utils
from torch import Tensor
from torch.onnx._internal.exporter import _fx_passes
from torch.utils._python_dispatch import _disable_current_modes

_linspace = torch.linspace
_decompose: Callable[[Any, Any], Any] = _fx_passes.decompose_with_registry


@contextmanager
def symbolic_linspace() -> Iterator[None]:
    """torch.linspace takes its steps as a plain number, which binds coordinates, and `affine_grid` with them, to one size: computed from a range here."""
    with mock.patch.object(torch, "linspace", linspace):
        yield


def linspace(start: Any, end: Any, steps: Any, **options: Any) -> Tensor:
    """torch.linspace; from both ends towards the middle, as PyTorch does it. () or numbers -> (steps,).

    Of a known length it becomes a constant with PyTorch's own bits. Written out in operators, as torch's exporter does it, a twelfth of the values
    is one unit in the last place away, which the sine of 64 times as much shows.
    """
    dtype = options.get("dtype") or torch.get_default_dtype()
    plain = all(type(each) in (int, float) for each in (start, end, steps)) and set(options) <= {"dtype", "device"}
    if plain and dtype.is_floating_point:
        with _disable_current_modes():
            numbers = _linspace(start, end, steps, dtype=dtype).tolist()
        return torch.tensor(numbers, dtype=dtype, device=options.get("device"))
    if not isinstance(steps, torch.SymInt) or not dtype.is_floating_point:
        return _linspace(start, end, steps, **options)
    position = torch.arange(steps, device=options.get("device")).to(dtype)
    step = (end - start) / torch.sym_max(steps - 1, 1)
    return torch.where(position < (steps + 1) // 2, start + step * position, end - step * (steps - 1 - position))


@contextmanager
def whole_recurrent_layers() -> Iterator[None]:
    """An LSTM or GRU stays one operator in every trace of a process, as it does in the first.

    The exporter asks torch to keep the operator whole. But torch remembers which kernel it took for it in an earlier trace, and takes that again. It is
    the operator's form in Python, which unrolls the time steps and keeps their number.
    """
    for layer in (torch.ops.aten.lstm, torch.ops.aten.gru, torch.ops.aten.rnn_tanh, torch.ops.aten.rnn_relu):
        layer.input._dispatch_cache.clear()
    yield


@contextmanager
def second_attempt() -> Iterator[None]:
    """Used only after the normal export failed, because it changes the graph: sizes are read from other values, and BatchNorm after a reshaped
    value is not folded.

    1. What tracing took for granted stays out of the traced graph; the shape environment still knows it. torch writes it down as assertions,
       fails if one computes with a fraction or a bit (`if height / width < 2`, `if height & 1`), and its ONNX exporter drops them all.
    2. What is viewed or reshaped is made contiguous before, which costs nothing in ONNX: torch tells views from copies by strides, and those of
       attention with a mask are others once it has been decomposed.
    """

    def decompose(program: Any, registry: Any) -> Any:
        aten = torch.ops.aten
        for node in [node for target in (aten.view.default, aten.reshape.default) for node in program.graph.find_nodes(op="call_function", target=target)]:
            viewed = node.args[0]
            with program.graph.inserting_before(node):
                copy = program.graph.call_function(aten.clone.default, (viewed,), {"memory_format": torch.contiguous_format})
            copy.meta = dict(viewed.meta)
            node.update_arg(0, copy)
        return _decompose(program, registry)

    with (
        mock.patch.object(torch._export.utils, "insert_deferred_runtime_asserts"),
        torch._dynamo.config.patch(do_not_emit_runtime_asserts=True),
        mock.patch.object(_fx_passes, "decompose_with_registry", decompose),
    ):
        yield


def second_may_help(error: BaseException, node: Any) -> bool:
    """Whether a second attempt may come through. `node`: the one that could not be translated, if it was one."""
    while error.__cause__ is not None:
        error = error.__cause__
    if "Cannot view a tensor" in str(error):
        return True
    # arithmetic of Python on sizes may belong to an assertion, not to the network
    return isinstance(error, torch.fx.proxy.TraceError) if node is None else not isinstance(node.target, torch._ops.OpOverload)
