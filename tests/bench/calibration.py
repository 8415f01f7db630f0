"""Peak memory of a calibration: it must not grow with the number of images.

    python tests/bench/calibration.py [--images 10000] [--network resnet18]

The network is traced in another process, so that what is told is calibration's own memory: PyTorch 2.15, torchvision and the exporter hold
1 GB before the first image, whatever is done with them.
Images are JPEG files of 256x256, cut from scikit-learn's two photographs; 200 of them differ, the others are links to these.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import onnx
from PIL import Image
from sklearn.datasets import load_sample_images

from edgeport_export.quantization.calibration import calibrate
from edgeport_runtime import Contract, Example

DISTINCT, SIDE_PX = 200, 256


def traced(name: str) -> tuple[bytes, list[str], Contract]:
    """The network's graph, and which of its values are observed. What this takes brings PyTorch with it."""
    sys.path.insert(0, str(Path(__file__).parent))
    from subjects import SUBJECTS

    from edgeport_export.quantization.qdq import observed_values, preprocess
    from edgeport_export.quantization.targets import find_target
    from edgeport_export.tracing.exporter import trace

    subject = SUBJECTS[name]()
    prepared = preprocess(trace(subject.network, subject.contract).model)
    return prepared.SerializeToString(), observed_values(prepared, find_target(None)), subject.contract


def photographs(folder: Path, count: int) -> list[Example]:
    photos = load_sample_images().images
    generator = np.random.default_rng(0)
    for index in range(count):
        path = folder / f"{index}.jpg"
        if index >= DISTINCT:
            os.link(folder / f"{index % DISTINCT}.jpg", path)
            continue
        photo = photos[index % len(photos)]
        top, left = (int(generator.integers(0, size - SIDE_PX)) for size in photo.shape[:2])
        Image.fromarray(photo[top : top + SIDE_PX, left : left + SIDE_PX]).save(path)
    return [Example(source=folder / f"{index}.jpg", truth=0) for index in range(count)]


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--network", default="resnet18", help="a network of `make bench`")
    asked = parser.parse_args()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        graph, values, contract = other.submit(traced, asked.network).result()
    print(f"before: {peak_mb():,.0f} MB, with the network's graph in memory; PyTorch {'too' if 'torch' in sys.modules else 'not'}")
    done, started = 0, time.monotonic()

    def step(more: int) -> None:
        nonlocal done
        done += more
        if done in (16, 128, 1024) or done == asked.images:
            print(f"after {done:,} images: {peak_mb():,.0f} MB, {time.monotonic() - started:.0f} s", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        calibrate(onnx.load_from_string(graph), values, contract, photographs(Path(folder), asked.images), step)


if __name__ == "__main__":
    main()
