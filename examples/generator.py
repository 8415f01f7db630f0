"""The generator that comes with edgeport: a denoiser, learned from one photograph, run on another at its own size.

python examples/generator.py --out bundles/denoiser [--epochs 1]
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeport_export import export_bundle, verify
from edgeport_models import load_data, network, train
from edgeport_runtime import evaluate, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the bundle to")
    parser.add_argument("--epochs", type=int, help="the recipe's own if left out")
    given = parser.parse_args()
    entry, data = network("generator"), load_data("photos", truth="image")
    recipe = entry.recipe if given.epochs is None else replace(entry.recipe, epochs=given.epochs)
    contract, module = entry.contract((), entry.side_px), entry.make({})
    train(module, contract, data.train, recipe, lambda text: None)
    bundle = export_bundle(module.eval(), contract, given.out, calibration=data.calibration, held_out=data.test)
    print(verify(bundle, module))
    for precision in (variant.precision for variant in bundle.manifest.variants):
        print(precision, evaluate(load(given.out, precision=precision), data.test))
    image = load(given.out)(np.asarray(data.test[0].source))
    with tempfile.NamedTemporaryFile(suffix=".png", delete=False) as file:
        image.save(file)
    print(f"{image.size[0]}x{image.size[1]} pixels: {file.name}")


if __name__ == "__main__":
    main()
