"""A small CNN, plain or depthwise-separable."""

from torch import Tensor, nn
from torch.nn import functional as F

from .layers import ConvLayer, DepthwiseSeparableConv2d


class CNN(nn.Module):
    """Two 3x3 convolutions with max pooling, adaptive pooling to 6x6, two linear layers.

    float (B, 3, H, W) -> logits float (B, num_classes), H and W from SMALLEST_PX up.
    `separable`: the convolutions are depthwise-separable.
    """

    SMALLEST_PX = 4  # two poolings by 2 must leave one position

    def __init__(self, *, num_classes: int = 10, separable: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(*self._block(3, 32, separable), *self._block(32, 64, separable))
        self.pool = nn.AdaptiveAvgPool2d(6)
        self.hidden = nn.Linear(64 * 6 * 6, 128)
        self.head = nn.Linear(128, num_classes)

    @staticmethod
    def _block(in_channels: int, out_channels: int, separable: bool) -> list[nn.Module]:
        if separable:
            return [DepthwiseSeparableConv2d(in_channels, out_channels), nn.ReLU(), nn.MaxPool2d(2)]
        return [ConvLayer(in_channels, out_channels), nn.MaxPool2d(2)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # (B, 64, H/4, W/4)
        x = self.pool(x).flatten(1)  # (B, 64 * 6 * 6)
        x = F.relu(self.hidden(x))  # (B, 128)
        logits: Tensor = self.head(x)  # (B, num_classes)
        return logits
