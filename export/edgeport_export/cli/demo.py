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

from edgeport_export.benchmark.runner import EngineSpec, LatencyStats, benchmark, disturbance
from edgeport_export.errors import ParityError
from edgeport_export.network.reference import TorchReference
from edgeport_export.report.page import Subject, report_page, write_texts
from edgeport_export.sources import load_examples, load_source
from edgeport_export.verification import verify
from edgeport_models import Data, load_data, network
from edgeport_models.datasets import add_noise, require_demo_packages
from edgeport_runtime import Bundle, Example, Quality, load
from edgeport_runtime.decoding import decode
from edgeport_runtime.json_text import strict_json
from edgeport_runtime.scorers import format_metric, psnr_db

from . import console
from .export_command import ExportJob, run_export
from .train_command import TrainingJob, run_training

SHOWN = ("cnn", "resnet18", "attention", "generator")
BATCH = 16
BLURS_PX = np.arange(0.4, 2.51, 0.05)  # sigmas among which the best Gaussian blur is looked for
# A stand-in for a machine without torch: importing it fails, so the runtime proves that it does not need it.
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; sys.modules['onnx'] = None; from edgeport_runtime.cli import main; sys.exit(main(sys.argv[1:]))"


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The demo's findings about one network. `without_torch`: fp32 and int8, as the device measured them on the image files.
    `subject`: what a report tells about it."""

    name: str
    evidence: dict[str, Any]
    bundle: Bundle
    subject: Subject
    without_torch: dict[str, Quality]
    latencies: dict[str, LatencyStats]


def run_demo(out: Path) -> None:
    """Everything, into `out`: checkpoints, bundles, held_out images, and the generator's image. Prints the table. Raises DataError."""
    require_demo_packages("the demo")
    started = time.perf_counter()
    for part in ("checkpoints", "bundles", "held_out"):
        (out / part).mkdir(parents=True, exist_ok=True)
    results = [_one(out, name) for name in SHOWN]
    _table(results)
    blur = best_blur_db(load_data("photos", truth="image"))
    console.say(f"generator: the best Gaussian blur of the same noisy images reaches {blur:.2f} dB")
    console.say(f"image: {_show_generator(out)} (noisy | PyTorch | int8 | clean)")
    console.say(f"bundles: {', '.join(str(result.bundle.folder) for result in results)}")
    write_texts({out / "report.html": report_page([result.subject for result in results])})
    console.say(f"report: {out / 'report.html'}")
    console.say(f"took {time.perf_counter() - started:.0f} s")


def _one(out: Path, name: str) -> DemoResult:
    checkpoint, folder = out / "checkpoints" / f"{name}.safetensors", out / "bundles" / name
    with console.progress_display(f"{name}: training") as progress:
        run_training(TrainingJob(name=name, out=checkpoint, arguments=network(name).untrained, force=True), progress)
    with console.progress_display(f"{name}: exporting") as progress:
        run_export(ExportJob(name=name, checkpoint=checkpoint, out=folder, precision="fp32,int8", force=True), progress)
    source = load_source(checkpoint)
    assert source.data is not None  # it was just trained
    calibration, held_out = load_examples(source.data, source.contract)
    with console.progress_display(f"{name}: verifying") as progress:
        verification = verify(folder, source.network, contract=source.contract, calibration=calibration, stages=True, inputs=held_out, progress=progress)
        if not verification:
            raise ParityError(f"{name} does not verify; {verification}")
        progress("running without torch", 0, 1)
        images = write_images(out / "held_out" / name, source.contract.labels, held_out)
        qualities = {precision: run_without_torch(folder, images, precision) for precision in ("fp32", "int8")}
        progress("timing", 0, 1)
        latencies = _benchmark(folder, checkpoint)
    bundle = Bundle(folder)
    subject = Subject(bundle=bundle, guesses=[held_out], verification=json.loads(strict_json(verification.to_dict())))
    console.say(f"{name}: trained, exported, verified, and run on {len(held_out)} held-out images without torch")
    return DemoResult(name=name, evidence=bundle.evidence(), bundle=bundle, subject=subject, without_torch=qualities, latencies=latencies)


def write_images(folder: Path, labels: Sequence[str], examples: Sequence[Example]) -> Path:
    """Held-out examples as PNG files in the layout that `edgeport-run eval` reads."""
    shutil.rmtree(folder, ignore_errors=True)
    for index, example in enumerate(examples):
        truth = example.truth
        assert truth is not None  # held-out examples have one
        targets = [("input", example.source), ("target", truth)] if not isinstance(truth, int) else [(labels[truth], example.source)]
        for part, image in targets:
            (folder / part).mkdir(parents=True, exist_ok=True)
            decode(image).save(folder / part / f"{index:04}.png")
    return folder


def run_without_torch(bundle: Path, images: Path, precision: str) -> Quality:
    """`check`, then `eval`, in a process of its own where torch and onnx cannot be imported. Raises ParityError if one fails."""
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


def _benchmark(folder: Path, checkpoint: Path) -> dict[str, LatencyStats]:
    bundle = Bundle(folder)
    engines = {variant.precision: EngineSpec(kind="onnx", path=str(folder / variant.file)) for variant in bundle.manifest.variants}
    engines |= {f"torch {mode}": EngineSpec(kind="torch", path=str(checkpoint), mode=mode) for mode in ("eager", "channels_last")}
    return benchmark(engines, batch=BATCH, rounds=5)


def _table(results: Sequence[DemoResult]) -> None:
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
        [_row(result) for result in results],
        f"held-out quality without torch; ms per image in batches of {BATCH}, PyTorch's faster of eager and channels-last",
    )
    if busy := disturbance(stats for result in results for stats in result.latencies.values()):
        console.say(busy)


def _row(result: DemoResult) -> list[str]:
    quality, manifest = result.evidence["quality"], result.bundle.manifest
    changed = quality["changed"]
    torch_ms = min(stats.median_ms for name, stats in result.latencies.items() if name.startswith("torch")) / BATCH
    sizes = {variant.precision: variant.bytes for variant in manifest.variants}
    return [
        result.name,
        format_metric(quality["metric"], quality["values"]["torch"]),
        format_metric(quality["metric"], result.without_torch["fp32"].value),
        format_metric(quality["metric"], result.without_torch["int8"].value),
        f"{changed['fp32']} / {changed['int8']} of {quality['count']}" if quality["metric"] == "accuracy" else "",
        f"{result.evidence['parity']['fp32']['worst']:.1e}",
        f"{sizes['fp32']:,}",
        f"{sizes['int8']:,}",
        f"{torch_ms:.3f}",
        f"{result.latencies['fp32'].median_ms / BATCH:.3f}",
        f"{result.latencies['int8'].median_ms / BATCH:.3f}",
        f"{result.evidence['summary']['variants']['int8']['integer_share']:.0%}",
        manifest.auto.precision,
    ]


def best_blur_db(data: Data) -> float:
    """PSNR of the noisy held-out images after the Gaussian blur that suits them best: what a trained network has to beat."""
    from scipy.ndimage import gaussian_filter  # of the extra `demo`, as the data are

    pairs = [(np.asarray(example.source, dtype=np.float64), np.asarray(example.truth, dtype=np.float64)) for example in data.test]
    elements = sum(clean.size for _, clean in pairs)

    def quality_db(sigma_px: float) -> float:
        return psnr_db(sum(float(np.sum(np.square(gaussian_filter(noisy, (sigma_px, sigma_px, 0)) - clean))) for noisy, clean in pairs), elements)

    return max(quality_db(sigma) for sigma in BLURS_PX)


def _show_generator(out: Path) -> Path:
    """The whole held-out photograph at its own size: noisy | PyTorch | int8 | clean."""
    from sklearn.datasets import load_sample_image

    clean: NDArray[np.uint8] = load_sample_image("flower.jpg")
    noisy = add_noise(clean, np.random.default_rng(0))
    source = load_source(out / "checkpoints" / "generator.safetensors")
    torch_made = TorchReference(source.network, source.contract).pixels(noisy[None])["image"][0]
    int8_made = np.asarray(load(out / "bundles" / "generator", precision="int8")(noisy))
    path = out / "generator.png"
    Image.fromarray(np.concatenate([noisy, torch_made, int8_made, clean], axis=1)).save(path)
    return path
