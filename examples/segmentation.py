"""A segmentation network whose output is a dict, at any size: each pixel's class as a PNG, and as an overlay.

python examples/segmentation.py --images photos/ --out bundles/lraspp [--random]
"""

import argparse
from pathlib import Path

import numpy as np
import torchvision
from torch import Tensor, nn

from edgeport_export import ImageTask, export_bundle, verify
from edgeport_runtime import Pixels, Range, load

WEIGHTS = torchvision.models.segmentation.LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1


class ScoresAlone(nn.Module):
    """Returns the scores (B, classes, H, W), without the auxiliary outputs of training."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)["out"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder of images like those that the model will see; int8 is calibrated with them")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the bundle to")
    parser.add_argument("--random", action="store_true", help="random weights, which need no download")
    given = parser.parse_args()
    weights = {"weights": None, "weights_backbone": None} if given.random else {"weights": WEIGHTS}
    network = ScoresAlone(torchvision.models.segmentation.lraspp_mobilenet_v3_large(**weights)).eval()
    pixels = Pixels(height=256, width=256, resize="stretch", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    side = Range(low=64, high=512)
    task = ImageTask(
        task="segmentation", pixels=pixels, labels=tuple(WEIGHTS.meta["categories"]), axes={"batch": Range(low=1, high=8), "height": side, "width": side}
    )
    bundle = export_bundle(network, task, given.out, calibration=given.images)
    print(verify(bundle, network))
    image = next(path for path in sorted(given.images.rglob("*")) if path.is_file())
    found = load(given.out)(image)
    path = given.out.with_suffix(".png")
    found.to_image().save(path)  # at the photograph's size; its values are the classes
    found.draw(image).save(path.with_name(f"{path.stem}-overlay.png"))
    print(f"{image.name}: {', '.join(found.labels[index] for index in np.unique(found.classes)[:5])}; {path}")


if __name__ == "__main__":
    main()
