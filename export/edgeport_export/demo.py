"""All four networks end to end on real data: train, export, verify, run where torch cannot be imported, and one table."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from edgeport_models import Data, load_data, network
from edgeport_models.datasets import add_noise
from edgeport_runtime import Bundle, Quality, load
from edgeport_runtime.evaluate import Example, psnr_db
from edgeport_runtime.images import decode

from . import console
from .errors import ParityError
from .export_job import ExportJob, run_export
from .race import Contender, Heat, disturbance, race
from .source import load_examples, load_source
from .training_job import TrainingJob, run_training
from .verification import verify
from .wrap import Reference

SHOWN = ("cnn", "resnet18", "attention", "generator")
BATCH = 16
BLURS_PX = np.arange(0.4, 2.51, 0.05)  # sigmas among which the best Gaussian blur is looked for
# A stand-in for a machine without torch: importing it fails, so the runtime proves that it does not need it.
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; sys.modules['onnx'] = None; from edgeport_runtime.cli import main; sys.exit(main(sys.argv[1:]))"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the demo found out about one network. `without_torch`: fp32 and int8, as the device measured them on the image files."""

    name: str
    evidence: dict[str, Any]
    bundle: Bundle
    without_torch: dict[str, Quality]
    heats: dict[str, Heat]


def run_demo(out: Path) -> None:
    """Everything, into `out`: checkpoints, bundles, held_out images, and the generator's picture. Prints the table."""
    started = time.perf_counter()
    for part in ("checkpoints", "bundles", "held_out"):
        (out / part).mkdir(parents=True, exist_ok=True)
    outcomes = [_one(out, name) for name in SHOWN]
    _table(outcomes)
    blur = best_blur_db(load_data("photos", pairs=True))
    console.say(f"generator: the best Gaussian blur of the same noisy images reaches {blur:.2f} dB")
    console.say(f"picture: {_picture(out)} (noisy | PyTorch | int8 | clean)")
    console.say(f"bundles: {', '.join(str(outcome.bundle.folder) for outcome in outcomes)}")
    console.say(f"took {time.perf_counter() - started:.0f} s")


def _one(out: Path, name: str) -> Outcome:
    checkpoint, folder = out / "checkpoints" / f"{name}.safetensors", out / "bundles" / name
    with console.watching(f"{name}: training") as watch:
        run_training(TrainingJob(name=name, out=checkpoint, arguments=network(name).untrained, force=True), watch)
    with console.watching(f"{name}: exporting") as watch:
        run_export(ExportJob(name=name, checkpoint=checkpoint, out=folder, precision="fp32,int8", force=True), watch)
    source = load_source(checkpoint)
    _, held_out = load_examples(source.data, source.contract)
    with console.watching(f"{name}: verifying") as watch:
        verification = verify(folder, source, watch)
        if not verification:
            raise ParityError(f"{name} does not verify; {verification}")
        watch("running without torch", 0, 1)
        images = write_images(out / "held_out" / name, source.contract.labels, held_out)
        qualities = {precision: run_without_torch(folder, images, precision) for precision in ("fp32", "int8")}
        watch("timing", 0, 1)
        heats = _race(folder, checkpoint)
    bundle = Bundle(folder)
    console.say(f"{name}: trained, exported, verified, and run on {len(held_out)} held-out images without torch")
    return Outcome(name=name, evidence=bundle.evidence(), bundle=bundle, without_torch=qualities, heats=heats)


def write_images(folder: Path, labels: Sequence[str], examples: Sequence[Example]) -> Path:
    """Held-out examples as PNG files in the layout that `edgeport-run eval` reads."""
    shutil.rmtree(folder, ignore_errors=True)
    for index, example in enumerate(examples):
        truth = example.truth
        targets = [("input", example.source), ("target", truth)] if not isinstance(truth, int) else [(labels[truth], example.source)]
        for part, image in targets:
            (folder / part).mkdir(parents=True, exist_ok=True)
            decode(image).save(folder / part / f"{index:04}.png")
    return folder


def run_without_torch(bundle: Path, images: Path, precision: str) -> Quality:
    """`check`, then `eval`, in a process of its own where torch and onnx cannot be imported. Raises ParityError where one fails."""
    check = _device("check", bundle, "--precision", precision)
    if check.returncode:
        raise ParityError(f"{bundle}: {precision} does not pass its golden cases without torch; {check.stdout}{check.stderr}")
    done = _device("eval", bundle, str(images), "--precision", precision, "--json")
    if done.returncode:
        raise ParityError(f"{bundle}: {precision} cannot be evaluated without torch; {done.stderr}")
    found = json.loads(done.stdout)
    return Quality(metric=found["metric"], value=found["value"], count=found["count"])


def _device(command: str, bundle: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", WITHOUT_TORCH, command, str(bundle), *arguments], capture_output=True, text=True, check=False)


def _race(folder: Path, checkpoint: Path) -> dict[str, Heat]:
    bundle = Bundle(folder)
    lanes = {variant.precision: Contender(kind="onnx", path=str(folder / variant.file)) for variant in bundle.manifest.variants}
    lanes |= {f"torch {mode}": Contender(kind="torch", path=str(checkpoint), mode=mode) for mode in ("eager", "channels_last")}
    return race(lanes, batch=BATCH, rounds=5)


def _table(outcomes: Sequence[Outcome]) -> None:
    columns = [
        "network",
        "PyTorch",
        "fp32",
        "int8",
        "changed fp32 / int8",
        "largest difference fp32",
        "bytes fp32",
        "bytes int8",
        "ms PyTorch",
        "ms fp32",
        "ms int8",
        "integer",
        "auto",
    ]
    console.table(
        columns,
        [_row(outcome) for outcome in outcomes],
        f"held-out quality without torch; ms per image in batches of {BATCH}, PyTorch's faster of eager and channels-last",
    )
    if busy := disturbance(heat for outcome in outcomes for heat in outcome.heats.values()):
        console.say(busy)


def _row(outcome: Outcome) -> list[str]:
    quality, manifest = outcome.evidence["quality"], outcome.bundle.manifest
    changed = quality["changed"]
    torch_ms = min(heat.median_ms for name, heat in outcome.heats.items() if name.startswith("torch")) / BATCH
    sizes = {variant.precision: variant.bytes for variant in manifest.variants}
    return [
        outcome.name,
        console.metric(quality["metric"], quality["values"]["torch"]),
        console.metric(quality["metric"], outcome.without_torch["fp32"].value),
        console.metric(quality["metric"], outcome.without_torch["int8"].value),
        f"{changed['fp32']} / {changed['int8']} of {quality['count']}" if quality["metric"] == "accuracy" else "",
        f"{outcome.evidence['parity']['fp32']['worst']:.1e}",
        f"{sizes['fp32']:,}",
        f"{sizes['int8']:,}",
        f"{torch_ms:.3f}",
        f"{outcome.heats['fp32'].median_ms / BATCH:.3f}",
        f"{outcome.heats['int8'].median_ms / BATCH:.3f}",
        f"{outcome.bundle.variant('int8').plan['integer_share']:.0%}",
        manifest.auto["precision"],
    ]


def best_blur_db(data: Data) -> float:
    """PSNR of the noisy held-out images after the Gaussian blur that suits them best: what a trained network has to beat."""
    pairs = [(np.asarray(example.source, dtype=np.float64), np.asarray(example.truth, dtype=np.float64)) for example in data.test]
    elements = sum(clean.size for _, clean in pairs)

    def quality_db(sigma_px: float) -> float:
        return psnr_db(sum(float(np.sum(np.square(gaussian_filter(noisy, (sigma_px, sigma_px, 0)) - clean))) for noisy, clean in pairs), elements)

    return max(quality_db(sigma) for sigma in BLURS_PX)


def _picture(out: Path) -> Path:
    """The whole held-out photograph at its own size: noisy | PyTorch | int8 | clean."""
    from sklearn.datasets import load_sample_image

    clean: NDArray[np.uint8] = load_sample_image("flower.jpg")
    noisy = add_noise(clean, np.random.default_rng(0))
    source = load_source(out / "checkpoints" / "generator.safetensors")
    torch_made = Reference(source.network, source.contract).pixels(noisy[None])["image"][0]
    int8_made = np.asarray(load(out / "bundles" / "generator", precision="int8")(noisy))
    path = out / "generator.png"
    Image.fromarray(np.concatenate([noisy, torch_made, int8_made, clean], axis=1)).save(path)
    return path
