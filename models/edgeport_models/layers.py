"""Building blocks. Tensors are float, (B, C, H, W): batch, channels, height, width in pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvLayer(nn.Module):
    """Convolution, then ReLU.

    (B, in_channels, H, W) -> (B, out_channels, H', W') with H' = (H + 2 padding - kernel_size) // stride + 1. Values >= 0.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int = 3, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class DepthwiseSeparableConv2d(nn.Module):
    """A depthwise convolution (one filter for each channel), then a 1x1 convolution that mixes channels; no activation.

    (B, in_channels, H, W) -> (B, out_channels, H', W') with H' = (H + 2 padding - kernel_size) // stride + 1.
    Multiplications fall from k² · in · out to k² · in + in · out a position (Howard et al. 2017, arXiv:1704.04861).
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int = 3, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, kernel_size, stride, padding, groups=in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(x)  # (B, in_channels, H', W')
        out: Tensor = self.pointwise(x)  # (B, out_channels, H', W')
        return out


class SelfAttention2d(nn.Module):
    """Every position attends to every position: 1x1 query, key and value convolutions, scaled softmax over the H*W positions.

    (B, C, H, W) -> (B, C, H, W). Queries and keys have C // reduction channels. Time and memory grow with (H*W)².
    Scaling by 1/sqrt(channels of a key): Vaswani et al. 2017, arXiv:1706.03762.
    """

    def __init__(self, channels: int, *, reduction: int = 8) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // reduction, kernel_size=1)
        self.key = nn.Conv2d(channels, channels // reduction, kernel_size=1)
        self.value = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2).transpose(1, 2)  # (B, H*W, C/r)
        key = self.key(x).flatten(2).transpose(1, 2)  # (B, H*W, C/r)
        value = self.value(x).flatten(2).transpose(1, 2)  # (B, H*W, C)
        attended = F.scaled_dot_product_attention(query, key, value)  # (B, H*W, C)
        return attended.transpose(1, 2).reshape(x.shape)  # (B, C, H, W)


class AdaptiveAttention2d(nn.Module):
    """The input multiplied by its own attention map, so that regions are weighted anew. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, reduction: int = 8) -> None:
        super().__init__()
        self.attention = SelfAttention2d(channels, reduction=reduction)

    def forward(self, x: Tensor) -> Tensor:
        weighted: Tensor = x * self.attention(x)  # (B, C, H, W)
        return weighted


def grid_points(features: Tensor, steps: Sequence[float], *, first: float = 0.5) -> Tensor:
    """Where the positions of a feature map (B, C, h, w) are in the image, row by row: (h * w, 2), x and y in pixels.

    `steps`: pixels from one position to the next, down and across. `first`: where the first one is, in steps; 0.5 is the middle of its cell.
    """
    rows, columns = features.shape[-2:]
    y = (torch.arange(rows, dtype=features.dtype, device=features.device) + first) * steps[0]
    x = (torch.arange(columns, dtype=features.dtype, device=features.device) + first) * steps[1]
    return torch.stack([x[None, :].expand(rows, columns), y[:, None].expand(rows, columns)], dim=-1).reshape(-1, 2)
