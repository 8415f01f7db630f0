"""What a page and a Node program read of a bundle: its files, its contract as JSON, and golden cases as plain little-endian arrays."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from edgeport_runtime import Bundle, InputError
from edgeport_runtime.contract import Input, Output

from .golden_sets import GoldenSet, stored_sets

ASSETS = Path(__file__).parent / "assets"
SCRIPT_DTYPES = ("float32", "float64", "uint8", "int8", "uint16", "int16", "int32", "int64", "bool")  # that JavaScript has arrays for
SHARED = ("edgeport.mjs", "detector.mjs")  # assets of the page and of the Node program
ABOUT, GOLDEN = "about.json", "golden.json"
HEIGHT_FIRST = int(PIL.__version__.partition(".")[0]) >= 13  # the order of Pillow's two steps, see `resize` in assets/edgeport.mjs; as on this machine


def script_precisions(bundle: Bundle, precision: str | None) -> list[str]:
    """The variants that go into the folder: the named one, or all but fp16, for which these engines have no kernels. Raises InputError."""
    held = [each.precision for each in bundle.manifest.variants if each.precision != "fp16"]
    if precision is not None and precision not in held:
        raise InputError(f"{bundle.folder} holds no {precision} that runs there: give one of {', '.join(held)} (--precision), or leave it out")
    if not bundle.manifest.contract.takes_one_image:
        raise InputError(f"{bundle.folder} takes tensors, and these folders are for models of one image")
    ends: tuple[Input | Output, ...] = (*bundle.manifest.contract.inputs, *bundle.manifest.contract.outputs)
    if strange := [each.name for each in ends if each.dtype not in SCRIPT_DTYPES]:
        raise InputError(f"{bundle.folder}: JavaScript has no arrays for the dtype of {', '.join(strange)}")
    return held if precision is None else [precision]


def write_script_files(folder: Path, bundle: Bundle, precisions: Sequence[str], assets: Sequence[str], **more: Any) -> None:
    """Models, `about.json`, `golden.json` with its arrays, and the named assets. `more`: further entries of `about.json`."""
    models = {}
    (folder / "models").mkdir()
    for precision in precisions:
        models[precision] = f"models/{precision}.onnx"
        (folder / models[precision]).write_bytes(bundle.read(bundle.variant(precision)))
    auto = bundle.manifest.auto
    about = {
        "name": bundle.manifest.name,
        "contract": bundle.manifest.contract.to_dict(),
        "models": models,
        "precision": auto.precision if auto.precision in models else precisions[0],
        "reason": auto.reason,
        "manifest_sha256": bundle.sha256,
        "height_first": HEIGHT_FIRST,
        **more,
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    (folder / GOLDEN).write_text(json.dumps(_golden(folder, bundle, precisions), indent=1) + "\n", encoding="utf-8")
    for name in assets:
        shutil.copyfile(ASSETS / name, folder / name)


def _golden(folder: Path, bundle: Bundle, precisions: Sequence[str]) -> dict[str, Any]:
    (folder / "golden").mkdir()
    sets: dict[str, dict[str, GoldenSet]] = {}
    for precision in precisions:
        for each in stored_sets(bundle, precision):
            sets.setdefault(each.name, {})[precision] = each
    cases = []
    for name, by_precision in sets.items():
        inputs = [_array(folder, values, name=each) for each, values in next(iter(by_precision.values())).inputs.items()]
        cases.append(
            {"name": name, "inputs": inputs, "expected": {precision: _expected(folder, bundle, precision, each) for precision, each in by_precision.items()}}
        )
    return {"cases": cases}


def _expected(folder: Path, bundle: Bundle, precision: str, golden: GoldenSet) -> list[dict[str, Any]]:
    outputs = zip(bundle.manifest.contract.outputs, golden.expected.items(), golden.tolerance, strict=True)
    return [_array(folder, values, name=name, kind=output.kind, tolerance=asdict(tolerance)) for output, (name, values), tolerance in outputs]


def _array(folder: Path, values: NDArray[Any], **more: Any) -> dict[str, Any]:
    """Written, and described. Names of outputs may hold anything, so the file's is a number."""
    place = f"golden/{len(list((folder / 'golden').iterdir()))}.bin"
    array = np.ascontiguousarray(values)
    (folder / place).write_bytes(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return {"file": place, "dtype": str(array.dtype), "dims": list(array.shape), **more}
