"""Do two checkouts make the same bundles? For a change of structure, which must change no number.

    python tests/bench/compare_checkouts.py OLD NEW --work FOLDER [--only NAME …]

OLD and NEW are folders of edgeport's source. OLD trains the four demo networks and searches an int8 plan for each network. Then both export
every network with that plan, and the bundles are compared: contracts as values, ONNX files without their metadata, golden cases byte by byte.
Networks: the demo's four (`demo/…`), the benchmark's eight (`bench/…`) and the two of the stored bundles (`stored/…`). What a step has
made stays in FOLDER, so that an interrupted run continues. Exit code 1 if anything differs.
"""

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DEMO = ("cnn", "resnet18", "attention", "generator")
BENCH = ("cnn", "resnet18", "attention", "generator", "mobilenet_v2", "efficientnet_b0", "resnet50", "convnext_tiny")
STORED = ("classifier", "generator")
NAMES = (*(f"stored/{name}" for name in STORED), *(f"demo/{name}" for name in DEMO), *(f"bench/{name}" for name in BENCH))
IMAGES = 16  # that a benchmark network is calibrated with
RENAMED = {f"edgeport.quads.{part}room": f"edgeport.quads.{part}slack" for part in ("", "ragged.")}  # a constant that has another name since


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=NAMES)
    given = parser.parse_args()
    work = given.work.resolve()
    different = False
    for name in given.only:
        searched, old, new = (work / part / name for part in ("searched", "old", "new"))
        checkpoint = work / "checkpoints" / f"{name.partition('/')[2]}.safetensors"
        if name.startswith("demo/") and not checkpoint.exists():
            _in(given.old, "train", name, checkpoint)
        for checkout, out, plan in ((given.old, searched, None), (given.old, old, searched), (given.new, new, searched)):
            if not (out / "manifest.json").exists():
                _in(checkout, "export", name, out, *([plan] if plan else []), checkpoint=checkpoint)
        found = differences(old, new)
        different = different or bool(found)
        print(f"{name}: {'; '.join(found) if found else 'equal'}", flush=True)
    return 1 if different else 0


def _in(checkout: Path, *arguments: Any, checkpoint: Path | None = None) -> None:
    """Run one step of this file with the packages of a checkout."""
    paths = [str(checkout.resolve() / package) for package in ("runtime", "models", "export")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CHECKOUT": str(checkout.resolve()), "CHECKPOINT": str(checkpoint or "")}
    subprocess.run([sys.executable, __file__, "step", *map(str, arguments)], env=environment, check=True)


def differences(old: Path, new: Path) -> list[str]:
    """What differs between two bundles, measurements and metadata left out."""
    left, right = ({**_facts(folder)} for folder in (old, new))
    return [f"{what} differs" for what in dict.fromkeys([*left, *right]) if left.get(what) != right.get(what)]


def _facts(folder: Path) -> dict[str, str]:
    import onnx

    manifest = json.loads((folder / "manifest.json").read_text())
    facts = {"contract": json.dumps(manifest["contract"], sort_keys=True)}
    for path in sorted(folder.glob("*.onnx")):
        model = onnx.load(path)
        del model.metadata_props[:]
        _rename(model.graph)
        facts[path.name] = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    for path in sorted(folder.glob("*/*.pb")):
        facts[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return facts


def _rename(graph: Any) -> None:
    for tensor in graph.initializer:
        tensor.name = RENAMED.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [RENAMED.get(name, name) for name in node.input]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g)


def step(action: str, name: str, out: str, plan: str = "") -> None:
    """Train or export one network. Runs in a process that sees one checkout's packages."""
    kind, _, network = name.partition("/")
    if action == "train" or kind == "demo":
        arguments = ["train", network, "--out", out, *(["--weights", "none"] if network == "resnet18" else [])]
        if action == "export":
            arguments = ["export", network, "--checkpoint", os.environ["CHECKPOINT"], "--out", out, "--precision", "fp32,int8"]
            arguments += ["--plan", plan] if plan else []
        from edgeport_export.cli import main as edgeport

        if edgeport(arguments):
            raise SystemExit(f"{name}: {action} failed")
        return
    (_export_bench if kind == "bench" else _export_stored)(network, Path(out), Path(plan) if plan else None)


def _export_bench(name: str, out: Path, plan: Path | None) -> None:
    sys.path.insert(0, str(Path(os.environ["CHECKOUT"]) / "tests" / "bench"))
    import subjects

    subject = subjects.SUBJECTS[name]()
    images = getattr(subjects, "images", None) or subjects.pictures  # the second one is the name of before
    _export(subject.network, subject.contract, out, plan, _examples(images(subject, IMAGES, seed=100)), batch=16)


def _export_stored(name: str, out: Path, plan: Path | None) -> None:
    path = Path(os.environ["CHECKOUT"]) / "tests" / "fixtures" / "make.py"
    spec = importlib.util.spec_from_file_location("make_fixtures", path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    import torch

    from edgeport_runtime import Pixels, Range
    from edgeport_runtime.contract import classification, image_to_image

    axes = {"batch": Range(low=1, high=8), "height": Range(low=4, high=64), "width": Range(low=4, high=64)}
    if name == "classifier":
        network, contract = made.trained_classifier(), classification(Pixels(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3), made.LABELS, axes)
    else:
        torch.manual_seed(1)
        network, contract = made.TinyGenerator(), image_to_image(Pixels(height=16, width=16, resize="keep", mean=(0.5,) * 3, std=(0.5,) * 3), axes)
    _export(network, contract, out, plan, _examples([each.source for each in made.brightness_examples(30, seed=2)]))


def _examples(images: Sequence[Any]) -> list[Any]:
    example = importlib.import_module("edgeport_runtime")
    if not hasattr(example, "Example"):  # the place of before
        example = importlib.import_module("edgeport_runtime.evaluate")

    return [example.Example(source=image, truth=0) for image in images]


def _export(network: Any, contract: Any, out: Path, plan: Path | None, images: list[Any], batch: int = 8) -> None:
    from edgeport_export import ExportOptions, export_bundle

    names = {each.name for each in dataclasses.fields(ExportOptions)}
    keep = next(name for name in names if name in ("always_keep_int8", "insist"))  # the second one is the name of before
    size = next(name for name in names if name in ("benchmark_batch", "race_batch"))
    options: dict[str, Any] = {keep: True, size: batch, "sqnr_floor_db": 0.0}
    if plan is not None:
        options["plan"] = _plan(plan)
    export_bundle(network, contract, out, name=out.name, calibration=images, options=ExportOptions(**options))


def _plan(folder: Path) -> Any:
    try:
        from edgeport_export.quantization.plan import read_plan
    except ImportError:  # a checkout of before the packages
        from edgeport_export.plan import read_plan
    return read_plan(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["step"]:
        step(*sys.argv[2:])
    else:
        raise SystemExit(main())
