"""int8 on pretrained networks and photographs: `make bench-accuracy` writes docs/accuracy.md.

Calibrated with crops of one half of the photographs, judged on crops of the other half, against PyTorch in float32. EfficientNet-Lite0, 1 and 2 have
ImageNet's weights; the photographs are not ImageNet's, and PyTorch itself is often unsure, so agreement is a hard measure. MTCNN's three networks
look for faces; behind each of their convolutions is a PReLU, which OpenVINO joins with it and onnxruntime has no kernel for. Peers: plain
`quantize_static` with U8 activations and S8 weights per channel; OpenVINO + NNCF with its defaults, with accurate bias correction, and with its
preset for mixed ranges. edgeport's rows are the steps of its recovery; `int8` is what a bundle made without options gets.

    python tests/bench/accuracy.py [--only NAME …] [--peers .venv-peers/bin/python] [--folder FOLDER] [--results FILE] [--table FILE]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from bench import ROUND_SECONDS, _peers, timed
from reference_workload import ReferenceWorkload

BATCH, PEERS_IMAGES = 10, 128
CALIBRATION_CROPS, JUDGED_CROPS = 20, 10  # of each photograph
ALL_INTEGER = {"max_changed": 100.0, "sqnr_floor_db": -900.0}
STEPS: Mapping[str, Mapping[str, Any]] = {
    "nearest": {"recover": "off", **ALL_INTEGER},
    "int8": {},
    "thorough": {"recover": "thorough"},
}
NNCF: Mapping[str, Mapping[str, bool]] = {"default": {}, "accurate bias correction": {"accurate": True}, "mixed preset": {"mixed": True}}


def prepare(name: str, folder: Path) -> None:
    """Every file that the engines of one network read. Runs in a process of its own."""
    import torch
    from bench import _quantize
    from real_weights import NETWORKS, crops
    from subjects import Plain, Subject

    from edgeport_export import ExportOptions, export_bundle

    folder.mkdir(parents=True, exist_ok=True)
    made = NETWORKS[name]()
    side = made.contract.pixels.height
    fitted, judged = crops(side, CALIBRATION_CROPS)[0], crops(side, JUDGED_CROPS)[1]
    for file, examples in (("calibration", fitted), ("images", judged)):
        np.save(folder / f"{file}.npy", np.stack([np.asarray(each.source) for each in examples]))
    module = Plain(Subject(name=name, network=made.network, contract=made.contract)).eval()
    images = np.load(folder / "images.npy")
    with torch.no_grad():
        found = [module(torch.from_numpy(images[first : first + BATCH])) for first in range(0, len(images), BATCH)]
    rows = [each if isinstance(each, tuple) else (each,) for each in found]
    np.savez(folder / "expected.npz", *(torch.cat(each).numpy() for each in zip(*rows, strict=True)))
    shapes = ({0: "batch"},)
    program = torch.onnx.export(module, (torch.from_numpy(images[:2]),), dynamo=True, verbose=False, input_names=["pixels"], dynamic_shapes=shapes)
    program.save(folder / "dynamic.onnx", external_data=False)
    _quantize(folder, np.load(folder / "calibration.npy")[:: len(fitted) // PEERS_IMAGES][:PEERS_IMAGES])
    for step, more in STEPS.items():
        options = ExportOptions(always_keep_int8=True, benchmark_batch=BATCH, **more)
        export_bundle(made.network, made.contract, folder / step, name=name, calibration=fitted, options=options, force=True)


def engines(folder: Path, batch: int, threads: int, peers: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Row of the table -> the Python that runs it, and its request."""

    def request(kind: str, path: str, precision: str = "", **more: Any) -> dict[str, Any]:
        stem = f"{kind}-{Path(path).stem}-{precision}-{'-'.join(more.get('nncf', {}))}-{batch}"
        places = {"images": str(folder / "images.npy"), "answer": str(folder / f"{stem}.npy"), "every": str(folder / f"{stem}.npz")}
        basis = {"latency": "lowest", "batch": batch, "threads": threads, "seconds": ROUND_SECONDS, "calibration": str(folder / "calibration.npy")}
        return {**basis, **places, "kind": kind, "path": str(folder / path), "precision": precision, **more}

    ours = {"edgeport fp32": request("edgeport", "int8", "fp32")}
    ours |= {f"edgeport {step}": request("edgeport", step, "int8") for step in STEPS}
    ours |= {"plain U8S8": request("onnxruntime", "u8s8.onnx")}
    entries = {label: (sys.executable, each) for label, each in ours.items()}
    if peers:
        options = {"calibration_images": PEERS_IMAGES}
        others = {f"OpenVINO + NNCF, {label}": request("openvino", "dynamic.onnx", "int8", nncf=dict(each), **options) for label, each in NNCF.items()}
        entries |= {label: (peers, each) for label, each in others.items()}
    return entries


def compared(expected: list[np.ndarray], got: list[np.ndarray], classifies: bool) -> dict[str, Any]:
    """Signal over error of the worst output, and how many of the labels agree."""
    from edgeport_export.quantization.output_error import sqnr_db

    worst = min(sqnr_db([exact], [found]) for exact, found in zip(expected, got, strict=True))
    same = int(np.sum(expected[0].argmax(1) == got[0].argmax(1))) if classifies else None
    return {"sqnr_db": worst, "same": same, "images": len(expected[0])}


def about(folder: Path, step: str) -> dict[str, Any]:
    """What a bundle's manifest says of its int8."""
    manifest = json.loads((folder / step / "manifest.json").read_text())
    plan = next(each["plan"] for each in manifest["variants"] if each.get("plan"))
    return {"integer_share": plan["integer_share"], "auto": manifest["auto"]["precision"], "reason": manifest["auto"]["reason"], "recovery": plan["recovery"]}


def table(rows: list[dict[str, Any]]) -> str:
    from report import packages

    from edgeport_export.quantization.label_changes import share_interval

    lines = ["# int8 on real weights", "", f"Written by `make bench-accuracy`. {packages(rows[0]['peers'])}.", ""]
    lines += [
        (__doc__ or "").split("\n\n")[1],
        "",
        "`nearest` rounds each weight to its nearest step and accepts any distance, so it is integer wherever that was faster; `thorough` is",
        "`--recover thorough`. Where int8 is not taken, its rows are what was refused.",
    ]
    for row in rows:
        fp32 = statistics.median(row["times"]["edgeport fp32"])
        lines += ["", f"## {row['name']}, {row['side']} px", ""]
        lines += [f"{row['images']} photographs judged, batch {BATCH}, {row['threads']} threads, {row['processor']}.", ""]
        lines += ["| | agreement of top-1 (95 %) | SQNR dB | ms per batch | times fp32 | integer share |", "|---|---:|---:|---:|---:|---:|"]
        for label, found in row["found"].items():
            ms = statistics.median(row["times"][label])
            low, high = share_interval(found["same"], found["images"]) if found["same"] is not None else (0.0, 0.0)
            agreement = "" if found["same"] is None else f"{found['same'] / found['images']:.2f} ({low:.2f}..{high:.2f})"
            step = label.removeprefix("edgeport ")
            share = f"{row['plans'][step]['integer_share']:.0%}" if step in row["plans"] else ""
            lines.append(f"| {label} | {agreement} | {found['sqnr_db']:.1f} | {ms:.2f} | {fp32 / ms:.2f} | {share} |")
        lines += ["", "What a bundle made without options says:", "", "```", row["plans"]["int8"]["reason"], "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    from real_weights import FACES, SIDES, UnavailableError, fetched_packages, fetched_photographs

    from edgeport_export.bundle.environment import processor

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[*SIDES, *FACES])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peers", default="")
    parser.add_argument("--folder", type=Path, default=Path("bench/accuracy"))
    parser.add_argument("--results", type=Path, default=Path("bench/accuracy.jsonl"))
    parser.add_argument("--table", type=Path, default=Path("docs/accuracy.md"))
    parser.add_argument("--prepare", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.prepare:
        prepare(given.prepare, given.folder / given.prepare)
        return
    try:
        fetched_packages(), fetched_photographs()
    except UnavailableError as error:
        sys.exit(str(error))
    given.results.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in given.results.read_text().splitlines()] if given.results.exists() else []
    workload = ReferenceWorkload()
    for name in [each for each in given.only if not any(row["name"] == each for row in rows)]:
        folder = given.folder / name
        subprocess.run([sys.executable, __file__, "--prepare", name, "--folder", str(given.folder)], check=True)
        entries = engines(folder, BATCH, given.threads, given.peers)
        times, failed, _ = timed(entries, given.rounds, workload)
        expected = list(np.load(folder / "expected.npz").values())
        found = {label: compared(expected, list(np.load(entries[label][1]["every"]).values()), name in SIDES) for label in times}
        plans = {step: about(folder, step) for step in STEPS}
        made_on = {"threads": given.threads, "processor": processor(), "peers": _peers(given.peers)}
        row = {"name": name, "side": {**SIDES, **FACES}[name], "images": len(expected[0]), **made_on}
        rows.append({**row, "times": times, "found": found, "plans": plans, "failed": failed})
        with given.results.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(
            name,
            {label: (each["same"], round(each["sqnr_db"], 1), round(statistics.median(times[label]), 2)) for label, each in found.items()},
            failed,
            flush=True,
        )
    given.table.write_text(table(rows))


if __name__ == "__main__":
    main()
