"""What workers on Ray cost and bring on this machine: `edgeport-run predict`, `map` in one process, and `map --ray local`, whole processes.

    python tests/bench/ray_map.py BUNDLE [--python PYTHON] [--counts 1,1000,4000] [--rounds 3]

Images are JPEGs of 256x256 pixels. Prints seconds from start to end, the median of the rounds, in which the three take turns; then what Ray adds to the
start and to each 1,000 images, and from how many images a second machine like this one makes up for that.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
WAYS = {"predict": ["predict"], "map": ["map"], "map --ray local": ["map", "--ray", "local"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--python", default=str(ROOT / ".venv-deploy" / "bin" / "python"), help="one that has Ray")
    parser.add_argument("--counts", default="1,1000,4000", help="of images; the first is the start")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    counts = [int(each) for each in given.counts.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder) / "in", max(counts))
        seconds = race(given, Path(folder), counts)
    print("| images | " + " | ".join(WAYS) + " |\n|---:|" + "---:|" * len(WAYS))
    for count in counts:
        print(f"| {count} | " + " | ".join(f"{seconds[way, count]:.1f} s" for way in WAYS) + " |")
    tell(seconds, counts)


def make_images(folder: Path, count: int) -> None:
    """Smooth noise, which JPEG keeps at some 15 kB."""
    folder.mkdir()
    chance = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(chance.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        coarse.resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{index:06d}.jpg", quality=85)


def race(given: argparse.Namespace, folder: Path, counts: list[int]) -> dict[tuple[str, int], float]:
    """Medians by way and number of images. The ways take turns, so that a slow minute meets all of them."""
    found: dict[tuple[str, int], list[float]] = {(way, count): [] for count in counts for way in WAYS}
    for count in counts:
        part = folder / f"part-{count}"
        part.mkdir()
        for index in range(count):
            (part / f"{index:06d}.jpg").symlink_to(folder / "in" / f"{index:06d}.jpg")
    for number in range(given.rounds):
        for way, count in found:
            out = folder / f"{way.replace(' ', '')}-{count}-{number}{'.jsonl' if way == 'predict' else ''}"
            call = [given.python, "-m", "edgeport_runtime", WAYS[way][0], str(given.bundle), str(folder / f"part-{count}"), "--out", str(out), *WAYS[way][1:]]
            start = time.perf_counter()
            subprocess.run(call, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT / "runtime")})
            found[way, count].append(time.perf_counter() - start)
    return {each: statistics.median(times) for each, times in found.items()}


def tell(seconds: dict[tuple[str, int], float], counts: list[int]) -> None:
    """Start and slope of each way, and where two machines overtake one."""
    per_image = {way: (seconds[way, counts[-1]] - seconds[way, counts[0]]) / (counts[-1] - counts[0]) for way in WAYS}
    ray, alone = "map --ray local", "predict"
    start = seconds[ray, counts[0]] - seconds[alone, counts[0]]
    print(f"\nRay adds {start:.1f} s to the start and {1000 * (per_image[ray] - per_image[alone]):+.2f} s to each 1,000 images.")
    saved = per_image[alone] - per_image[ray] / 2
    print(f"Two machines like this one would be faster from {start / saved:,.0f} images." if saved > 0 else "Two machines would not be faster.")


if __name__ == "__main__":
    main()
