"""Noise, and what hides in it, on some fifty networks: `make noise` writes docs/noise.md.

For each network of torchvision and timm, at random weights: PyTorch's own distance from float64, what the last bit of the weights moves, and the
distance of edgeport's fp32 from float64, at eight images each. Then the median weight of six layers is changed by 1 %, one after the other. Each network
is also exported to a bundle and verified, since a sound export must pass. Results are kept in a JSON-lines file, so that an interrupted run goes on.

    python tests/bench/noise.py [--only NAME …] [--results FILE] [--table docs/noise.md]
"""

import argparse
import copy
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeport_export import ImageTask, export_bundle, image_contract, verify
from edgeport_export.model_libraries import library_model
from edgeport_export.network.reference import TorchReference
from edgeport_export.network.size_sweep import random_image
from edgeport_export.options import ExportOptions
from edgeport_export.validation.last_bits import last_bit_noise
from edgeport_export.validation.parity import FACTOR, LEAST_FLOOR
from edgeport_runtime import Pixels, load

TORCHVISION = """resnet18 resnet34 resnet50 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large efficientnet_b0 efficientnet_b1 efficientnet_v2_s
regnet_y_400mf regnet_x_400mf regnet_y_800mf mnasnet0_5 mnasnet1_0 shufflenet_v2_x0_5 shufflenet_v2_x1_0 squeezenet1_1 vgg11 alexnet
convnext_tiny swin_t vit_b_32"""
TIMM = """efficientnet_lite0 mobilenetv4_conv_small ghostnet_100 repvgg_a0 hardcorenas_a fbnetc_100 mixnet_s levit_128s edgenext_xx_small
poolformer_s12 tinynet_a semnasnet_100 dla34 skresnet18 selecsls42b resnest14d vit_tiny_patch16_224 deit_tiny_patch16_224 pit_ti_224
lcnet_050 rexnet_100 regnetz_005 cspresnet50"""
NAMES = [f"torchvision:{name}" for name in TORCHVISION.split()] + [f"timm:{name}" for name in TIMM.split()]
BOUND_TO_224 = ("vit_", "deit", "pit_", "swin", "levit", "alexnet")
SIDE_PX, CLASSES, IMAGES, LAYERS, FAULT_IMAGES = 96, 10, 8, 6, 3
CHANGE = 1.01


def measured(name: str) -> dict[str, Any]:
    """All figures of one network."""
    network, _ = library_model(name, classes=CLASSES, download=False)
    for each in network.modules():
        if isinstance(each, nn.Linear) and not each.weight.any():
            nn.init.normal_(each.weight, std=0.02)  # a head that is zero would hide everything
    side = 224 if name.partition(":")[2].startswith(BOUND_TO_224) else SIDE_PX
    pixels = Pixels(height=side, width=side, mean=(0.5,) * 3, std=(0.25,) * 3)
    contract = image_contract(network, ImageTask(task="classification", pixels=pixels))
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_bundle(network, contract, Path(folder) / "bundle", options=ExportOptions(precisions=("fp32",)))
        found = verify(bundle, network)
        run = load(bundle.folder).raw
        reference = TorchReference(network, contract)
        generator = np.random.default_rng(0)
        images = [{"pixels": random_image((1, side, side, 3), generator)} for _ in range(IMAGES)]
        exact = [reference.double.run(each)["logits"] for each in images]
        extents = [max(float(np.ptp(each)), float(np.abs(each).max())) for each in exact]

        def distances(answers: list[Any]) -> list[float]:
            return [float(np.abs(a - e).max()) / extent for a, e, extent in zip(answers, exact, extents, strict=False)]

        own = distances([reference.run(each)["logits"] for each in images])
        shipped = distances([run(each)["logits"] for each in images])
    noise = [each["logits"] / extent for each, extent in zip(last_bit_noise(reference, images), extents, strict=True)]
    floor = max(rms(own), LEAST_FLOOR)
    return {
        "name": name,
        "verified": bool(found),
        "torch": rms(own),
        "last_bit": rms(noise),
        "over_torch": max(shipped) / floor,
        "over_both": max(error / max(floor, here) for error, here in zip(shipped, noise, strict=True)),
        "faults": faults(reference, images[:FAULT_IMAGES], distances, floor, max(noise[:FAULT_IMAGES])),
        "seconds": round(time.monotonic() - start, 1),
    }


def faults(reference: TorchReference, images: list[Any], distances: Any, floor: float, noise: float) -> list[float]:
    """What one median weight off by 1 % moves in each of some layers, in float64, over the larger of both floors."""
    network = copy.deepcopy(reference.double)
    weights = [each for each in network.network.parameters() if each.dim() > 1]
    moved = []
    with torch.no_grad():
        for weight in (weights[index] for index in np.linspace(0, len(weights) - 1, LAYERS).round().astype(int)):
            flat = weight.data.view(-1)
            place = int(flat.abs().argsort()[len(flat) // 2])
            before = flat[place].clone()
            flat[place] *= CHANGE
            moved.append(max(distances([network.run(each)["logits"] for each in images])) / max(floor, noise))
            flat[place] = before
    return moved


def rms(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def table(rows: list[dict[str, Any]]) -> str:
    ratios = sorted(row["last_bit"] / max(row["torch"], LEAST_FLOOR) for row in rows)
    seen = [sum(each > FACTOR for each in row["faults"]) for row in rows]
    lines = [
        "# Noise, and what hides in it",
        "",
        f"Written by `make noise`. {len(rows)} networks of torchvision and timm at random weights, {IMAGES} images each.",
        "",
        f"{sum(row['verified'] for row in rows)} of {len(rows)} exports pass `verify`.",
        f"What the last bit of the weights moves is {ratios[0]:.2g} to {ratios[-1]:.2g} times PyTorch's own distance from float64,",
        f"{ratios[len(ratios) // 2]:.2g} in the middle.",
        f"The largest distance of fp32 from float64 is {max(row['over_torch'] for row in rows):.2f} times PyTorch's, and",
        f"{max(row['over_both'] for row in rows):.2f} times the larger of both; {FACTOR:g} times are allowed.",
        f"One median weight off by 1 % shows above that in {sum(seen)} of {LAYERS * len(rows)} layers. So outputs alone cannot find it, and `verify` makes the",
        "files again.",
        "",
        "*PyTorch*: root mean square of its distance over the output's range. *last bit*: the same for the float64 network whose weights",
        "move by their last bit.",
        "*fp32*: the largest distance, over PyTorch's and over the larger of both. *faults seen*: of six layers.",
        "",
        "| network | PyTorch | last bit | fp32 over PyTorch | over both | faults seen | verified |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        figures = f"{row['torch']:.1e} | {row['last_bit']:.1e} | {row['over_torch']:.2f} | {row['over_both']:.2f}"
        lines.append(f"| {row['name']} | {figures} | {sum(each > FACTOR for each in row['faults'])} of {LAYERS} | {'yes' if row['verified'] else 'no'} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--results", type=Path, default=Path("noise.jsonl"))
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    done = [json.loads(line) for line in arguments.results.read_text().splitlines()] if arguments.results.exists() else []
    for name in arguments.only or NAMES:
        if name in {row["name"] for row in done}:
            continue
        row = measured(name)
        print(row, flush=True)
        done.append(row)
        with arguments.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
    if arguments.table is not None:
        arguments.table.write_text(table(done))
    return 0 if all(row["verified"] for row in done) else 1


if __name__ == "__main__":
    sys.exit(main())
