"""A network that branches on its height, and a contract whose range holds both ways."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from edgeport_runtime import Contract, Pixels
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import classification


class Branching(nn.Module):
    """Doubles images that are at least 21 high: what a window that may be larger than the image does to Swin."""

    def __init__(self, harmless: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.harmless = harmless

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x).mean((2, 3))
        if x.shape[2] > 20:
            return y * 1.0 if self.harmless else y * 2
        return y


@pytest.fixture(scope="session")
def branching() -> Callable[..., nn.Module]:
    """`harmless`: both ways give the same numbers."""
    return Branching


@pytest.fixture(scope="session")
def contract() -> Contract:
    return classification(Pixels(height=32, width=32, mean=(0.5,) * 3, std=(0.5,) * 3), tuple("abc"), image_axes(smallest_px=8, largest_px=64, largest_batch=4))
