"""edgeport against its peers: `make bench` writes docs/bench.md and docs/bench.svg.

Every engine has a process of its own and one is awake at a time; every round visits every engine, and the medians over rounds are quoted with their
ratios. Pixels to output, uint8 (N, H, W, 3) in. Peers: PyTorch eager, channels-last and compiled; a plain `torch.onnx.export`, dynamic and
fixed-size; plain `quantize_static` with its defaults and with U8 activations, S8 weights per channel; OpenVINO f32, and OpenVINO + NNCF int8, which
live in an environment of their own (`--peers` names its Python; left out, they are not timed). edgeport runs what `load(path, batch=…)` takes for
that batch, and each of its variants beside it; its speed was measured at 16 images when the bundle was made, and its int8 keeps 25 dB from fp32, or
within half a dB as many as plain U8S8 where that has fewer (random weights). All engines let idle threads wait actively, edgeport by latency="lowest";
what its default takes, which leaves the processors alone between calls, is a row and a column of its own.
A fixed matrix product is timed before and after every turn: one in which it took 15 % longer than at its fastest is taken again (`reference_workload.py`).
Calls of under 40 ms are timed again in new processes (a section says how often): what memory a process got decides up to half of the time of the
shortest, and 1 % of the longest.
One of the engines runs the same file as `auto`: what they differ by is what these figures are good for.

    python tests/bench/bench.py [--only NAME …] [--batch 1 16] [--rounds 5] [--peers .venv-peers/bin/python] [--results FILE] [--again]
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from reference_workload import ReferenceWorkload
from report import NNCF, NORMAL, PLAIN_FP32, PLAIN_U8S8, TORCH, table

warnings.filterwarnings("ignore")

CALIBRATION_IMAGES, PEERS_IMAGES = 32, 16
BATCHES = (1, 16)
ROUND_SECONDS = 0.3
SEEN_DB = 0.5  # what plain U8S8 may owe to having been calibrated with some of the images that edgeport holds back
SQNR_FLOOR_DB = 25.0  # that edgeport's int8 keeps, or as near to fp32 as plain U8S8 where that is further: random weights in deep networks
PROCESSES, SHORT_MS = 3, 40.0  # calls as short as this are timed in that many processes each


def prepare(name: str, folder: Path) -> None:
    """Every file that the engines of one network read. Runs in a process of its own."""
    import torch
    from subjects import SUBJECTS, Plain
    from subjects import images as random_images

    from edgeport_export import ExportOptions, export_bundle

    folder.mkdir(parents=True, exist_ok=True)
    subject = SUBJECTS[name]()
    images = random_images(subject, CALIBRATION_IMAGES, seed=100)
    np.save(folder / "images.npy", images)
    module, example = Plain(subject).eval(), torch.from_numpy(images[:2])
    plain = {"dynamic_shapes": ({0: "batch", **({1: "height", 2: "width"} if "height" in subject.contract.axes else {})},)}
    # what a script would do: the size it was traced at is the size it runs at, so adaptive pooling is right there
    for file, more, inputs in (("dynamic", plain, example), ("fixed1", {}, example[:1]), ("fixed16", {}, torch.from_numpy(images[:16]))):
        with _attention_of_four_axes():
            program = torch.onnx.export(module, (inputs,), dynamo=True, verbose=False, input_names=["pixels"], **more)
        program.save(folder / f"{file}.onnx", external_data=False)
    _quantize(folder, images[:PEERS_IMAGES])
    options = ExportOptions(always_keep_int8=True, sqnr_floor_db=floor_db(folder, images), benchmark_batch=max(BATCHES))
    export_bundle(subject.network, subject.contract, folder / "bundle", name=name, calibration=images, options=options, force=True)


def floor_db(folder: Path, images: np.ndarray) -> float:
    """The budget of edgeport's int8. Plain U8S8 is measured on the very images that edgeport will measure itself on: of networks with random weights,
    other images may be 5 dB away."""
    import onnxruntime

    from edgeport_export.quantization.image_roles import HELD_BACK, PROBES
    from edgeport_export.quantization.output_error import sqnr_db

    probes = images[::HELD_BACK][:PROBES]
    exact, rounded = (
        onnxruntime.InferenceSession(folder / f"{file}.onnx", providers=["CPUExecutionProvider"]).run(None, {"pixels": probes})[0]
        for file in ("dynamic", "u8s8")
    )
    return min(SQNR_FLOOR_DB, sqnr_db([exact], [rounded]) - SEEN_DB)


@contextmanager
def _attention_of_four_axes() -> Iterator[None]:
    """torch.onnx.export refuses attention over three axes; a script's author would add the fourth, so the peers get it, and edgeport does not."""
    from torch.nn import functional

    attend = functional.scaled_dot_product_attention

    def with_heads(query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> Any:
        if query.dim() == 4:
            return attend(query, key, value, *rest, **more)
        return attend(query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1), *rest, **more).squeeze(1)

    with mock.patch.object(functional, "scaled_dot_product_attention", with_heads):
        yield


def _quantize(folder: Path, images: np.ndarray) -> None:
    """quantize_static as its manual shows it, with defaults and with the formats that are fast on x86."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"pixels": image[None]} for image in images]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    quant_pre_process(folder / "dynamic.onnx", folder / "prepared.onnx", skip_symbolic_shape=True)
    quantize_static(folder / "prepared.onnx", folder / "s8s8.onnx", Reader())
    formats = {"per_channel": True, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(folder / "prepared.onnx", folder / "u8s8.onnx", Reader(), **formats)


def engines(name: str, folder: Path, batch: int, threads: int, peers: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Engine -> the Python that runs it, and its request."""
    basis = {"subject": name, "images": str(folder / "images.npy"), "batch": batch, "threads": threads, "seconds": ROUND_SECONDS, "precision": ""}

    def request(kind: str, path: str = "", precision: str = "", latency: str = "lowest") -> dict[str, Any]:
        answer = folder / f"{kind}-{Path(path).stem}-{precision}-{latency}-{batch}.npy"
        return {**basis, "kind": kind, "path": str(folder / path) if path else "", "precision": precision, "latency": latency, "answer": str(answer)}

    ours = {label: (sys.executable, request("edgeport", "bundle", precision)) for label, precision in _edgeport(folder, batch, threads).items()}
    ours[NORMAL] = (sys.executable, request("edgeport", "bundle", "auto", "normal"))
    torch = {label: (sys.executable, request("torch", "", mode)) for label, mode in zip(TORCH, ("eager", "channels-last", "compile"), strict=True)}
    files = {PLAIN_FP32[0]: "dynamic", PLAIN_FP32[1]: f"fixed{batch}", "ORT quantize_static default": "s8s8", PLAIN_U8S8: "u8s8"}
    plain = {label: (sys.executable, request("onnxruntime", f"{file}.onnx")) for label, file in files.items() if (folder / f"{file}.onnx").exists()}
    others = {"OpenVINO f32": (peers, request("openvino", "dynamic.onnx")), NNCF: (peers, request("openvino", "dynamic.onnx", "int8"))} if peers else {}
    return {**ours, **torch, **plain, **others}


def _edgeport(folder: Path, batch: int, threads: int) -> dict[str, str]:
    from edgeport_runtime import Bundle, SessionOptions
    from edgeport_runtime.selection import choose, should_split_batch

    bundle = Bundle(folder / "bundle")
    taken, _ = choose(bundle, "cpu", "auto", platform.machine(), batch)
    how = f"{taken}, split batch" if should_split_batch(bundle, SessionOptions(threads=threads), taken, batch) else taken
    return {f"edgeport auto ({how})": "auto", **{f"edgeport {each.precision}": each.precision for each in bundle.manifest.variants}}


def timed(entries: dict[str, tuple[str, dict[str, Any]]], rounds: int, workload: ReferenceWorkload) -> tuple[dict[str, list[float]], dict[str, str], int]:
    """Milliseconds per call of every engine, round by round; the last words of those that did not start; and how many turns were never steady."""
    times, failed, unsteady = _timed_once(entries, rounds, workload)
    if min(statistics.median(each) for each in times.values()) < SHORT_MS:
        for _ in range(PROCESSES - 1):
            more, lost, shaken = _timed_once(entries, rounds, workload)
            times, failed, unsteady = {label: times[label] + more[label] for label in more if label in times}, failed | lost, unsteady + shaken
    return times, failed, unsteady


def _timed_once(entries: dict[str, tuple[str, dict[str, Any]]], rounds: int, workload: ReferenceWorkload) -> tuple[dict[str, list[float]], dict[str, str], int]:
    running: dict[str, subprocess.Popen[str]] = {}
    failed: dict[str, str] = {}
    for label, (python, request) in entries.items():
        command = [python, str(Path(__file__).with_name("engines.py")), json.dumps(request)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = "…"
        while line and line.strip() != "ready":  # libraries print what they like first
            line = process.stdout.readline()  # type: ignore[union-attr]
        if line:
            running[label] = process
        else:
            failed[label] = (process.stderr.read().strip().splitlines() or ["without a word"])[-1]  # type: ignore[union-attr]
    times: dict[str, list[float]] = {label: [] for label in running}
    unsteady = 0
    for _ in range(rounds):
        for label, process in running.items():
            measured, steady = workload.steady(lambda process=process: _turn(process))  # type: ignore[misc]
            times[label].append(measured)
            unsteady += not steady
    for process in running.values():
        process.kill()
        process.wait()
    return times, failed, unsteady


def _turn(process: subprocess.Popen[str]) -> float:
    process.stdin.write("go\n")  # type: ignore[union-attr]
    process.stdin.flush()  # type: ignore[union-attr]
    return float(process.stdout.readline())  # type: ignore[union-attr]


def sqnr_db(entries: dict[str, tuple[str, dict[str, Any]]], labels: Sequence[str]) -> dict[str, float]:
    """How far each engine's output is from edgeport's fp32, in dB of signal over error; None if they are equal."""
    truth = np.load(entries["edgeport fp32"][1]["answer"]).astype(np.float64)
    found = {}
    for label in labels:
        error = float(np.sum(np.square(np.load(entries[label][1]["answer"]).astype(np.float64) - truth)))
        found[label] = 10 * math.log10(float(np.sum(np.square(truth))) / error) if error else None
    return found  # type: ignore[return-value]


def _peers(python: str) -> dict[str, str]:
    code = "import importlib.metadata as m, json; print(json.dumps({p: m.version(p) for p in ('openvino', 'nncf')}))"
    return dict(json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)) if python else {}


def main() -> None:
    from subjects import OF_TIMM, OTHERS, OWN

    from edgeport_export.bundle.environment import processor

    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=[*OWN, *OTHERS, *OF_TIMM])
    parser.add_argument("--batch", nargs="*", type=int, default=sorted(BATCHES, reverse=True))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peers", default="")
    parser.add_argument("--folder", type=Path, default=Path("bench"))
    parser.add_argument("--results", type=Path, default=Path("bench/results.jsonl"))
    parser.add_argument("--table", type=Path, default=Path("docs/bench.md"))
    parser.add_argument("--again", action="store_true", help="Time what --folder holds, and make nothing anew.")
    parser.add_argument("--prepare", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.prepare:
        prepare(given.prepare, given.folder / given.prepare)
        return
    given.results.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in given.results.read_text().splitlines()] if given.results.exists() else []
    workload = ReferenceWorkload()
    for name in given.only:
        left = [batch for batch in given.batch if not any(row["name"] == name and row["batch"] == batch for row in rows)]
        if left and not given.again:
            subprocess.run([sys.executable, __file__, "--prepare", name, "--folder", str(given.folder)], check=True)
        for batch in left:
            entries = engines(name, given.folder / name, batch, given.threads, given.peers)
            times, failed, unsteady = timed(entries, given.rounds, workload)
            distances = sqnr_db(entries, list(times))
            side = {**OWN, **OTHERS}.get(name, 224)
            counts = {"processes": len(next(iter(times.values()))) // given.rounds, "unsteady": unsteady}
            about = {"name": name, "side": side, "batch": batch, "threads": given.threads, "processor": processor(), "peers": _peers(given.peers)}
            rows.append({**about, **counts, "times": times, "sqnr_db": distances, "failed": failed})
            with given.results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            median = {label: round(statistics.median(each), 3) for label, each in times.items()}
            print(name, batch, dict(sorted(median.items(), key=lambda each: each[1])), failed, flush=True)
    given.table.parent.mkdir(parents=True, exist_ok=True)
    given.table.write_text(table(rows, (__doc__ or "").split("\n\n")[1]))
    if given.peers:
        subprocess.run([given.peers, str(Path(__file__).with_name("chart.py")), str(given.results), str(given.table.with_suffix(".svg"))], check=True)


if __name__ == "__main__":
    main()
