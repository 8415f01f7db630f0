"""The module that is traced: pixels in, named outputs out, with the user's network inside. The network itself is never edited."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeport_export.rewrites.names import levels_name
from edgeport_runtime import Contract, Output


def graph_outputs(contract: Contract) -> list[str]:
    """Names of everything that is traced: the contract's outputs, then the levels of pixel outputs."""
    return [each.name for each in contract.outputs] + [levels_name(each.name) for each in contract.outputs if each.kind == "pixels"]


def compared_outputs(contract: Contract) -> list[str]:
    """Names of the values that parity compares: before rounding, if the output is pixels."""
    return [levels_name(each.name) if each.kind == "pixels" else each.name for each in contract.outputs]


class ExportWrapper(nn.Module):
    """uint8 pixels (N, H, W, C) -> the outputs named by `graph_outputs`, with normalization and layout inside the graph.

    `dtype`: of the network itself, float32 or float16. Normalization and outputs are always float32.
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
        normalized: Tensor = (value.permute(0, 3, 1, 2).to(torch.float32) - mean) * scale
        return normalized.to(self.dtype).contiguous()  # networks expect that: one that calls view() fails on the strides of a permuted image


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
    """A pixel output as float levels 0..255 in (N, H, W, C); anything else unchanged."""
    if output.kind != "pixels":
        return value
    low, high = output.range
    return ((value - low) * (255 / (high - low))).clamp(0, 255).permute(0, 2, 3, 1)


def as_pixels(levels: Tensor) -> Tensor:
    """Float levels 0..255 to uint8, halves to even."""
    return levels.round().to(torch.uint8)
