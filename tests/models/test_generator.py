import pytest
import torch
from torch import nn

from edgeport_models import Generator, PatchDiscriminator


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (32, 17)])
def test_it_keeps_the_size_and_stays_in_range(size: tuple[int, int]) -> None:
    with torch.inference_mode():
        out = Generator()(torch.randn(2, 3, *size) * 9)
    assert out.shape == (2, 3, *size) and out.abs().max() <= 1


def test_it_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 3, 16, 16) - 0.5
    with torch.inference_mode():
        out = Generator()(x)
    assert torch.corrcoef(torch.stack([out.flatten(), x.flatten()]))[0, 1] > 0.6


def test_the_structures_that_are_promised() -> None:
    convolutions = [m for m in Generator().modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size) for m in convolutions] == [(3, 64, (3, 3)), (64, 64, (3, 3)), (64, 64, (3, 3)), (64, 3, (3, 3))]
    with torch.inference_mode():
        assert PatchDiscriminator()(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)).shape == (1, 1, 8, 8)
