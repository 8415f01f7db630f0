"""What torch.export binds to one size on its own: exported with every axis dynamic, and right at sizes that were not traced."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from edgeport_export.tracing.exporter import Traced
from edgeport_export.tracing.torch_patches import linspace, symbolic_linspace
from edgeport_export.validation.parity import Parity
from edgeport_runtime import Contract, SessionOptions
from edgeport_runtime.device import open_session

Swept = Callable[[nn.Module, Contract], tuple[Traced, Parity]]


class Turned(nn.Module):
    """A spatial transformer (Jaderberg et al. 2015, arXiv:1506.02025)."""

    def __init__(self, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners

    def forward(self, x: Tensor) -> Tensor:
        turn = torch.tensor([[0.9, -0.2, 0.1], [0.2, 0.9, 0.0]]).expand(len(x), 2, 3)
        return F.grid_sample(x, F.affine_grid(turn, list(x.shape), align_corners=self.align_corners), align_corners=self.align_corners)


class Coordinates(nn.Module):
    """Coordinates as channels (Liu et al. 2018, arXiv:1807.03247)."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        return x + torch.linspace(-1, 1, height)[:, None] - 2 * torch.linspace(0, 1, steps=width, dtype=torch.float32)


class PeakColumn(nn.Module):
    """The column of a score map's peak."""

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, :1].flatten(2).argmax(2) % x.shape[3]).float()[..., None, None] + 0 * x


class Windows(nn.Module):
    """Attention in windows of 4x4 with a bias for relative positions, as Swin and BEiT have it."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, 1, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4))
        batch, channels, height, width = x.shape
        cut = x.view(batch, channels, height // 4, 4, width // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, channels)
        heads = cut.reshape(-1, 16, 1, channels).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(heads, heads, heads, attn_mask=self.bias).transpose(1, 2).reshape(-1, 16, channels)
        return mixed.reshape(batch, height // 4, width // 4, 4, 4, channels).permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)


@pytest.mark.parametrize("middle", [Turned(False), Turned(True), Coordinates(), PeakColumn(), Windows()], ids=lambda each: type(each).__name__)
def test_a_size_that_torch_takes_for_a_number_stays_dynamic(swept: Swept, class_contract: Contract, middle: nn.Module) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), middle, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    _, parity = swept(network, class_contract)
    assert parity and {"batch": 1, "height": 64, "width": 64} in [dict(case.sizes) for case in parity.cases]


ENDS = (-3.0, 7.5)


class Line(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linspace(*ENDS, steps=x.shape[0])


@pytest.fixture(scope="module")
def line() -> Any:
    with symbolic_linspace():
        program = torch.onnx.export(Line().eval(), (torch.zeros(7),), dynamo=True, verbose=False, dynamic_shapes=({0: "length"},), input_names=["x"])
    return open_session(onnx_ir.to_proto(program.model).SerializeToString(), SessionOptions(threads=1))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000))
def test_linspace_of_any_length_is_numpys(line: Any, steps: int) -> None:
    got = line.run(None, {"x": np.zeros(steps, np.float32)})[0]
    np.testing.assert_allclose(got, np.linspace(*ENDS, steps), atol=1e-6)
    assert got[0] == ENDS[0] and got[-1] == ENDS[steps > 1]  # both ends exactly, as PyTorch has them


KNOWN = [(0.0, 1.0, 64), (0.0, 1.0, 1024), (-1.0, 1.0, 7), (-1, 1, 64), (0.3, 1.7, 33), (5.0, -2.0, 2), (3.0, 9.0, 1), (0.0, 1.0, 0)]


class Known(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.sum() * 0 + torch.linspace(*each) for each in KNOWN)


def test_linspace_of_a_known_length_has_the_bits_of_pytorch() -> None:
    with symbolic_linspace():
        program = torch.onnx.export(Known().eval(), (torch.zeros(7),), dynamo=True, verbose=False, dynamic_shapes=({0: "length"},), input_names=["x"])
    session = open_session(onnx_ir.to_proto(program.model).SerializeToString(), SessionOptions(threads=1))
    for each, got in zip(KNOWN, session.run(None, {"x": np.ones(3, np.float32)}), strict=True):
        np.testing.assert_array_equal(got, torch.linspace(*each).numpy(), err_msg=str(each))


def test_numbers_and_integers_go_to_torch_itself() -> None:
    with symbolic_linspace():
        assert torch.linspace is linspace
        assert torch.equal(torch.linspace(0, 9, 4, dtype=torch.int64), torch.tensor([0, 3, 6, 9]))
        assert torch.linspace(3, 5, 1).tolist() == [3] and torch.linspace(3, 5, 0).tolist() == []
    assert torch.linspace is not linspace
