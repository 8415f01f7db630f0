"""What torch cannot export is named in one sentence: the operation, the module, the line, the axes, a remedy. What it can with some help is exported."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeport_export import AxisError, ExportError
from edgeport_export.tracing.exporter import Traced, trace
from edgeport_export.validation.parity import Parity, remedy
from edgeport_runtime import Contract

Way = Callable[[Tensor], Tensor]
Swept = Callable[[nn.Module, Contract], tuple[Traced, Parity]]


class Middle(nn.Module):
    """Does what it is told to between two layers."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(x)


class Positions(nn.Module):
    """Learned positions, taken as they are at the size of training and resized elsewhere, as DINO and DeiT do."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)))  # made while tests are collected

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 4)
        height, width = x.shape[2:]
        if height == 4 and width == 4:
            return x + self.positions
        return x + F.interpolate(self.positions, size=(height, width), mode="bicubic")


def around(middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), middle, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


class Encoded(nn.Module):
    """Four tokens through nn.TransformerEncoder with a mask; `told`: whether it is causal."""

    def __init__(self, **told: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(3, 1, dim_feedforward=8, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.told = told
        self.register_buffer("mask", torch.eye(4) == 0)

    def forward(self, x: Tensor) -> Tensor:
        tokens = F.adaptive_avg_pool2d(x, 2).flatten(2).transpose(1, 2)
        return self.encoder(tokens, mask=self.mask, **self.told).transpose(1, 2)[..., None]


def depthwise(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    maps = x.reshape(1, batch * channels, height, width)
    return F.conv2d(maps, x.new_ones(batch * channels, 1, 1, 1), groups=batch * channels).reshape(x.shape)


def in_bfloat16(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.conv2d(x, x.new_ones(3, 3, 1, 1)).float()


@pytest.mark.parametrize(
    ("middle", "error", "message"),
    [
        (Middle(lambda x: x * 2 if x.sum() > 0 else x), ExportError, r"branches on values it computes in 1 \(Middle\), .* torch\.where"),
        (Encoded(), ExportError, r"branches on values it computes in 1\.encoder \(TransformerEncoder\), .*: call it with is_causal=False, or True if"),
        (nn.AdaptiveMaxPool2d((7, None)), AxisError, r"bound to its width in 1 \(AdaptiveMaxPool2d\): .* leave width out of --dynamic"),
        (Middle(lambda x: x * (x.data_ptr() > 0)), ExportError, r"PyTorch could not export the network in 1 \(Middle\): "),
        (
            Middle(lambda x: torch.roll(x, x.shape[3] // 2, 3)),
            AxisError,
            r"aten\.roll in 1 \(Middle\) \(test_exporter_errors\.py:\d+: .*\) takes a number that is computed from its width, which .*; leave width out",
        ),
        (Middle(lambda x: x[:, :, : round(x.shape[2] * 0.5)]), AxisError, r"round in 1 \(Middle\) .* computed from its height, .*; leave height out"),
        (Middle(depthwise), AxisError, r"aten\.conv2d in 1 \(Middle\) .* computed from its batch, .*; leave batch out of --dynamic"),
        (Middle(lambda x: torch.linalg.svdvals(x)[..., None]), ExportError, r"aten\._linalg_svd in 1 \(Middle\) .* has no ONNX form; write it with other"),
        (
            Middle(lambda x: x + sum(x[:, :, row, None] for row in range(x.shape[2]))),
            AxisError,
            r"bound to its height in 1 \(Middle\): .*as a loop over range\(\) does.*; leave height out of --dynamic",
        ),
        (Middle(lambda x: sum(x.chunk(2, dim=2)) if x.shape[2] else x), AxisError, r"aten\.split in 1 \(Middle\) .* from its height, .*leave height out"),
        (
            Middle(lambda x: F.interpolate(x[:, None], scale_factor=1.3, mode="trilinear")[:, 0]),
            ExportError,
            r"aten\.upsample_trilinear3d in 1 \(Middle\) .* give size=",
        ),
        (Middle(in_bfloat16), ExportError, r"1 computes in bfloat16, .*; leave out torch\.autocast"),
        (
            Middle(lambda x: F.avg_pool2d(x, 3, ceil_mode=True, divisor_override=4)),
            ExportError,
            r"aten\.avg_pool2d in 1 \(Middle\) .* has no ONNX form; .* \(divisor_override together with ceil_mode\)",
        ),
    ],
)
def test_what_torch_cannot_export_is_named_in_one_sentence(
    class_contract: Contract, capfd: pytest.CaptureFixture[str], middle: nn.Module, error: type[ExportError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        trace(around(middle), class_contract)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # torch prints graphs that it cannot finish


def test_the_remedy_for_a_masked_encoder_is_one(class_contract: Contract) -> None:
    model = trace(around(Encoded(is_causal=False)), class_contract).model
    assert [node.op_type for node in model.graph.node].count("Softmax") == 2  # one for each layer


def doubled_unless_square(x: Tensor) -> Tensor:
    return x if x.shape[2] / x.shape[3] < 1.75 else x * 2


def doubled_when_odd(x: Tensor) -> Tensor:
    return x * 2 if x.shape[2] & 1 else x


@pytest.mark.parametrize(
    ("way", "message"),
    [
        (doubled_unless_square, "branches on its height and width in 1 (Middle)"),
        (doubled_when_odd, "branches on its height in 1 (Middle)"),
    ],
)
def test_a_branch_that_torch_cannot_write_down_is_found_all_the_same(swept: Swept, class_contract: Contract, way: Way, message: str) -> None:
    """torch.export fails over the assertion that it makes of it (IntTrueDiv over proxies, torch 2.15), not over the network."""
    traced, parity = swept(around(Middle(way)), class_contract)
    assert not parity
    assert message in remedy(parity, class_contract, traced.guards)


def resized_unless_at_home(x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    return x if height == 16 and width == 16 else F.interpolate(x, size=(16, 16), mode="bilinear")


@pytest.mark.parametrize("middle", [Middle(resized_unless_at_home), Positions()])
def test_a_shortcut_at_the_contracts_own_size_binds_nothing(swept: Swept, class_contract: Contract, middle: nn.Module) -> None:
    """Traced at that size, the network would be bound to it; traced elsewhere it takes the way that is right at every size."""
    _, parity = swept(around(middle), class_contract)
    assert parity and {"height": 16, "width": 16}.items() <= parity.cases[0].sizes.items()


class Same(nn.Conv2d):
    """TensorFlow's SAME padding, as timm's tf_ networks compute it from the size."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = (max((math.ceil(side / 2) - 1) * 2 + 3 - side, 0) for side in x.shape[2:])
        return super().forward(F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2)))


@pytest.mark.parametrize("halved", [2, pytest.param(5, marks=pytest.mark.long)])
def test_sizes_that_grow_with_every_layer_are_refused_before_tracing_takes_minutes(class_contract: Contract, halved: int) -> None:
    layers = [Same(3, 3, 3, stride=2) for _ in range(halved)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    if halved == 2:
        assert trace(network, class_contract).model.graph.node
        return
    with pytest.raises(AxisError, match=r"sizes inside .* become formulas too long to trace.*leave height and width out of --dynamic") as refused:
        trace(network, class_contract)
    assert len(str(refused.value)) < 400
    still = replace(class_contract, inputs=(replace(class_contract.inputs[0], shape=("batch", 16, 16, 3)),), axes={"batch": class_contract.axes["batch"]})
    assert trace(network, still).model.graph.node
