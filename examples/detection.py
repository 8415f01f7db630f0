"""A detector of torchvision: its heads become a bundle, and boxes are drawn on the first images.

python examples/detection.py --images photos/ --out bundles/ssdlite [--random]
"""

import argparse
from pathlib import Path

import torchvision

from edgeport_export import ImageTask, export_bundle, verify
from edgeport_models.detectors import DetectorHeads, detection_head, detector_pixels
from edgeport_runtime import load

WEIGHTS = torchvision.models.detection.SSDLite320_MobileNet_V3_Large_Weights.COCO_V1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder of images like those that the model will see; int8 is calibrated with them")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the bundle to; pictures go beside it")
    parser.add_argument("--random", action="store_true", help="random weights, which need no download")
    given = parser.parse_args()
    weights = {"weights": None, "weights_backbone": None} if given.random else {"weights": WEIGHTS}
    detector = torchvision.models.detection.ssdlite320_mobilenet_v3_large(**weights).eval()
    network = DetectorHeads(detector)  # without the suppression of boxes, which the runtime does
    task = ImageTask(task="detection", pixels=detector_pixels(detector), labels=tuple(WEIGHTS.meta["categories"]), detection=detection_head(detector))
    bundle = export_bundle(network, task, given.out, calibration=given.images)
    print(verify(bundle, network))
    model = load(given.out)
    for image in sorted(path for path in given.images.rglob("*") if path.is_file())[:3]:
        found = model(image)
        picture = given.out.with_name(f"{given.out.name}-{image.stem}.png")
        found.draw(image).save(picture)
        print(f"{image.name}: {', '.join(f'{each.label} {each.score:.2f}' for each in found.at_least(0.3)) or 'nothing'}; {picture}")


if __name__ == "__main__":
    main()
