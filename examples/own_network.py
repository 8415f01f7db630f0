"""A network of your own: train it on scikit-learn's digits, export it, verify the bundle, and run it.

    python examples/own_network.py --out bundles/digits

The bundle in examples/digits was made by this script, and examples/seven.png is one of its held-out images.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeport_export import ImageTask, export_bundle, verify
from edgeport_models import load_data
from edgeport_runtime import Pixels, Range, load

PIXELS = Pixels(height=32, width=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class Digits(nn.Module):
    """Three convolutions and a linear layer. (B, 3, H, W) -> logits (B, 10), at any size from 8 px."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 32, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in (16, 24, 32))
        self.head = nn.Linear(32 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norms[0](self.first(x))), 2)
        x = F.relu(self.norms[1](self.second(x)))
        x = F.relu(self.norms[2](self.third(x)))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


def trained(epochs: int) -> Digits:
    """The network after some epochs on 1,277 of the digits."""
    torch.manual_seed(0)
    network, data = Digits(), load_data("digits").train
    images = torch.stack([torch.tensor(list(each.source.tobytes()), dtype=torch.float32).reshape(32, 32, 3).permute(2, 0, 1) for each in data])
    images, labels = (images / 255 - 0.5) / 0.5, torch.tensor([each.truth for each in data])
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            shifted = torch.roll(images[rows], tuple(torch.randint(-2, 3, (2,)).tolist()), (2, 3))
            optimizer.zero_grad()
            F.cross_entropy(network(shifted), labels[rows]).backward()
            optimizer.step()
        schedule.step()
    return network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the bundle to")
    parser.add_argument("--epochs", type=int, default=40)
    given = parser.parse_args()
    network, data = trained(given.epochs), load_data("digits")
    side = Range(low=16, high=128)
    task = ImageTask(task="classification", pixels=PIXELS, labels=data.labels, axes={"batch": Range(low=1, high=64), "height": side, "width": side})
    bundle = export_bundle(network, task, given.out, calibration=data.calibration, held_out=data.test)
    print(verify(bundle, network))
    model = load(given.out)
    print(f"auto takes {model.precision}, because {model.reason}")
    print(model(data.test[0].source))


if __name__ == "__main__":
    main()
