"""An export alone, and beside programs that keep every processor busy: how many times as long it takes. Three is the most that is promised.

fp32 of mobilenetv4_conv_small with dynamic sides, random weights; the package imported before PyTorch, and after it.

    python tests/bench/beside_others.py [--rounds 2]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from typing import Any

EXPORT = """
import time, warnings
warnings.filterwarnings("ignore")
import {first}
import timm, torch
from edgeport_export import ExportOptions, ImageTask, export_bundle
from edgeport_runtime import Pixels, Range
torch.manual_seed(0)
network = timm.create_model("mobilenetv4_conv_small", pretrained=False).eval()
sides = Range(low=64, high=320)
task = ImageTask(task="classification", pixels=Pixels(height=224, width=224), axes={{"batch": Range(low=1, high=8), "height": sides, "width": sides}})
start = time.perf_counter()
export_bundle(network, task, "{out}", force=True, options=ExportOptions(precisions=("fp32",)))
print(time.perf_counter() - start)
"""
MOST = 3.0


@contextmanager
def busy_processors() -> Any:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for each in loops:
            each.kill()
            each.wait()


def seconds(first: str, rounds: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        code = EXPORT.format(first=first, out=f"{folder}/bundle")
        runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(rounds)]
    return statistics.median(float(each.stdout.strip().splitlines()[-1]) for each in runs)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    worst = 0.0
    for first in ("edgeport_export", "torch"):
        alone = seconds(first, given.rounds)
        with busy_processors():
            beside = seconds(first, given.rounds)
        print(f"{first} imported first: {alone:.1f} s alone, {beside:.1f} s beside a busy loop on each processor, {beside / alone:.2f} times", flush=True)
        worst = max(worst, beside / alone)
    return 0 if worst <= MOST else 1


if __name__ == "__main__":
    raise SystemExit(main())
