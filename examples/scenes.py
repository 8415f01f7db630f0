"""A detector or a segmentation network trained on digits that are scattered over photographs, judged by mAP or mean IoU, and drawn.

python examples/scenes.py --network detector --out bundles/detector [--epochs 8]
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from edgeport_export import export_bundle
from edgeport_models import load_data, network, train
from edgeport_runtime import evaluate, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("detector", "segmenter"), default="detector")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the bundle to; pictures go beside it")
    parser.add_argument("--epochs", type=int, help="3 minutes on two cores if left out, and 2 for the segmenter")
    given = parser.parse_args()
    entry = network(given.network)
    data = load_data("scenes", truth=entry.truth)
    contract = entry.contract(data.labels, entry.side_px)
    recipe = entry.recipe if given.epochs is None else replace(entry.recipe, epochs=given.epochs)
    torch.manual_seed(recipe.seed)
    module = entry.make({"num_classes": len(data.labels)})
    train(module, contract, data.train, recipe)
    print(export_bundle(module, contract, given.out, calibration=data.calibration, held_out=data.test))
    model = load(given.out)
    print(f"{model.precision}: {evaluate(model, data.test)}")
    for index, example in enumerate(data.test[:3]):
        model(example.source).draw(example.source).save(given.out.with_name(f"{given.out.name}-{index}.png"))


if __name__ == "__main__":
    main()
