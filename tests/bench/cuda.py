"""Whatever a CUDA card can show of edgeport: `make cuda` writes docs/bench-cuda.md.

The GPU tests; golden cases; fp32 (TF32 off) and fp16 against the CPU's fp32 at every size of a sweep; on which provider the nodes run; and ResNet18 at
224, generator, attention network and CNN, pixels in host memory to output in host memory, beside PyTorch eager, channels-last and `torch.compile`.

Each step is a line of --results, and one that is there is left out: a call ends after --seconds, and the next one goes on. No package index is
needed: torch 2.11 or newer, and onnxruntime-gpu on PYTHONPATH if it is not installed.

    python tests/bench/cuda.py prepare [--bundles cuda-bundles]        # on any machine: bundles with fp32 and fp16
    python tests/bench/cuda.py run [--bundles DIR] [--results FILE] [--seconds 110] [--device cuda]
    python tests/bench/cuda.py table [--results FILE] [--table docs/bench-cuda.md]
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
NETWORKS = {"resnet18": 224, "generator": 128, "attention": 64, "cnn": 64}
BATCHES = (1, 16, 64)
PRECISIONS = ("fp32", "fp16")
MODES = ("eager", "channels-last", "compile")
ROUNDS, ROUND_SECONDS = 5, 0.15
SIZES = ((1, 1.0), (2, 0.75), (5, 1.5), (16, 1.0))  # batch, and side as a share of the network's own


def prepare(bundles: Path) -> None:
    """fp16 is traced in half precision, which takes no card."""
    from subjects import own

    from edgeport_export import ExportOptions, export_bundle

    for name in NETWORKS:
        if not (bundles / name / "manifest.json").exists():
            subject = own(name)
            export_bundle(subject.network, subject.contract, bundles / name, name=name, options=ExportOptions(precisions=("fp32", "fp16")))


def steps(bundles: Path, device: str) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Every step by its name, the ones that tell most first."""
    yield "machine", lambda: machine(device)
    yield "tests", lambda: gpu_tests(device)
    for name in NETWORKS:
        for precision in PRECISIONS:
            yield f"parity {name} {precision}", partial(parity, bundles / name, precision, device)
    races = [(batch, name, precision) for batch in BATCHES for name in NETWORKS for precision in PRECISIONS]
    for batch, name, precision in races:
        yield f"race {name} {precision} {batch}", partial(race, bundles / name, precision, batch, device)
        for mode in MODES[:-1]:
            yield f"torch {name} {precision} {batch} {mode}", partial(torch_race, name, precision, batch, mode, device)
    for batch, name, precision in races:  # compiling takes longest
        yield f"torch {name} {precision} {batch} {MODES[-1]}", partial(torch_race, name, precision, batch, MODES[-1], device)


def machine(device: str) -> dict[str, Any]:
    import torch

    from edgeport_runtime.doctor import diagnose

    card = torch.cuda.get_device_name(0) if device == "cuda" else "no card: a dry run"
    diagnosis = diagnose()
    return {"card": card, "torch": torch.__version__, "python": platform.python_version(), **diagnosis.facts, "faults": list(diagnosis.faults)}


def gpu_tests(device: str) -> dict[str, Any]:
    if device != "cuda":
        return {"passed": 0, "skipped": "a dry run"}
    missing = [name for name in ("pytest", "hypothesis") if find_spec(name) is None]
    if missing:
        return {"passed": 0, "skipped": f"{' and '.join(missing)} cannot be imported here"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(root / "tests" / "runtime")], capture_output=True, text=True, cwd=root)
    last = done.stdout.strip().splitlines()[-6:]
    return {"last": last, **({"fault": "; ".join(last)} if done.returncode else {})}


def sized_pixels(contract: Any, batch: int, share: float, seed: int) -> np.ndarray:
    """uint8 (batch, H, W, C), each side within the contract's range."""
    sides = []
    for axis, side in zip(contract.inputs[0].shape[1:3], (contract.pixels.height, contract.pixels.width), strict=True):
        wanted = int(side * share)
        sides.append(axis if isinstance(axis, int) else max(contract.axes[axis].low, min(wanted, contract.axes[axis].high)))
    batch = min(batch, contract.largest_batch)
    return np.random.default_rng(seed).integers(0, 256, (batch, *sides, contract.pixels.channels), dtype=np.uint8)


def parity(bundle: Path, precision: str, device: str) -> dict[str, Any]:
    """Golden cases here, the worst distance from the CPU's fp32 as a share of the output's range, and the nodes of each provider."""
    from edgeport_runtime import load

    with load(bundle, precision="fp32") as exact, load(bundle, device=device, precision=precision) as model:
        report, worst = model.check(), 0.0
        for seed, (batch, share) in enumerate(SIZES):
            pixels = sized_pixels(exact.contract, batch, share, seed)
            for name, expected in exact.raw(pixels).items():
                got, wanted = model.raw(pixels)[name].astype(np.float64), expected.astype(np.float64)
                worst = max(worst, float(np.abs(got - wanted).max() / max(float(np.ptp(wanted)), 1e-9)))
        return {"golden": bool(report), "told": str(report), "worst_of_range": worst, "placement": model.placement()}


def milliseconds(call: Callable[[], Any]) -> float:
    """The median over rounds of each round's median."""
    for _ in range(3):
        call()
    medians = []
    for _ in range(ROUNDS):
        spent, end = [], time.perf_counter() + ROUND_SECONDS
        while time.perf_counter() < end or len(spent) < 3:
            start = time.perf_counter()
            call()
            spent.append((time.perf_counter() - start) * 1e3)
        medians.append(statistics.median(spent))
    return statistics.median(medians)


def race(bundle: Path, precision: str, batch: int, device: str) -> dict[str, Any]:
    """`raw`, host memory to host memory; and from a value on the card to one there."""
    from edgeport_runtime import load
    from edgeport_runtime.installation import onnxruntime

    with load(bundle, device=device, precision=precision, batch=1) as model:
        pixels = sized_pixels(model.contract, batch, 1.0, batch)
        found = {"batch": len(pixels), "ms": milliseconds(lambda: model.raw(pixels))}
        there = onnxruntime().OrtValue.ortvalue_from_numpy(pixels, device, 0)
        return {**found, "ms_on_device": milliseconds(lambda: model.raw_on_device(there))}


def torch_race(name: str, precision: str, batch: int, mode: str, device: str) -> dict[str, Any]:
    """The same network and pixels in PyTorch: uint8 in host memory to float32 in host memory."""
    import torch
    from subjects import own

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    subject = own(name)
    dtype = torch.float16 if precision == "fp16" else torch.float32
    if precision == "fp16" and device == "cpu":
        return {"skipped": "PyTorch's half precision is for cards"}
    network = subject.network.to(device=device, dtype=dtype)
    if mode == "channels-last":
        network = network.to(memory_format=torch.channels_last)
    run = torch.compile(network) if mode == "compile" else network
    pixels = sized_pixels(subject.contract, batch, 1.0, batch)
    mean, std = (torch.tensor(each, device=device, dtype=dtype).reshape(-1, 1, 1) for each in (subject.contract.pixels.mean, subject.contract.pixels.std))

    def call() -> Any:
        with torch.no_grad():
            x = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).to(dtype) / 255
            return run((x - mean) / std).float().cpu()

    return {"batch": len(pixels), "ms": milliseconds(call)}


def run(bundles: Path, results: Path, seconds: float, device: str) -> bool:
    """Every step that is not in `results` yet, until the time is up. True if nothing is left."""
    done = {row["step"] for row in read(results)}
    end = time.monotonic() + seconds
    results.parent.mkdir(parents=True, exist_ok=True)
    for name, step in steps(bundles, device):
        if name in done:
            continue
        if time.monotonic() > end:
            print("out of time: run it again to go on", flush=True)
            return False
        started = time.monotonic()
        try:
            found = step()
        except Exception as error:  # what fails on a card is worth more than what passes
            found = {"fault": f"{type(error).__name__}: {str(error)[:400]}", "where": traceback.format_exc().strip().splitlines()[-3:]}
        row = {"step": name, "seconds": round(time.monotonic() - started, 1), **found}
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    return True


def read(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def table(rows: list[dict[str, Any]]) -> str:
    found = {row["step"]: row for row in rows}
    about = found.get("machine", {})
    packages = f"torch {about.get('torch')}, onnxruntime {about.get('onnxruntime')}"
    lines = ["# On a CUDA card", "", f"Written by `make cuda`: {about.get('card')}; {packages}.", "", (__doc__ or "").split("\n\n")[1], ""]
    lines += ["| network | precision | golden cases | worst distance from the CPU's fp32 | nodes |", "|---|---|---|---:|---|"]
    for name in NETWORKS:
        for precision in PRECISIONS:
            row = found.get(f"parity {name} {precision}", {"fault": "not run"})
            nodes = ", ".join(f"{provider.removesuffix('ExecutionProvider')} {count}" for provider, count in row.get("placement", {}).items())
            cells = [row["fault"]] if "fault" in row else ["pass" if row["golden"] else "FAIL", f"{row['worst_of_range']:.1e}", nodes]
            lines.append(f"| {name} | {precision} | {' | '.join(cells)} |")
    columns = ["edgeport", "edgeport, on the card", *(f"PyTorch {mode}" for mode in MODES)]
    lines += ["", f"| network | precision | batch | {' | '.join(f'{each}, ms' for each in columns)} |", f"|---|---|---:|{'---:|' * len(columns)}"]
    for name in NETWORKS:
        for precision in PRECISIONS:
            for batch in BATCHES:
                ours = found.get(f"race {name} {precision} {batch}", {})
                theirs = [found.get(f"torch {name} {precision} {batch} {mode}", {}) for mode in MODES]
                cells = [*(_ms(ours, key) for key in ("ms", "ms_on_device")), *(_ms(each, "ms") for each in theirs)]
                lines.append(f"| {name} | {precision} | {ours.get('batch', batch)} | {' | '.join(cells)} |")
    faults = [f"- `{row['step']}`: {row['fault']}" for row in rows if "fault" in row]
    return "\n".join([*lines, *(["", "What failed:", "", *faults] if faults else []), ""])


def _ms(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.3f}" if key in row else "failed" if "fault" in row else ""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("prepare", "run", "table"))
    parser.add_argument("--bundles", type=Path, default=Path("cuda-bundles"))
    parser.add_argument("--results", type=Path, default=Path("cuda-results.jsonl"))
    parser.add_argument("--table", type=Path, default=Path("docs/bench-cuda.md"))
    parser.add_argument("--seconds", type=float, default=110)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    given = parser.parse_args()
    if given.action == "prepare":
        prepare(given.bundles)
    elif given.action == "table":
        given.table.write_text(table(read(given.results)))
    elif not run(given.bundles, given.results, given.seconds, given.device):
        return 3
    return 1 if given.action == "run" and any("fault" in row or row.get("golden") is False for row in read(given.results)) else 0


if __name__ == "__main__":
    raise SystemExit(main())
