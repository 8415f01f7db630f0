"""Every torchvision architecture through the exporter: `make zoo` writes docs/zoo.md.

Random weights that matter: BatchNorm statistics are settled on images, and what is zero at initialization (heads, layer scales)
is drawn at random, so that no error can hide behind a zero. One process per architecture keeps memory flat; results are kept in
a JSON-lines file, so that an interrupted run goes on where it stopped.

    python tests/bench/zoo.py [--only NAME …] [--results FILE] [--table docs/zoo.md]
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LARGEST_PARAMETERS = 150e6
SIDE_PX = 128
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BOUND_PX = {"vit": 224, "maxvit": 224}  # bound to a size by construction
SMALLEST_PX = {"alexnet": 63, "inception_v3": 75, "googlenet": 32, "densenet": 32, "vgg": 32, "squeezenet": 32}


def architectures() -> list[str]:
    """Names of all classification and segmentation builders of torchvision, largest ones left out, cheapest first."""
    from torchvision.models import get_model_weights, list_models

    names = [*list_models(module=__import__("torchvision").models), *list_models(module=__import__("torchvision").models.segmentation)]
    sizes = {name: next(iter(get_model_weights(name))).meta["num_params"] for name in names}
    return sorted((name for name in names if sizes[name] <= LARGEST_PARAMETERS), key=lambda name: sizes[name])


def settled(name: str) -> Any:
    """The network with random weights that matter, in eval mode."""
    import torch
    from torchvision.models import get_model

    torch.manual_seed(0)
    extra: dict[str, Any] = {"weights_backbone": None} if segments(name) else {}  # or torchvision downloads a backbone
    if name in ("googlenet", "inception_v3"):
        extra["init_weights"] = True
    network = get_model(name, weights=None, **extra)
    calm(network)
    side = side_px(name)
    settled_modules(network, side, MEAN, STD, (1.0,) if side in BOUND_PX.values() else (1.0, 0.75, 1.5))
    return network.eval()


def calm(network: Any) -> None:
    """Let the residual branches of MBConv blocks add a third of their size (training starts them smaller too: at zero in Goyal et al. 2017).

    At full size SiLU and the squeeze-and-excitation gate amplify whatever is louder than the statistics, block after block: one image in three
    leaves the 55 blocks of efficientnet_b7 100 to 10,000 times louder than the others, and PyTorch's own logits are then up to 40 % off.
    Nothing can be judged there.
    """
    from torch import nn
    from torchvision.models.efficientnet import FusedMBConv, MBConv

    for module in network.modules():
        if isinstance(module, MBConv | FusedMBConv) and module.use_res_connect:
            last = [each for each in module.modules() if isinstance(each, nn.BatchNorm2d)][-1]
            nn.init.constant_(last.weight, 1 / 3)


def settled_modules(network: Any, side: int, mean: Sequence[float], std: Sequence[float], shares: Sequence[float]) -> None:
    """Draw what is zero at initialization, and settle BatchNorm on eight images at each share of `side`.

    The images are normalized as the contract says: statistics of other pixels make deep networks chaotic, and noise drowns every error.
    """
    import numpy as np
    import torch
    from torch import nn

    from edgeport_export.network.size_sweep import random_image

    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.numel() > 1 and not parameter.any():
                parameter.normal_(0, 0.02)
        for each, value in network.named_parameters():
            if each.endswith(("layer_scale", "gamma")) and float(value.abs().max()) < 1e-3:
                value.uniform_(0.05, 0.2)
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = None  # a plain average over what is seen
    for seed, share in enumerate(shares):
        levels = random_image((8, round(side * share), round(side * share), 3), np.random.default_rng(seed))
        with torch.no_grad():
            network(torch.from_numpy((levels / 255 - np.array(mean)) / np.array(std)).permute(0, 3, 1, 2).float())
    network.eval()


def segments(name: str) -> bool:
    return name.startswith(("fcn", "deeplab", "lraspp"))


def side_px(name: str) -> int:
    return next((side for prefix, side in BOUND_PX.items() if name.startswith(prefix)), SIDE_PX)


def examine(name: str) -> dict[str, Any]:
    """One row: with dynamic height and width, and if that is refused, with a dynamic batch alone."""
    from edgeport_export import ExportError
    from edgeport_export.network.contracts import parse_axes
    from edgeport_runtime import Range

    network = settled(name)
    row: dict[str, Any] = {"name": name, "parameters": sum(p.numel() for p in network.parameters())}
    smallest = next((size for prefix, size in SMALLEST_PX.items() if name.startswith(prefix)), 32)
    sides = Range(low=smallest, high=256)
    batch = {"batch": Range(low=1, high=8)}
    try:
        row |= _exported(name, network, {**batch, "height": sides, "width": sides})
        row |= {"batch": "right", "sides": "right"}
    except ExportError as error:
        row["sides"] = f"refused: {error}"
        narrower = re.search(r"--dynamic (\S*height=\S+?);", str(error))
        for axes in ([parse_axes(narrower[1])] if narrower else []) + [batch]:
            try:
                row |= _exported(name, network, axes)
            except ExportError as again:
                row.setdefault("batch", f"refused: {again}")
                continue
            row["batch"] = "right"
            if "height" in axes:
                row["sides"] = f"right for height={axes['height']}, width={axes['width']}; refused beyond"
            break
    return row


def _exported(name: str, network: Any, axes: dict[str, Any]) -> dict[str, Any]:
    from edgeport_export import ParityError
    from edgeport_export.network.contracts import ImageTask, image_contract
    from edgeport_export.network.preflight import preflight
    from edgeport_export.rewrites.finalize import finalize
    from edgeport_export.tracing.exporter import trace
    from edgeport_export.tracing.shape_guards import sizes_to_try
    from edgeport_export.validation.parity import remedy
    from edgeport_export.validation.sweep import measure_parity
    from edgeport_runtime import Pixels

    side = side_px(name)
    pixels = Pixels(height=side, width=side, mean=MEAN, std=STD)
    contract = image_contract(network, ImageTask(task="segmentation" if segments(name) else "classification", pixels=pixels, axes=axes))
    reference = preflight(network, contract)
    started = time.perf_counter()
    traced = trace(network, contract)
    seconds = time.perf_counter() - started
    model = finalize(traced.model, contract)
    extra = sizes_to_try(traced.guards, contract, lambda sizes: sizes["batch"], 3)  # at most 3 images
    parity = measure_parity(reference, model, sizes=[*_sizes(axes, side), *extra])
    if not parity:
        raise ParityError(remedy(parity, contract, traced.guards) + f"{max(parity.ratio(case) for case in parity.cases):.3g} times PyTorch's own noise")
    return {
        "seconds": seconds,
        "nodes": len(traced.model.graph.node),
        "ratio": max(parity.ratio(case) for case in parity.cases),
        "floor": max(parity.floors.values()),
        **_times(reference, model),
    }


def _sizes(axes: dict[str, Any], side: int) -> list[dict[str, int]]:
    """At least 8 images at different batches, and if the sides are free at odd, non-square, smaller and larger sizes."""
    if "height" not in axes:
        return [{"batch": batch} for batch in (1, 2, 3, 5)]
    low = axes["height"].low
    high = axes["height"].high
    points = [(1, side, side), (2, side + 1, side + 31), (3, max(low, side - 29), side + 8), (1, low, low), (2, low + 1, low + 34), (1, high, 177)]
    return [{name: axes[name].nearest(size) for name, size in zip(("batch", "height", "width"), point, strict=True)} for point in points]


def _times(reference: Any, model: bytes) -> dict[str, float]:
    """fp32 and PyTorch eager at batch 1, turn by turn in one process that rests between them."""
    from statistics import median

    from edgeport_runtime import SessionOptions
    from edgeport_runtime.engine import Engine
    from edgeport_runtime.timing import example_inputs, measure_calls

    engine = Engine(model, reference.contract, SessionOptions(spinning=False))
    inputs = example_inputs(reference.contract, batch=1)
    turns = [
        (measure_calls(lambda: engine.run(inputs), seconds=0.2).median_ms, measure_calls(lambda: reference.run(inputs), seconds=0.2).median_ms)
        for _ in range(3)
    ]
    return {"onnx_ms": median(turn[0] for turn in turns), "torch_ms": median(turn[1] for turn in turns)}


def table(rows: list[dict[str, Any]], total: int) -> str:
    """The results as Markdown, sorted by name."""
    import importlib.metadata
    import platform

    from edgeport_export.bundle.environment import processor

    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("torch", "torchvision", "onnxscript", "onnxruntime"))
    sides = sum(row["sides"].startswith("right") for row in rows)
    batch = sum(row["batch"] == "right" for row in rows)
    lines = [
        "# The zoo: every torchvision classification and segmentation architecture up to 150 M parameters",
        "",
        f"Written by `make zoo`. {versions}, Python {platform.python_version()}, {processor()}.",
        "",
        *([f"Measured so far: {len(rows)} of {total}, the smallest first; `make zoo` goes on where it stopped.", ""] if len(rows) < total else []),
        f"{batch} of {len(rows)} are right with a dynamic batch, {sides} with dynamic height and width too; "
        f"{len(rows) - sides} are refused by name there, or right in a narrower range.",
        "*Right*: within 4 times PyTorch float32's own distance from float64 (root mean square over all inputs, at least 2^-23) at every size,",
        "and each image of a batch gives what it gives alone. *times noise*: the worst such distance;",
        "*noise*: PyTorch's own, as a share of the output's range.",
        "Times are for one image; the ratio is PyTorch eager over fp32.",
        "Weights are random: BatchNorm is settled on images, what is zero at initialization is drawn, and the residual branches of MBConv blocks",
        "(EfficientNet) add a third of their size, without which PyTorch's own float32 is up to 40 % off at their depth.",
        "",
        "| architecture | M parameters | dynamic batch | dynamic height, width | times noise | noise | export s | nodes | fp32 ms | PyTorch ms | ratio |",
        "|---|---:|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda each: each["name"]):
        cells = [row["name"], f"{row['parameters'] / 1e6:.1f}", row["batch"], row["sides"].replace("|", "/")]
        if "nodes" in row:
            cells += [
                f"{row['ratio']:.2f}",
                f"{row['floor']:.1e}",
                f"{row['seconds']:.1f}",
                str(row["nodes"]),
                f"{row['onnx_ms']:.1f}",
                f"{row['torch_ms']:.1f}",
                f"{row['torch_ms'] / row['onnx_ms']:.2f}",
            ]
        lines.append("| " + " | ".join(cells + [""] * (11 - len(cells))) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=Path("zoo.jsonl"))
    parser.add_argument("--table", type=Path, default=Path("docs/zoo.md"))
    given = parser.parse_args()
    if given.one:
        print(json.dumps(examine(given.one)))
        return
    rows = [json.loads(line) for line in given.results.read_text().splitlines()] if given.results.exists() else []
    given.table.parent.mkdir(parents=True, exist_ok=True)
    names = given.only or architectures()
    for name in names:
        if any(row["name"] == name for row in rows):
            continue
        done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name} failed outside the exporter's own errors:\n{done.stderr[-2000:]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        with given.results.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        given.table.write_text(table(rows, len(names)))
        print(f"{name}: sides {rows[-1]['sides'][:150]}, batch {rows[-1]['batch'][:80]}, {rows[-1].get('ratio', 0):.2f} times noise", flush=True)
    given.table.write_text(table(rows, len(names)))


if __name__ == "__main__":
    main()
