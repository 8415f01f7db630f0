"""The seam between a network and its graph: pixels in, named outputs out. The network itself is never edited.

`GraphModule` is what is traced. `Reference` is what PyTorch says: the same network behind the textbook normalisation, in any
precision; parity and golden cases come from it, so that a mistake in `GraphModule` shows as a difference.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from edgeport_runtime import Contract, Output

from .errors import ExportError, NetworkFailure

LEVELS = ".levels"  # suffix of the value that holds a pixel output before rounding, in levels 0..255


def graph_outputs(contract: Contract) -> list[str]:
    """Names of everything that is traced: the contract's outputs, then the levels of pixel outputs."""
    return [each.name for each in contract.outputs] + [each.name + LEVELS for each in contract.outputs if each.kind == "pixels"]


def compared_outputs(contract: Contract) -> list[str]:
    """Names of the values that parity looks at: before rounding, where the output is pixels."""
    return [each.name + (LEVELS if each.kind == "pixels" else "") for each in contract.outputs]


class GraphModule(nn.Module):
    """uint8 pixels (N, H, W, C) -> the outputs named by `graph_outputs`, with normalisation and layout inside the graph.

    `dtype`: of the network itself, float32 or float16; normalisation, and outputs, are float32 always.
    """

    def __init__(self, network: nn.Module, contract: Contract, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = network
        self.contract = contract
        self.dtype = dtype
        for index, each in enumerate(contract.inputs):
            if each.pixels is not None:
                mean, std = np.array(each.pixels.mean), np.array(each.pixels.std)
                self.register_buffer(f"mean{index}", torch.tensor(255 * mean, dtype=torch.float32).reshape(-1, 1, 1))
                self.register_buffer(f"scale{index}", torch.tensor(1 / (255 * std), dtype=torch.float32).reshape(-1, 1, 1))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        network_inputs = [self._input(index, value) for index, value in enumerate(inputs)]
        answers = [value.to(torch.float32) if value.dtype == torch.float16 else value for value in flatten(self.network(*network_inputs))]
        outputs = [from_network(value, each) for value, each in zip(answers, self.contract.outputs, strict=True)]
        return tuple(as_pixels(value) if each.kind == "pixels" else value for value, each in zip(outputs, self.contract.outputs, strict=True)) + tuple(
            value for value, each in zip(outputs, self.contract.outputs, strict=True) if each.kind == "pixels"
        )

    def _input(self, index: int, value: Tensor) -> Tensor:
        if self.contract.inputs[index].pixels is None:
            return value.to(self.dtype) if value.is_floating_point() else value
        # Two operations instead of three; the other order, pixel * scale + shift, triples the distance from float64. The layout changes first,
        # while a value is one byte, and the arithmetic then runs along rows: 2.1 ms instead of 10.9 at 16x224x224x3, two threads.
        mean, scale = getattr(self, f"mean{index}"), getattr(self, f"scale{index}")
        normalised: Tensor = (value.permute(0, 3, 1, 2).to(torch.float32) - mean) * scale
        return normalised.to(self.dtype).contiguous()  # as a network is used to: one that calls view() fails on the strides of a permuted picture


def flatten(outputs: Any) -> list[Tensor]:
    """The tensors of a network's answer in order: one tensor, a tuple, a list or a dict of tensors, or None, which is left out.

    Raises TypeError for anything else.
    """
    if isinstance(outputs, Tensor):
        return [outputs]
    if outputs is None:  # what a network has no use for at inference, such as an auxiliary output
        return []
    if not isinstance(outputs, Mapping | tuple | list):
        raise TypeError(f"a network may return tensors, and tuples, lists and dicts of them, got {type(outputs).__name__}")
    return [tensor for each in (outputs.values() if isinstance(outputs, Mapping) else outputs) for tensor in flatten(each)]


def from_network(value: Tensor, output: Output) -> Tensor:
    """A pixel output as float levels 0..255 in (N, H, W, C); anything else as it is."""
    if output.kind != "pixels":
        return value
    low, high = output.range
    return ((value - low) * (255 / (high - low))).clamp(0, 255).permute(0, 2, 3, 1)


def as_pixels(levels: Tensor) -> Tensor:
    """Float levels 0..255 to uint8, halves to even."""
    return levels.round().to(torch.uint8)


def _tensor(array: NDArray[Any]) -> Tensor:
    """A copy as a tensor: a network may work in place on what it is given."""
    return torch.from_numpy(np.array(array, order="C"))


def failing_module(network: nn.Module, inputs: Sequence[Tensor]) -> str:
    """Run once more and return the path and class of the innermost module that was running when it failed."""
    running: list[str] = []
    handles = []
    for path, module in network.named_modules():
        name = f"{path or 'the network'} ({type(module).__name__})"
        handles.append(module.register_forward_pre_hook(lambda _module, _inputs, name=name: running.append(name)))
        handles.append(module.register_forward_hook(lambda *_: [running.pop(), None][1]))
    try:
        network(*inputs)
    except Exception:
        return running[-1] if running else "the network"
    finally:
        for handle in handles:
            handle.remove()
    return "the network, but not when it was run again"


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, or its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def copied(network: nn.Module) -> nn.Module:
    """A copy to work on, so that the user's own stays as it is. Raises ExportError where Python cannot copy it."""
    try:
        return copy.deepcopy(network)
    except Exception as error:  # a lock or an open file beside the weights; a tensor computed from them
        remedy = "make what is no module, parameter or buffer in forward (or call detach() on a tensor computed from the weights)"
        raise ExportError(f"the network cannot be copied ({first_line(error)}), and edgeport works on a copy of yours; {remedy}") from error


class InDouble(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What a network makes in float32 itself (`.float()`, a tensor kept beside the buffers) becomes float64 where it meets the rest."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operation, with its float32 tensors and dtypes as float64."""
        args, kwargs = tree_map(_doubled, (args, kwargs or {}))
        return func(*args, **kwargs)


def _doubled(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return value.double()
    return torch.float64 if value is torch.float32 else value


class Reference:
    """What PyTorch gives for the same arrays, in `dtype`. Holds a copy of the network, so that the original stays as it is."""

    def __init__(self, network: nn.Module, contract: Contract, dtype: torch.dtype = torch.float32) -> None:
        self.network = copied(network).eval().to(dtype)
        self.contract = contract
        self.dtype = dtype

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by the names of `graph_outputs`; float outputs in `dtype`."""
        contract = self.contract
        with torch.inference_mode():
            outputs = [from_network(value, each) for value, each in zip(flatten(self.answer(arrays)), contract.outputs, strict=True)]
        named: dict[str, NDArray[Any]] = {}
        for value, each in zip(outputs, contract.outputs, strict=True):
            named[each.name] = (as_pixels(value) if each.kind == "pixels" else value).detach().numpy()
            if each.kind == "pixels":
                named[each.name + LEVELS] = value.detach().numpy()
        return named

    def answer(self, arrays: Mapping[str, NDArray[Any]]) -> Any:
        """What the network itself returns. Raises NetworkFailure."""
        with torch.inference_mode():
            return self._forward([self._input(_tensor(arrays[each.name]), index) for index, each in enumerate(self.contract.inputs)])

    def _forward(self, inputs: Sequence[Tensor]) -> Any:
        try:
            outputs = self._answered(inputs)
            flatten(outputs)
            return outputs
        except Exception as error:  # whatever the user's code raises
            shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
            raise NetworkFailure(f"PyTorch itself fails at {shapes} in {failing_module(self.network, inputs)}: {first_line(error)}") from error

    def _answered(self, inputs: Sequence[Tensor]) -> Any:
        try:
            return self.network(*inputs)
        except Exception:
            if self.dtype != torch.float64:
                raise
            default = torch.get_default_dtype()
            try:  # `.float()` and torch.zeros() in forward are float32 among float64
                torch.set_default_dtype(torch.float64)
                with InDouble():  # type: ignore[no-untyped-call]
                    return self.network(*inputs)
            finally:
                torch.set_default_dtype(default)

    def pixels(self, array: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """`run` for the only image input."""
        return self.run({self.contract.inputs[0].name: array})

    def _input(self, value: Tensor, index: int) -> Tensor:
        pixels = self.contract.inputs[index].pixels
        if pixels is None:
            return value.to(self.dtype) if value.is_floating_point() else value
        mean, std = (torch.tensor(values, dtype=self.dtype) for values in (pixels.mean, pixels.std))
        return ((value.to(self.dtype) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
