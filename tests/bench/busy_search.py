"""A search beside other programs against a quiet one: the share of integers in their plans, and the plans' times, measured quietly afterwards.

Two loops that compute keep both processors busy while an export searches. Every plan's file is then timed against the quiet one's, pair by pair in the same
processes. A run holds if its share is within 5 points of the quiet one's, and its time within 3 %.

    python tests/bench/busy_search.py [--only NAME …] [--runs 5] [--loops 2]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

POINTS, PERCENT = 5.0, 3.0
IMAGES, BATCH = 32, 16
LOOP = "while True: pass"


def exported(name: str, out: Path) -> float:
    """Make a bundle whose plan is searched. Returns the share of integers, 0..1."""
    from subjects import SUBJECTS, images

    from edgeport_export import ExportOptions, export_bundle, read_plan

    subject = SUBJECTS[name]()
    options = ExportOptions(always_keep_int8=True, sqnr_floor_db=-900.0, max_changed=100.0, benchmark_batch=BATCH, recover="off")
    export_bundle(subject.network, subject.contract, out, name=name, calibration=images(subject, IMAGES, seed=100), options=options, force=True)
    return read_plan(out).integer_share


def file_of(bundle: Path) -> Path:
    from edgeport_runtime import Bundle

    found = Bundle(bundle)
    return bundle / found.variant("int8").file


def main() -> None:
    from edgeport_export.benchmark.runner import PairTimer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["cnn", "attention"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--loops", type=int, default=2)
    given = parser.parse_args()
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            quiet, started = Path(folder) / "quiet", time.monotonic()
            share = exported(name, quiet)
            print(f"{name}: quiet: {100 * share:.1f} % integer, {time.monotonic() - started:.0f} s", flush=True)
            shares, seconds = [], []
            for run in range(given.runs):
                with ExitStack() as stack:
                    for _ in range(given.loops):
                        stack.callback(stack.enter_context(subprocess.Popen([sys.executable, "-c", LOOP])).kill)
                    started = time.monotonic()
                    shares.append(exported(name, Path(folder) / str(run)))
                    seconds.append(time.monotonic() - started)
            with PairTimer(batch=BATCH, rounds=6) as timer:
                times = [timer.compare(file_of(quiet), file_of(Path(folder) / str(run))) for run in range(given.runs)]
            holds = 0
            for found, took, pair in zip(shares, seconds, times, strict=True):
                points, percent = 100 * (found - share), 100 * (pair.second_ms / pair.first_ms - 1)
                holds += abs(points) <= POINTS and percent <= PERCENT
                print(f"  beside {given.loops} loops: {100 * found:.1f} % integer ({points:+.1f} points), {percent:+.1f} % of the time, {took:.0f} s")
            print(f"  {holds} of {given.runs} hold", flush=True)


if __name__ == "__main__":
    main()
