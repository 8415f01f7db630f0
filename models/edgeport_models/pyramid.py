"""A detector and a segmentation network on one small feature pyramid (Lin et al. 2017, arXiv:1612.03144). Sides are multiples of 32 pixels."""

from torch import Tensor, nn
from torch.nn import functional as F

from .layers import grid_points

CHANNELS = (16, 32, 64, 96, 128)  # of the maps at strides 2, 4, 8, 16, 32
STEP_PX = 32


def block(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution, normalized over the batch, then ReLU: (B, in, H, W) -> (B, out, H / stride, W / stride)."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


class Pyramid(nn.Module):
    """Down to stride 32 and up again: what is seen far around joins what is seen close by.

    (B, 3, H, W) -> (B, `channels`, H / `stride`, W / `stride`).
    """

    def __init__(self, *, stride: int, channels: int = 48) -> None:
        super().__init__()
        self.first = (stride // 2).bit_length() - 1  # of the maps that are taken
        inputs = (3, *CHANNELS[:-1])
        self.down = nn.ModuleList(nn.Sequential(block(a, b, stride=2), block(b, b)) for a, b in zip(inputs, CHANNELS, strict=True))
        self.across = nn.ModuleList(nn.Conv2d(each, channels, kernel_size=1) for each in CHANNELS[self.first :])
        self.smooth = block(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for stage in self.down:
            x = stage(x)
            maps.append(x)
        joined: Tensor = self.across[-1](maps[-1])
        for lateral, features in zip(reversed(self.across[:-1]), reversed(maps[self.first : -1]), strict=True):
            joined = F.interpolate(joined, scale_factor=2, mode="nearest") + lateral(features)
        smooth: Tensor = self.smooth(joined)
        return smooth


class Detector(nn.Module):
    """For each point of a grid of STRIDE_PX: the score of each class, and the distances to the four sides of its box (Tian et al. 2019, arXiv:1904.01355).

    float (B, 3, H, W) -> a dict: "boxes" (B, points, 4), distances >= 0 to left, top, right, bottom in pixels; "scores", logits (B, points, classes);
    "points" (B, points, 2), x and y in pixels.
    """

    SMALLEST_PX = STEP_PX
    STRIDE_PX = 4

    def __init__(self, *, num_classes: int = 10, channels: int = 48) -> None:
        super().__init__()
        self.pyramid = Pyramid(stride=self.STRIDE_PX, channels=channels)
        self.scores = nn.Sequential(block(channels, channels), nn.Conv2d(channels, num_classes, kernel_size=3, padding=1))
        self.distances = nn.Sequential(block(channels, channels), nn.Conv2d(channels, 4, kernel_size=3, padding=1))
        nn.init.constant_(self.scores[1].bias, -4.6)  # type: ignore[arg-type]  # a score of 1 % at first, since nearly all points see nothing (arXiv:1708.02002)
        nn.init.constant_(self.distances[1].bias, 4.0)  # type: ignore[arg-type]  # half a digit

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.pyramid(x)
        distances = F.relu(self.distances(features)) * self.STRIDE_PX
        points = grid_points(features, (self.STRIDE_PX, self.STRIDE_PX))
        return {
            "boxes": distances.flatten(2).transpose(1, 2),
            "scores": self.scores(features).flatten(2).transpose(1, 2),
            "points": points[None].expand(len(x), -1, -1),
        }


class Segmenter(nn.Module):
    """Scores of each class for each pixel: float (B, 3, H, W) -> logits (B, classes, H, W)."""

    SMALLEST_PX = STEP_PX

    def __init__(self, *, num_classes: int = 2, channels: int = 32) -> None:
        super().__init__()
        self.pyramid = Pyramid(stride=2, channels=channels)
        self.scores = nn.Sequential(block(channels, channels), nn.Conv2d(channels, num_classes, kernel_size=3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scores(self.pyramid(x))  # (B, classes, H / 2, W / 2)
        return F.interpolate(scores, scale_factor=2, mode="bilinear", align_corners=False)
