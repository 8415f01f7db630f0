"""Sides that are promised in steps. The right values are PyTorch's, at sizes that the trace did not see."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edgeport_export import AxisError, ImageTask, image_contract
from edgeport_export.network.contracts import parse_axes
from edgeport_export.rewrites.finalize import finalize_fp32
from edgeport_export.tracing.exporter import trace
from edgeport_runtime import Contract, Pixels, SessionOptions
from edgeport_runtime.engine import Engine


class Skip(nn.Module):
    """A strided convolution beside a pooled shortcut, as some networks of timm have it."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*[nn.Conv2d(3 if i == 0 else 8, 8, 3, 2, 1) for i in range(3)])
        self.down, self.pool, self.head = nn.Conv2d(8, 8, 3, 2, 1), pool, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        answer: Tensor = self.head((self.down(y) + self.pool(y)).mean((2, 3)))
        return answer


class Rows(nn.Module):
    """A text recognizer: columns of the image become time steps."""

    def __init__(self, layer: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.conv, self.rnn = nn.Conv2d(3, 16, (32, 4), (32, 4)), layer(16, 8, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.rnn(self.conv(x).squeeze(2).permute(0, 2, 1))[0]
        return answer


def described(network: nn.Module, height: int, width: int, axes: str) -> Contract:
    return image_contract(network, ImageTask(task="tensors", pixels=Pixels(height=height, width=width), axes=parse_axes(axes)))


SIDES = "batch=1..4,height=64..192:32,width=64..192:32"
WIDTH = "batch=1..8,width=32..320:4"
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], str, list[tuple[int, int, int]]]] = {
    "stride beside max pool": (lambda: Skip(nn.MaxPool2d(2)), (128, 128), SIDES, [(1, 64, 64), (3, 96, 192), (4, 192, 64)]),
    "stride beside average pool": (lambda: Skip(nn.AvgPool2d(2)), (128, 128), SIDES, [(1, 64, 96), (2, 192, 192)]),
    "steps that begin beside a multiple": (
        lambda: Skip(nn.MaxPool2d(2, ceil_mode=True)),
        (128, 128),
        "height=48..208:16,width=48..208:16",
        [(1, 48, 64), (1, 208, 176)],
    ),
    "LSTM": (lambda: Rows(nn.LSTM, bidirectional=True), (32, 64), WIDTH, [(1, 32, 32), (2, 32, 100), (8, 32, 320)]),
    "two layers of LSTM": (lambda: Rows(nn.LSTM, num_layers=2), (32, 64), WIDTH, [(1, 32, 36), (3, 32, 212)]),
    "GRU": (lambda: Rows(nn.GRU), (32, 64), WIDTH, [(1, 32, 32), (2, 32, 100), (8, 32, 320)]),
}


NEW_TORCH = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14)  # older ones unroll a recurrent layer over columns; such an export is refused


def cases() -> list[Any]:
    known = [name for name in CASES if NEW_TORCH or not name.endswith(("LSTM", "GRU"))]
    return [pytest.param(name, marks=pytest.mark.long) if name.endswith("LSTM") else name for name in known]


@pytest.mark.parametrize("name", cases())
def test_sides_in_steps_are_right_at_every_step(name: str) -> None:
    make, size, axes, points = CASES[name]
    torch.manual_seed(0)
    network = make().eval()
    contract = described(network, *size, axes)
    traced = trace(network, contract)
    assert [dim.dim_param or dim.dim_value for dim in traced.model.graph.input[0].type.tensor_type.shape.dim] == list(contract.inputs[0].shape)
    with Engine(finalize_fp32(traced.model, contract), contract, SessionOptions()) as engine:
        for batch, height, width in points:
            pixels = np.random.default_rng(height).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
            expected = network.double()(torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255).detach().numpy()
            np.testing.assert_allclose(engine.run({"pixels": pixels})["output"], expected, atol=2e-6)
            network.float()


def test_sizes_inside_are_written_in_terms_of_the_axes() -> None:
    network = Skip(nn.MaxPool2d(2)).eval()
    model = trace(network, described(network, 128, 128, SIDES)).model
    named = {dim.dim_param for each in model.graph.value_info for dim in each.type.tensor_type.shape.dim if dim.dim_param}
    assert named and all(set(re.findall(r"[a-z]\w*", text)) <= {"batch", "height", "width"} for text in named), named
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.skipif(not NEW_TORCH, reason="torch before 2.14 unrolls a recurrent layer in every trace")
@pytest.mark.long
def test_a_second_trace_is_as_good_as_the_first() -> None:
    """torch took an LSTM whole in the first trace of a process, and unrolled it in every later one."""
    torch.manual_seed(0)
    network = Rows(nn.LSTM).eval()
    contract = described(network, 32, 64, WIDTH)
    for _ in range(2):
        assert [node.op_type for node in trace(network, contract).model.graph.node].count("LSTM") == 1


def test_a_recurrent_layer_over_free_columns_is_refused_by_name() -> None:
    network = Rows(nn.GRU).eval()
    with pytest.raises(AxisError, match=r"GRU in rnn keeps the number of its steps that it had when it was traced; leave width out of --dynamic"):
        trace(network, described(network, 32, 64, "batch=1..8,width=32..320"))


@pytest.mark.skipif(not NEW_TORCH, reason="torch before 2.14 unrolls a recurrent layer in every trace")
@pytest.mark.parametrize("layer", [nn.LSTM, pytest.param(nn.GRU, marks=pytest.mark.long)])
def test_steps_that_help_are_suggested(layer: type[nn.RNNBase]) -> None:
    network = Rows(layer).eval()
    with pytest.raises(AxisError, match=r"promise it in steps, with which it was traced: --dynamic width=32\.\.320:4"):
        trace(network, described(network, 32, 64, "batch=1..8,width=32..320"))


class Fourier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        s = torch.fft.rfft2(x, norm="ortho")
        re, im = self.conv(torch.cat((s.real, s.imag), 1)).chunk(2, 1)
        return torch.fft.irfft2(torch.complex(re, im), s=x.shape[2:], norm="ortho")


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Conv2d(3, 8, 8, 8), nn.Parameter(torch.randn(1, 8, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        f = self.embed(x)
        h, w = f.shape[2:]
        return f + nn.functional.interpolate(self.place, scale_factor=((h + 0.1) / 4, (w + 0.1) / 4), mode="bicubic")


@pytest.mark.parametrize(
    ("make", "size", "axes", "words"),
    [
        (
            Fourier,
            (64, 64),
            "batch=1..4,height=32..128:2,width=32..128:2",
            r"inverse Fourier transform in .*Fourier.* needs fixed sides; leave height",
        ),
        (Positions, (32, 32), "height=16..64:8,width=16..64:8", r"the number of its height and width in .*Positions.*; leave height and width out"),
    ],
)
def test_refusals_name_the_module_and_every_axis(make: Callable[[], nn.Module], size: tuple[int, int], axes: str, words: str) -> None:
    network = make().eval()
    with pytest.raises(AxisError, match=words):
        trace(network, described(network, *size, axes))
