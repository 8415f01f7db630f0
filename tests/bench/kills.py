"""`make kills`: exports are killed (SIGKILL) at random moments, while another process loads the bundle in a loop.

    python tests/bench/kills.py --kills 200            whole exports of a small network
    python tests/bench/kills.py --kills 60 --writing   the writing alone, of a bundle that is there

After each kill there must be the old bundle or the new one, whole. Every other export goes to an empty place, every other over a bundle (force). Half of
the kills fall anywhere, half into the 30 ms in which files are written and renamed. At the end one export runs to its end, and nothing may be left.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from edgeport_runtime import Bundle, BundleError, load

STORED = Path(__file__).parents[1] / "fixtures" / "format1" / "classifier"
WRITING_S = 0.03
INT8_EVERY = 20  # of so many whole exports two have an int8 variant, which takes longer
Export = Callable[[Path, bool], None]


def copy_export(source: Path) -> Export:
    """The writing of an export, without its network."""
    from edgeport_export.bundle.staging import reserved, staged
    from edgeport_export.scratch import scratch

    def export(out: Path, force: bool) -> None:
        with scratch(), reserved(out, force=force) as place:
            tempfile.mkdtemp()
            announce()
            with staged(place) as folder:
                shutil.copytree(source, folder, dirs_exist_ok=True)

    return export


def whole_export(*, int8: bool) -> Export:
    """A small network, from its tracing to its bundle."""
    import numpy as np
    import torch
    from torch import nn

    from edgeport_export import ExportOptions, export_bundle, pipeline
    from edgeport_runtime import Example, Pixels
    from edgeport_runtime.axes import image_axes
    from edgeport_runtime.contract import classification

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    contract = classification(Pixels(height=16, width=16), ("a", "b", "c"), image_axes(smallest_px=8, largest_px=32, largest_batch=4))
    images = [Example(source=each) for each in np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)]
    real: Any = pipeline.write_contents

    def write(folder: Path, contents: Any) -> None:
        announce()
        real(folder, contents)

    def export(out: Path, force: bool) -> None:
        pipeline.write_contents = write
        options = ExportOptions(always_keep_int8=int8, precisions=("fp32", "int8") if int8 else ("fp32",), search_seconds=0.5)
        export_bundle(network.eval(), contract, out, calibration=images if int8 else None, options=options, force=force)

    return export


ANNOUNCED: list[int] = []  # the pipe that says when files are written


def announce() -> None:
    if ANNOUNCED:
        os.write(ANNOUNCED[0], b"w")


def forked(export: Export, out: Path, force: bool) -> tuple[int, int]:
    """The process that exports, and a pipe on which it says when files are written."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            ANNOUNCED[:] = [theirs]
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            export(out, force)
            status = 0
        os._exit(status)
    os.close(theirs)
    return pid, ours


def finished_s(export: Export, out: Path, force: bool) -> float:
    """How long a whole one takes."""
    begin = time.monotonic()
    pid, pipe = forked(export, out, force)
    status = os.waitpid(pid, 0)[1]
    os.close(pipe)
    if status:
        raise SystemExit(f"an export that nobody killed ended with status {status}")
    return time.monotonic() - begin


def kill(export: Export, out: Path, force: bool, takes_s: float, draw: random.Random) -> bool:
    """At a random moment. Whether the process was still alive."""
    pid, pipe = forked(export, out, force)
    if draw.random() < 0.5:
        os.read(pipe, 1)
        time.sleep(draw.uniform(0, WRITING_S))
    else:
        time.sleep(draw.uniform(0, takes_s))
    os.close(pipe)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def state(out: Path) -> str:
    """The manifest's hash of a whole bundle, or "absent". Raises BundleError for anything else."""
    if not out.exists():
        return "absent"
    bundle = Bundle(out)
    bundle.read_all()
    assert bundle.evidence()
    return bundle.sha256


def load_for_ever(out: Path, counts: Any) -> None:
    """Another process's work: `counts` are loads, and loads that failed."""
    while True:
        try:
            load(out, precision="fp32", threads=1).close()
            counts[0] += 1
        except BundleError as error:
            print(f"a concurrent load met: {error}", file=sys.stderr, flush=True)
            counts[1] += 1


@contextlib.contextmanager
def loading(out: Path) -> Iterator[Any]:
    context = get_context("spawn")
    counts = context.Array("l", [0, 0])
    process = context.Process(target=load_for_ever, args=(out, counts), daemon=True)
    process.start()
    try:
        yield counts
    finally:
        process.kill()
        process.join()


def names(scratch: Path) -> set[str]:
    """What lies there, and among the temporary files."""
    return {str(path.relative_to(scratch)) for path in (*scratch.iterdir(), *(scratch / "tmp").iterdir())}


def run(kills: int, exports: list[Export], seed: int, scratch: Path) -> int:
    draw, faults, killed, new = random.Random(seed), 0, 0, 0
    over, empty = scratch / "over", scratch / "empty"
    takes_s = [finished_s(export, over, True) for export in exports]
    usual = names(scratch) | {"empty"}  # caches of other libraries, which outlive a process on purpose
    with loading(over) as counts:
        for index in range(kills):
            force = index % 2 == 1
            out = over if force else empty
            before = state(out)
            which = int(len(exports) > 1 and index % INT8_EVERY >= INT8_EVERY - 2)
            killed += kill(exports[which], out, force, takes_s[which], draw)
            try:
                after = state(out)
                new += after != before
                if force and after == "absent":
                    raise BundleError("there is no bundle any more")
            except BundleError as error:
                faults += 1
                print(f"kill {index}: {error}", file=sys.stderr, flush=True)
            if not force and out.exists():
                shutil.rmtree(out)
        loads, failed = counts
    for out in (over, empty):
        finished_s(exports[0], out, True)
    left = sorted(names(scratch) - usual)
    took = " or ".join(f"{each:.2f}" for each in takes_s)
    print(f"{kills} exports of {took} s, {killed} killed at work, {new} new bundles, {faults} torn; {loads} loads, {failed} failed; left: {left or 'nothing'}")
    return int(bool(faults or failed or left or not loads))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--writing", action="store_true", help="the writing alone")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeport-kills-") as folder:
        scratch = Path(folder)
        (scratch / "tmp").mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(scratch / "tmp")
        exports = [copy_export(STORED)] if arguments.writing else [whole_export(int8=False), whole_export(int8=True)]
        return run(arguments.kills, exports, arguments.seed, scratch)


if __name__ == "__main__":
    sys.exit(main())
