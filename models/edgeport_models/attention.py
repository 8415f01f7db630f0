"""A small network around one attention layer."""

from torch import Tensor, nn

from .layers import AdaptiveAttention2d, DepthwiseSeparableConv2d


class SeparableBlock(nn.Module):
    """Depthwise-separable convolution, BatchNorm, ReLU. (B, C, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = DepthwiseSeparableConv2d(in_channels, out_channels, kernel_size=kernel_size, stride=stride, padding=kernel_size // 2)
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.norm(self.conv(x)))
        return out


class AttentionNet(nn.Module):
    """A depthwise-separable stem that shrinks by 4, adaptive attention over its positions, a separable head.

    float (B, 3, H, W) -> logits float (B, num_classes), H and W from SMALLEST_PX up.
    128x128 pixels give 32 * 32 = 1,024 positions; attention's memory grows with the square of that number.
    """

    SMALLEST_PX = 8

    def __init__(self, *, num_classes: int = 10, channels: int = 128) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            SeparableBlock(3, 32, kernel_size=5, stride=2),
            SeparableBlock(32, 64, kernel_size=5, stride=2),
            SeparableBlock(64, channels, kernel_size=5),
        )
        self.attention = AdaptiveAttention2d(channels)
        self.head = nn.Sequential(
            SeparableBlock(channels, 2 * channels, kernel_size=3, stride=2),
            SeparableBlock(2 * channels, 2 * channels, kernel_size=3, stride=2),
        )
        self.classifier = nn.Linear(2 * channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (B, channels, H/4, W/4)
        x = self.attention(x)  # (B, channels, H/4, W/4)
        x = self.head(x).mean(dim=(2, 3))  # (B, 2 * channels)
        logits: Tensor = self.classifier(x)  # (B, num_classes)
        return logits
