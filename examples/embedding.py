"""Features of a network without its head: which image of a folder is most like the first one.

python examples/embedding.py --images photos/ --out bundles/features [--random]
"""

import argparse
from pathlib import Path

import numpy as np
import torchvision
from torch import nn

from edgeport_export import ImageTask, export_bundle, verify
from edgeport_export.network.contracts import pixels_of_weights
from edgeport_runtime import load

WEIGHTS = torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder of images like those that the model will see; int8 is calibrated with them")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the bundle to")
    parser.add_argument("--random", action="store_true", help="random weights, which need no download")
    given = parser.parse_args()
    network = torchvision.models.mobilenet_v3_small(weights=None if given.random else WEIGHTS)
    network.classifier = nn.Identity()
    bundle = export_bundle(network.eval(), ImageTask(task="embedding", pixels=pixels_of_weights(WEIGHTS)), given.out, calibration=given.images)
    print(verify(bundle, network))
    images = sorted(path for path in given.images.rglob("*") if path.is_file())
    vectors = np.stack(load(given.out).batch(images))  # (images, channels)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = unit @ unit[0]
    nearest = max(range(1, len(images)), key=lambda index: alike[index])
    print(f"{images[0].name} is most like {images[nearest].name}: {alike[nearest]:.3f}, of {vectors.shape[1]} features")


if __name__ == "__main__":
    main()
