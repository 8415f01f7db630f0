"""Layers against the formulas of their papers, written out in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeport_models import AdaptiveAttention2d, ConvLayer, DepthwiseSeparableConv2d, SelfAttention2d
from edgeport_models.layers import grid_points


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("kernel_size", "stride", "padding", "side"), [(3, 1, 1, 7), (3, 2, 1, 4), (5, 2, 2, 4), (1, 1, 0, 7)])
def test_conv_layer_is_relu_of_a_convolution(kernel_size: int, stride: int, padding: int, side: int) -> None:
    layer = ConvLayer(2, 5, kernel_size=kernel_size, stride=stride, padding=padding).double()
    out = layer(noise(3, 2, 7, 7))
    assert out.shape == (3, 5, side, side)
    patches = torch.nn.functional.unfold(noise(3, 2, 7, 7), kernel_size, padding=padding, stride=stride)  # (B, C·k·k, positions)
    expected = (layer.conv.weight.flatten(1) @ patches + layer.conv.bias[:, None]).clamp(min=0)  # type: ignore[index]
    torch.testing.assert_close(out.flatten(2), expected)


def test_depthwise_separable_filters_each_channel_then_mixes() -> None:
    layer = DepthwiseSeparableConv2d(3, 4, kernel_size=3, stride=2, padding=1).double()
    x = noise(2, 3, 9, 8)
    depthwise, pointwise = layer.depthwise, layer.pointwise
    filtered = torch.stack([torch.nn.functional.conv2d(x[:, [c]], depthwise.weight[[c]], depthwise.bias[[c]], 2, 1)[:, 0] for c in range(3)], 1)  # type: ignore[index]
    expected = torch.einsum("oc,bchw->bohw", pointwise.weight[:, :, 0, 0], filtered) + pointwise.bias[None, :, None, None]  # type: ignore[index]
    torch.testing.assert_close(layer(x), expected)
    assert sum(p.numel() for p in layer.parameters()) == (9 * 3 + 3) + (3 * 4 + 4)


def attention_by_loops(layer: SelfAttention2d, x: torch.Tensor) -> torch.Tensor:
    """softmax over positions of query·key / sqrt(channels), one position at a time."""
    q, k, v = (conv(x).flatten(2) for conv in (layer.query, layer.key, layer.value))
    out = torch.zeros_like(v)
    for b in range(len(x)):
        for i in range(q.shape[2]):
            scores = torch.stack([q[b, :, i] @ k[b, :, j] for j in range(k.shape[2])]) / math.sqrt(q.shape[1])
            weights = scores.exp() / scores.exp().sum()
            out[b, :, i] = (v[b] * weights).sum(dim=1)
    return out.reshape(x.shape)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 2), st.integers(1, 4), st.integers(1, 5))
def test_self_attention_is_the_formula(batch: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    layer = SelfAttention2d(16, reduction=4).double()
    x = noise(batch, 16, height, width)
    torch.testing.assert_close(layer(x), attention_by_loops(layer, x))


def test_adaptive_attention_multiplies_the_input_by_its_map() -> None:
    layer = AdaptiveAttention2d(8, reduction=2).double()
    x = noise(2, 8, 3, 4)
    torch.testing.assert_close(layer(x), x * attention_by_loops(layer.attention, x))
    assert layer(torch.zeros_like(x)).abs().max() == 0


def test_points_of_a_grid_by_hand() -> None:
    features = torch.zeros(2, 5, 2, 3)
    assert grid_points(features, (4, 10)).tolist() == [[5, 2], [15, 2], [25, 2], [5, 6], [15, 6], [25, 6]]
    assert grid_points(features, (4, 10), first=0.0).tolist() == [[0, 0], [10, 0], [20, 0], [0, 4], [10, 4], [20, 4]]
