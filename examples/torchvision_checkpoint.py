"""A torchvision classifier with its own preprocessing: weights from a file of yours, or those that torchvision downloads.

python examples/torchvision_checkpoint.py --images photos/ --out bundles/mobilenet [--weights mine.pth --classes 10]
"""

import argparse
from pathlib import Path

import torch
import torchvision

from edgeport_export import ImageTask, export_bundle, verify
from edgeport_export.network.contracts import pixels_of_weights
from edgeport_runtime import Range, load

WEIGHTS = torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder of images like those that the model will see; int8 is calibrated with them")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the bundle to")
    parser.add_argument("--weights", type=Path, help="a state dict of your own")
    parser.add_argument("--classes", type=int, default=1000)
    given = parser.parse_args()
    if given.weights is None:
        network, labels = torchvision.models.mobilenet_v3_small(weights=WEIGHTS), tuple(WEIGHTS.meta["categories"])
    else:
        network, labels = torchvision.models.mobilenet_v3_small(num_classes=given.classes), ()
        network.load_state_dict(torch.load(given.weights, weights_only=True))
    pixels = pixels_of_weights(WEIGHTS)  # resize to 256 px, crop 224x224, ImageNet's mean and std
    side = Range(low=96, high=384)
    task = ImageTask(task="classification", pixels=pixels, labels=labels, axes={"batch": Range(low=1, high=16), "height": side, "width": side})
    bundle = export_bundle(network.eval(), task, given.out, calibration=given.images)
    print(verify(bundle, network))
    model = load(given.out)
    print(f"auto takes {model.precision}, because {model.reason}")
    for path in sorted(given.images.rglob("*"))[:3]:
        if path.is_file():
            print(path.name, model(path, top=3))


if __name__ == "__main__":
    main()
