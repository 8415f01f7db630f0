"""Any classifier of timm, with the preprocessing that timm stores beside its weights.

python examples/timm_model.py --model resnet18 --images photos/ --out bundles/resnet18 [--random]
"""

import argparse
from pathlib import Path

import timm

from edgeport_export import ImageTask, export_bundle, verify
from edgeport_runtime import Pixels, Range, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", help="a name that timm.list_models() gives")
    parser.add_argument("--images", type=Path, required=True, help="a folder of images like those that the model will see; int8 is calibrated with them")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the bundle to")
    parser.add_argument("--random", action="store_true", help="random weights, which need no download")
    given = parser.parse_args()
    network = timm.create_model(given.model, pretrained=not given.random).eval()
    config = timm.data.resolve_data_config(model=network)
    _, height, width = config["input_size"]
    pixels = Pixels(
        height=height,
        width=width,
        resize="crop",
        resize_shorter_px=round(min(height, width) / config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
    task = ImageTask(task="classification", pixels=pixels, axes={"batch": Range(low=1, high=16)})
    bundle = export_bundle(network, task, given.out, calibration=given.images)
    print(verify(bundle, network))
    model = load(given.out)
    print(f"auto takes {model.precision}, because {model.reason}")


if __name__ == "__main__":
    main()
