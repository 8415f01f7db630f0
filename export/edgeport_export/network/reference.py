"""PyTorch's own answer: the same network after the textbook normalization, in any precision.

Parity and golden cases come from it. It normalizes by other code than `ExportWrapper`, on purpose, so that a mistake there shows as a difference.
"""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from edgeport_export.errors import ExportError, NetworkFailure
from edgeport_export.rewrites.names import levels_name
from edgeport_runtime import Contract
from edgeport_runtime.errors import first_line

from .module_hooks import module_hooks
from .wrapper import as_pixels, flatten, from_network


def copied(network: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A copy to work on, so that the user's own stays as it is. Raises ExportError if Python cannot copy it.

    `memo`: id of an object -> what stands for it in the copy, as `copy.deepcopy` takes it.
    """
    try:
        return copy.deepcopy(network, memo)
    except Exception as error:  # a lock or an open file beside the weights; a tensor computed from them
        remedy = "make what is no module, parameter or buffer in forward (or call detach() on a tensor computed from the weights)"
        raise ExportError(f"the network cannot be copied ({first_line(error)}), and edgeport works on a copy of yours; {remedy}") from error


def prepared(network: nn.Module) -> nn.Module:
    """A copy on the CPU in eval mode."""
    return copied(network).cpu().eval()


def without_weights(network: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are on torch's meta device, so that none of them takes memory."""
    parameters = {id(each): nn.Parameter(each.detach().to("meta"), requires_grad=each.requires_grad) for each in network.parameters()}
    return copied(network, {**parameters, **{id(each): each.to("meta") for each in network.buffers()}})


def weights_sha256(network: nn.Module) -> str:
    """Hash of all weights and buffers by name, wherever they lie. What BatchNorm counts while it is trained decides no output, and is left out."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if isinstance(value, Tensor) and not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class _InDouble(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tensors that a network makes in float32 itself (`.float()`, a tensor beside the buffers) become float64 among the others."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operation, with its float32 tensors and dtypes as float64."""
        args, kwargs = tree_map(_doubled, (args, kwargs or {}))
        return func(*args, **kwargs)


def _doubled(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return value.double()
    return torch.float64 if value is torch.float32 else value


class TorchReference:
    """Runs a copy of a network in PyTorch, on the CPU in eval mode, in `dtype`."""

    def __init__(self, network: nn.Module, contract: Contract, dtype: torch.dtype = torch.float32) -> None:
        self.unrun = network
        self.network = prepared(network).to(dtype)
        self.contract = contract
        self.dtype = dtype

    @cached_property
    def double(self) -> "TorchReference":
        """The network in float64: a copy of the caller's, because this one may keep tables in float32 from an earlier run."""
        return TorchReference(self.unrun, self.contract, torch.float64)

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by the names of `graph_outputs`; float outputs in `dtype`. Raises NetworkFailure."""
        contract = self.contract
        with torch.inference_mode():
            outputs = [from_network(value, each) for value, each in zip(flatten(self.answer(arrays)), contract.outputs, strict=True)]
        named: dict[str, NDArray[Any]] = {}
        for value, each in zip(outputs, contract.outputs, strict=True):
            named[each.name] = (as_pixels(value) if each.kind == "pixels" else value).detach().numpy()
            if each.kind == "pixels":
                named[levels_name(each.name)] = value.detach().numpy()
        return named

    def pixels(self, array: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """`run` for the only image input: uint8 (N, H, W, C)."""
        return self.run({self.contract.inputs[0].name: array})

    def answer(self, arrays: Mapping[str, NDArray[Any]]) -> Any:
        """What the network itself returns. Raises NetworkFailure."""
        with torch.inference_mode():
            inputs = [self._input(_tensor(arrays[each.name]), index) for index, each in enumerate(self.contract.inputs)]
            try:
                outputs = self._answered(inputs)
                flatten(outputs)
                return outputs
            except Exception as error:  # whatever the user's code raises
                shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
                raise NetworkFailure(f"PyTorch itself fails at {shapes} in {_failing_module(self.network, inputs)}: {first_line(error)}") from error

    def _answered(self, inputs: Sequence[Tensor]) -> Any:
        try:
            return self.network(*inputs)
        except Exception:
            if self.dtype != torch.float64:
                raise
            default = torch.get_default_dtype()
            try:  # `.float()` and torch.zeros() in forward are float32 among float64
                torch.set_default_dtype(torch.float64)
                with _InDouble():  # type: ignore[no-untyped-call]
                    return self.network(*inputs)
            finally:
                torch.set_default_dtype(default)

    def _input(self, value: Tensor, index: int) -> Tensor:
        pixels = self.contract.inputs[index].pixels
        if pixels is None:
            return value.to(self.dtype) if value.is_floating_point() else value
        mean, std = (torch.tensor(values, dtype=self.dtype) for values in (pixels.mean, pixels.std))
        return ((value.to(self.dtype) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def _tensor(array: NDArray[Any]) -> Tensor:
    """A copy as a tensor: a network may change its input in place."""
    return torch.from_numpy(np.array(array, order="C"))


def _failing_module(network: nn.Module, inputs: Sequence[Tensor]) -> str:
    """Run once more and return the path and class of the innermost module that was running when it failed."""
    running: list[str] = []
    with module_hooks(network, started=lambda name, _: running.append(name), returned=lambda *_: running.__delitem__(-1)):
        try:
            network(*inputs)
        except Exception:
            return running[-1] if running else "the network"
    return "the network, but not when it was run again"
