"""Numbers with a meaning: a map of distances, and a named point with a named value, from two small networks trained on scenes with digits.

python examples/maps_and_points.py --out bundles [--scenes 2000]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn
from torch.nn import functional as F

from edgeport_export import ImageTask, export_bundle
from edgeport_models import load_data
from edgeport_models.pyramid import Pyramid
from edgeport_runtime import Contract, Example, Output, Pixels, Range, load
from edgeport_runtime.contract import pixel_input

SIDE_PX, BATCH, FARTHEST_PX = 128, 32, 64.0
PIXELS = Pixels(height=SIDE_PX, width=SIDE_PX, resize="letterbox", mean=(0.5,) * 3, std=(0.5,) * 3)
BATCHES = {"batch": Range(low=1, high=BATCH)}


class Distances(nn.Module):
    """How far the nearest digit is from each pixel: (B, 3, H, W) -> (B, 1, H, W), in pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramid, self.last = Pyramid(stride=2, channels=24), nn.Conv2d(24, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(FARTHEST_PX * self.last(self.pyramid(x)).sigmoid(), scale_factor=2, mode="bilinear", align_corners=False)


class Place(nn.Module):
    """Where the digit is, as shares of width and height, and how high it is: (B, 3, H, W) -> (B, 1, 2) and (B, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramid, self.last = Pyramid(stride=8, channels=32), nn.Conv2d(32, 2, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        where, size = self.last(self.pyramid(x)).unbind(dim=1)
        rows, columns = where.shape[1:]
        attention = where.flatten(1).softmax(dim=1)  # of each position; the mean place and the mean height by it are the answer
        y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
        places = torch.stack([x.flatten(), y.flatten()], dim=1).to(attention.dtype)
        return {"center": (attention @ places)[:, None], "height": (attention * size.flatten(1)).sum(dim=1, keepdim=True) * SIDE_PX}


def learn(network: nn.Module, images: Tensor, truth: Tensor, loss: Callable[[Tensor, Tensor], Tensor], epochs: int = 4) -> nn.Module:
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            loss(network(images[chosen]), truth[chosen]).backward()
            optimizer.step()
    return network.eval()


def distances_of(mask: np.ndarray) -> np.ndarray:
    return distance_transform_edt(mask == 0).clip(0, FARTHEST_PX) if mask.any() else np.full(mask.shape, FARTHEST_PX)


def place_of(boxes: np.ndarray) -> list[float]:
    """Center, as shares, and height of the only box."""
    left, top, right, bottom = boxes[0].tolist()
    return [(left + right) / 2 / SIDE_PX, (top + bottom) / 2 / SIDE_PX, bottom - top]


def place_loss(found: dict[str, Tensor], true: Tensor) -> Tensor:
    return 50 * F.l1_loss(found["center"][:, 0], true[:, :2]) + F.l1_loss(found["height"], true[:, 2:]) / 10


def normalized(images: np.ndarray) -> Tensor:
    return ((torch.from_numpy(images).float() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder for both bundles and their pictures")
    parser.add_argument("--scenes", type=int, default=2000, help="to learn from")
    given = parser.parse_args()
    masks, boxes = (load_data("scenes", truth=truth) for truth in ("mask", "boxes"))
    images = np.stack([each.source for each in masks.train[: given.scenes]])
    seen = normalized(images)
    calibration = [Example(source=each.source) for each in masks.calibration]

    far = torch.from_numpy(np.stack([distances_of(each.truth) for each in masks.train[: given.scenes]])).float()[:, None]
    network = learn(Distances(), seen, far, F.smooth_l1_loss)
    task = ImageTask(task="map", pixels=PIXELS, axes=BATCHES, output_range=(0.0, FARTHEST_PX), unit="px")
    export_bundle(network, task, given.out / "distances", calibration=calibration)

    alone = [each for each in boxes.train if len(each.truth.boxes) == 1][: given.scenes]
    seen = normalized(np.stack([each.source for each in alone]))
    places = torch.tensor([place_of(each.truth.boxes) for each in alone])
    network = learn(Place(), seen, places, place_loss, epochs=8)
    outputs = (
        Output(name="center", dtype="float32", shape=("batch", 1, 2), kind="landmarks", names=("center",), unit="share"),
        Output(name="height", dtype="float32", shape=("batch", 1), kind="tensor", names=("height",), unit="px"),
    )
    given_image = pixel_input(PIXELS)
    fixed = type(given_image)(name="pixels", dtype="uint8", shape=("batch", SIDE_PX, SIDE_PX, 3), pixels=PIXELS)
    export_bundle(network, Contract(task="tensors", inputs=(fixed,), outputs=outputs, axes=BATCHES), given.out / "place", calibration=calibration)

    example = next(each for each in boxes.test if len(each.truth.boxes) == 1)
    scene = Image.fromarray(example.source)
    for name in ("distances", "place"):
        model = load(given.out / name)
        answer = model(scene)
        answer.draw(scene).save(given.out / f"{name}.png")
        print(f"{name}: {model.precision}, {model.reason}; {given.out / name}.png")
    x, y, height = place_of(example.truth.boxes)
    found = [*answer.points["center"], answer.values["height"]]
    print(f"the digit is at {found[0]:.0f}, {found[1]:.0f} and {found[2]:.0f} px high; the truth is {x * SIDE_PX:.0f}, {y * SIDE_PX:.0f} and {height:.0f}")
    mean_error = np.mean([np.abs(load(given.out / "distances")(each.source).at_source() - distances_of(each.truth)).mean() for each in masks.test[:50]])
    print(f"distances are {mean_error:.1f} px off on held-out scenes")


if __name__ == "__main__":
    main()
