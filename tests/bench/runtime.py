"""What the runtime costs beside bare onnxruntime, and what it gains from file to label: `make bench-runtime` writes docs/bench-runtime.md.

Two threads, int8 as `load` takes it; what is compared takes turns, call by call in one process or process by process, and medians are quoted.
The networks are those of docs/bench.md, with random weights; photographs are scikit-learn's, cut and varied.

    python tests/bench/runtime.py [--folder bench] [--table docs/bench-runtime.md]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

OWN = {"resnet18": 224, "generator": 128, "attention": 64, "cnn": 64}
PROCESSES, PAIRS = 3, 400
STARTS, FILES, BATCH = 31, 500, 16


def alternating(calls: dict[str, Callable[[], Any]], rounds: int, seconds: float = 8.0) -> dict[str, float]:
    """Milliseconds of each, the median over rounds in which all take their turn; as many rounds as fit, at most `rounds`."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for call in [*calls.values()] * 3:
        call()
    end = time.monotonic() + seconds
    while len(next(iter(spent.values()))) < rounds and time.monotonic() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            spent[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(times) for name, times in spent.items()}


def raw(folder: Path) -> dict[str, Any]:
    """`model.raw` and `session.run` on the same pixels, in sessions opened alike."""
    import onnxruntime as ort

    from edgeport_runtime import load
    from edgeport_runtime.device import session_settings

    found = {}
    for batch in (1, BATCH):
        model = load(folder / "bundle", batch=batch, split_batch=False)
        file = model.bundle.variant(model.precision).file  # type: ignore[union-attr]
        session = ort.InferenceSession(folder / "bundle" / file, session_settings(ort, model.engine.options), providers=["CPUExecutionProvider"])
        pixels = np.load(folder / "images.npy")[:batch]
        outputs = [each.name for each in model.contract.outputs]
        calls = {"bare": lambda s=session, p=pixels, o=outputs: s.run(o, {"pixels": p}), "edgeport": lambda m=model, p=pixels: m.raw(p)}
        found[str(batch)] = alternating(calls, PAIRS)  # type: ignore[arg-type]
    return found


def photo(folder: Path) -> dict[str, float]:
    """One JPEG file to its label, and the parts of that which nobody can leave out."""
    from PIL import Image

    from edgeport_runtime import load
    from edgeport_runtime.images import prepare

    model = load(folder / "bundle")
    path = sorted((folder / "photos").iterdir())[0]
    image = Image.open(path).convert("RGB")
    side = model.contract.pixels.height
    resized = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
    session, outputs = model.engine._shared_session(), [each.name for each in model.contract.outputs]
    assert prepare(path, model.contract.pixels).shape == resized.shape
    calls = {
        "model(file)": lambda: model(path),
        "JPEG decoding": lambda: Image.open(path).convert("RGB").load(),
        "resizing": lambda: image.resize((side, side), Image.Resampling.BILINEAR),
        "onnxruntime": lambda: session.run(outputs, {"pixels": resized[None]}),
    }
    return alternating(calls, PAIRS)


def edgeport_files(folder: Path) -> Callable[[list[Path]], Any]:
    from edgeport_runtime import load

    model = load(folder / "bundle", batch=BATCH, max_batch=BATCH)
    return lambda paths: [each.index for each in model.batch(paths)]  # type: ignore[union-attr]


def decoding_files(folder: Path) -> Callable[[list[Path]], Any]:
    """The floor: the same pixels, and no network."""
    from concurrent.futures import ThreadPoolExecutor

    from edgeport_runtime import Bundle
    from edgeport_runtime.images import prepare

    pixels = Bundle(folder / "bundle").manifest.contract.pixels
    pool = ThreadPoolExecutor(2)
    return lambda paths: [each.shape for each in pool.map(lambda path: prepare(path, pixels), paths)]


def torch_files(folder: Path, *, threaded: bool) -> Callable[[list[Path]], Any]:
    """torchvision's transforms and PyTorch, as its tutorials write it; `threaded`: channels-last, and decoding on two threads ahead of the network."""
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from PIL import Image
    from subjects import SUBJECTS
    from torchvision import transforms

    subject = SUBJECTS["resnet18"]()
    pixels, network = subject.contract.pixels, subject.network.eval()
    torch.set_grad_enabled(False)
    torch.set_num_threads(2)
    steps = [transforms.Resize((pixels.height, pixels.width)), transforms.ToTensor(), transforms.Normalize(pixels.mean, pixels.std)]
    prepared, pool = transforms.Compose(steps), ThreadPoolExecutor(2)
    if threaded:
        network = network.to(memory_format=torch.channels_last)

    def read(path: Path) -> Any:
        return prepared(Image.open(path).convert("RGB"))

    def run(paths: list[Path]) -> list[int]:
        labels: list[int] = []
        tensors = iter(pool.map(read, paths) if threaded else map(read, paths))
        for first in range(0, len(paths), BATCH):
            batch = torch.stack([next(tensors) for _ in paths[first : first + BATCH]])
            batch = batch.contiguous(memory_format=torch.channels_last) if threaded else batch
            labels += network(batch).argmax(1).tolist()
        return labels

    return run


FILES_TO_LABELS: dict[str, Callable[[Path], Callable[[list[Path]], Any]]] = {
    "torchvision + PyTorch eager": lambda folder: torch_files(folder, threaded=False),
    "the same, channels-last, decoding on two threads": lambda folder: torch_files(folder, threaded=True),
    "edgeport int8, `model.batch(paths)`": edgeport_files,
    "decoding and resizing alone, two threads": decoding_files,
}


def files(folder: Path, name: str) -> dict[str, Any]:
    """One engine in this process: 500 files, seconds."""
    paths = sorted((folder / "photos").iterdir())
    run = FILES_TO_LABELS[name](folder)
    run(paths[: 4 * BATCH])
    start = time.perf_counter()
    answers = run(paths)
    return {"seconds": time.perf_counter() - start, "answers": answers if isinstance(answers[0], int) else []}


EDGEPORT_START = "from edgeport_runtime import load\nprint(load('{bundle}')('{photo}').index)"
BARE_START = """import numpy as np
import onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession('{bundle}/{file}', providers=['CPUExecutionProvider'])
image = Image.open('{photo}').convert('RGB').resize(({side}, {side}), Image.Resampling.BILINEAR)
print(session.run(None, {{'pixels': np.asarray(image)[None]}})[0][0].argmax())"""
IMPORT = "import time, numpy, PIL.Image\nstart = time.perf_counter()\nimport edgeport_runtime\nprint((time.perf_counter() - start) * 1e3)"


def starts(folder: Path) -> dict[str, float]:
    """A process that imports, loads and answers once: edgeport and the shortest script without it, in turns. Seconds, and the import alone in ms."""
    from edgeport_runtime import load

    with load(folder / "bundle") as model:
        file, side = model.bundle.variant(model.precision).file, model.contract.pixels.height  # type: ignore[union-attr]
    told = {"bundle": folder / "bundle", "photo": sorted((folder / "photos").iterdir())[0], "file": file, "side": side}
    spent: dict[str, list[float]] = {"edgeport": [], "bare": [], "import_ms": []}
    for _ in range(STARTS):
        for name, code in (("edgeport", EDGEPORT_START), ("bare", BARE_START)):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code.format(**told)], check=True, capture_output=True)
            spent[name].append(time.perf_counter() - start)
        spent["import_ms"].append(float(subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True).stdout))
    return {name: statistics.median(times) for name, times in spent.items()}


def make_photos(folder: Path) -> None:
    """500 JPEG files of 640x480."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for index in range(FILES):
        shown = load_sample_images().images[index % 2]
        top, left = int(generator.integers(0, 60)), int(generator.integers(0, 80))
        varied = Image.fromarray(shown[top : top + 360, left : left + 480]).resize((640, 480), Image.Resampling.BICUBIC)
        varied.save(folder / f"{index:03d}.jpg", quality=90)


def child(part: str, *arguments: str) -> Any:
    """One part of the bench in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--part", part, *arguments], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(folder: Path) -> dict[str, Any]:
    for name in OWN:
        if not (folder / name / "bundle").exists():
            subprocess.run([sys.executable, str(Path(__file__).with_name("bench.py")), "--prepare", name, "--folder", str(folder)], check=True)
    resnet = folder / "resnet18"
    if not (resnet / "photos").exists():
        make_photos(resnet / "photos")
    turns: dict[str, list[Any]] = {name: [] for name in FILES_TO_LABELS}
    for _ in range(PROCESSES):
        for name in FILES_TO_LABELS:
            turns[name].append(child("files", str(resnet), name))
    return {
        "raw": {name: [child("raw", str(folder / name)) for _ in range(PROCESSES)] for name in OWN},
        "photo": [child("photo", str(resnet)) for _ in range(PROCESSES)],
        "starts": child("starts", str(resnet)),
        "files": {name: [each["seconds"] for each in found] for name, found in turns.items()},
        "same_labels": _agreement(turns),
    }


def _agreement(turns: dict[str, list[Any]]) -> float:
    """The share of files for which int8 and PyTorch give one label."""
    names = list(FILES_TO_LABELS)
    first, second = turns[names[0]][0]["answers"], turns[names[2]][0]["answers"]
    return float(np.mean(np.asarray(first) == np.asarray(second)))


def table(found: dict[str, Any]) -> str:
    from report import about_machine

    lines = ["# What the runtime costs", "", f"Written by `make bench-runtime`. {about_machine(2)}", "", (__doc__ or "").split("\n\n")[1], ""]
    lines += [
        "## `model.raw` beside bare `session.run`",
        "",
        "| network | batch | bare, ms | edgeport, ms | more, µs | more |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, processes in found["raw"].items():
        for batch in ("1", str(BATCH)):
            bare, ours = (statistics.median(each[batch][side] for each in processes) for side in ("bare", "edgeport"))
            lines.append(f"| {name} | {batch} | {bare:.3f} | {ours:.3f} | {(ours - bare) * 1e3:.0f} | {ours / bare - 1:.1%} |")
    part = {name: statistics.median(each[name] for each in found["photo"]) for name in found["photo"][0]}
    rest = part["model(file)"] - part["JPEG decoding"] - part["resizing"] - part["onnxruntime"]
    lines += ["", "## One photograph of 640x480, ResNet18 at 224", "", "| part | ms |", "|---|---:|"]
    lines += [f"| {name} | {spent:.2f} |" for name, spent in part.items()]
    lines += [f"| the rest | {rest:.2f}, {rest / part['model(file)']:.1%} |", "", "## A process from its start to its first answer", ""]
    start = found["starts"]
    lines += [
        f"edgeport {start['edgeport']:.3f} s, the shortest script with onnxruntime alone {start['bare']:.3f} s: {start['edgeport'] / start['bare']:.2f} times. "
        f"`import edgeport_runtime` takes {start['import_ms']:.0f} ms after numpy and pillow.",
        "",
        f"## {FILES} JPEG files of 640x480 to labels, ResNet18 at 224, batches of {BATCH}",
        "",
        "| engine | images per second | times eager |",
        "|---|---:|---:|",
    ]
    seconds = {name: statistics.median(each) for name, each in found["files"].items()}
    eager = seconds["torchvision + PyTorch eager"]
    lines += [f"| {name} | {FILES / each:.0f} | {eager / each:.2f} |" for name, each in seconds.items()]
    lines += ["", f"int8 and PyTorch give one label for {found['same_labels']:.1%} of the files (random weights, whose outputs lie close together).", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path("bench"))
    parser.add_argument("--table", type=Path, default=Path("docs/bench-runtime.md"))
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if given.part:
        name, folder, *rest = given.part
        print(json.dumps({"raw": raw, "photo": photo, "starts": starts, "files": files}[name](Path(folder), *rest)))
        return
    found = measure(given.folder)
    (given.folder / "runtime.json").write_text(json.dumps(found, indent=1))
    given.table.write_text(table(found))


if __name__ == "__main__":
    main()
