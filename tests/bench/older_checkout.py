"""Has a change lost anything? The int8 files that an older checkout makes, against those of `make bench`: decibels, and times side by side.

The older checkout exports each network with the images, the budget and the batch of the benchmark. Both files then run in onnxruntime alone, in turns, in
processes of their own, so that the files are compared and not the runtimes. Decibels are from fp32, on images that neither has seen.

    python tests/bench/older_checkout.py OLD [--folder bench] [--only NAME …] [--batch 16 1] [--rounds 5]

OLD is a folder of edgeport's source. `--folder` is what `make bench` filled; what OLD makes is kept there, so that an interrupted run continues.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from bench import BATCHES, ROUND_SECONDS, floor_db, timed
from reference_workload import ReferenceWorkload

UNSEEN, SEED = 32, 500
EXPORT = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from subjects import SUBJECTS
from edgeport_export import ExportOptions, export_bundle
name, folder, floor_db, batch = sys.argv[2], sys.argv[3], float(sys.argv[4]), int(sys.argv[5])
subject, images = SUBJECTS[name](), np.load(folder + "/images.npy")
options = ExportOptions(always_keep_int8=True, sqnr_floor_db=floor_db, benchmark_batch=batch)
export_bundle(subject.network, subject.contract, folder + "/older", name=name, calibration=images, options=options, force=True)
"""


def export_older(checkout: Path, name: str, folder: Path) -> None:
    """Make the older checkout's bundle, unless it is there."""
    if (folder / "older" / "manifest.json").exists():
        return
    packages = [str(checkout.resolve() / package) for package in ("runtime", "models", "export")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(packages)}
    given = [checkout.resolve() / "tests" / "bench", name, folder, floor_db(folder, np.load(folder / "images.npy")), max(BATCHES)]
    subprocess.run([sys.executable, "-c", EXPORT, *map(str, given)], env=environment, check=True)


def int8_file(bundle: Path) -> Path:
    """The one int8 file of a bundle of whatever format."""
    (found,) = bundle.glob("*int8*.onnx")
    return found


def answers(file: Path, images: np.ndarray) -> np.ndarray:
    """A model file's first output."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"pixels": images})[0])


def main() -> None:
    from subjects import SUBJECTS
    from subjects import images as random_images

    from edgeport_export.quantization.output_error import sqnr_db

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("older", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("bench"))
    parser.add_argument("--only", nargs="*", help="Networks, all that --folder holds if left out.")
    parser.add_argument("--batch", nargs="*", type=int, default=sorted(BATCHES, reverse=True))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    workload = ReferenceWorkload()
    for name in given.only or [name for name in SUBJECTS if (given.folder / name / "bundle").exists()]:
        folder = given.folder / name
        export_older(given.older, name, folder)
        files = {"older": int8_file(folder / "older"), "newer": int8_file(folder / "bundle")}
        unseen = random_images(SUBJECTS[name](), UNSEEN, seed=SEED)
        exact = answers(folder / "bundle" / "model.onnx", unseen)
        distances = [sqnr_db([exact], [answers(path, unseen)]) for path in files.values()]
        for batch in given.batch:
            basis = {"subject": name, "kind": "onnxruntime", "images": str(folder / "images.npy"), "batch": batch, "threads": given.threads}
            more: dict[str, Any] = {"seconds": ROUND_SECONDS, "precision": "", "latency": "lowest"}
            entries = {
                label: (sys.executable, {**basis, **more, "path": str(path), "answer": str(folder / f"{label}-{batch}.npy")}) for label, path in files.items()
            }
            times, _, unsteady = timed(entries, given.rounds, workload)
            older, newer = (statistics.median(times[label]) for label in files)
            found = f"{older:.3f} ms at {distances[0]:.1f} dB, then {newer:.3f} ms at {distances[1]:.1f} dB: {newer / older:.3f} of the time"
            print(f"{name}, batch {batch}: {found}" + (f" ({unsteady} turns unsteady)" if unsteady else ""), flush=True)


if __name__ == "__main__":
    main()
