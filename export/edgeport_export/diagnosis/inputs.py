"""The inputs on which two models are compared: the sweep, images, golden cases, or arrays of the user's own."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeport_export.network.size_sweep import Sizes, sweep_inputs, sweep_sizes
from edgeport_export.sources import holds_truths
from edgeport_runtime import Bundle, Contract, Example, InputError
from edgeport_runtime.bundle import MANIFEST
from edgeport_runtime.decoding import describe
from edgeport_runtime.engine import Arrays
from edgeport_runtime.evaluation import folder_examples, read_examples
from edgeport_runtime.golden_inputs import case_inputs
from edgeport_runtime.images import pixel_batches
from edgeport_runtime.protobuf import read_tensor
from edgeport_runtime.tasks import find_task

from .sides import GraphSide, Side

SWEEP, GOLDEN = "sweep", "golden"
WORDS = f"{SWEEP}, {GOLDEN}, a folder of images, an .npz file or a folder of them"
MOST_IMAGES = 256  # evenly taken from a larger folder
IMAGES_AT_ONCE = 4
SEED = 20_000  # inputs that neither the export nor `verify` used
CASES = "test_data_set_*"  # the folders of ONNX's own backend tests

Given = str | Path | Iterable[Any]


@dataclass(frozen=True, kw_only=True)
class InputCase:
    """The inputs of one run. `name`: for messages. `examples`: the images in it, if these are images."""

    name: str
    arrays: Arrays
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """All inputs of one comparison. `kind`: "sweep", "golden", "images" or "arrays". `left_out`: sizes or images that were not taken, in a sentence."""

    kind: str
    cases: tuple[InputCase, ...]
    left_out: str = ""


def inputs_of(given: Given | None, sides: Sequence[Side], contract: Contract) -> Inputs:
    """`given`: SWEEP, GOLDEN, a folder of images (with their truths if it is laid out so), several images or Examples, an .npz file or a folder of
    them, or mappings from names to arrays.

    None takes the golden cases at the contract's own size if one side is int8 or fp16 and there are any, since these are real images if the bundle was
    calibrated; else the sweep. Raises InputError, ImageError.
    """
    if given is None:
        lossy = any(side.precision != "fp32" for side in sides)
        own = [case for case in (_golden_cases(sides, contract, photographs=True) if lossy else ()) if _is_own_size(case, contract)]
        if own:
            return Inputs(kind=GOLDEN, cases=tuple(own))
        given = SWEEP
    if isinstance(given, str | Path):
        return _named(given, sides, contract)
    if not isinstance(given, Iterable):
        raise InputError(f"expected {WORDS}, several images or mappings from names to arrays, got {type(given).__name__}")
    several = list(given)
    if all(isinstance(each, Mapping) for each in several):
        return Inputs(kind="arrays", cases=tuple(InputCase(name=f"input {index}", arrays=_checked(each, contract)) for index, each in enumerate(several)))
    return _images(read_examples(several), contract, _fixed(sides, contract))


def _named(given: str | Path, sides: Sequence[Side], contract: Contract) -> Inputs:
    if given == SWEEP:
        return _sweep(sides, contract)
    if given == GOLDEN:
        return _golden(sides, contract)
    path = Path(given)
    if not path.exists():
        raise InputError(f"{given}: expected {WORDS}, but there is no such file or folder")
    files = [path] if path.suffix == ".npz" else sorted(path.glob("*.npz")) if path.is_dir() else []
    if files:
        return Inputs(kind="arrays", cases=tuple(InputCase(name=each.name, arrays=_checked(_loaded(each), contract)) for each in files))
    if contract.inputs[0].pixels is None:
        raise InputError(f"{path}: these models take tensors, not images: give an .npz file whose arrays are named {', '.join(_names(contract))}")
    labeled = holds_truths(path, contract) and (contract.labels or find_task(contract.task).truth != "label")
    return _images(folder_examples(contract, path) if labeled else read_examples(path), contract, _fixed(sides, contract))


def _names(contract: Contract) -> list[str]:
    return [each.name for each in contract.inputs]


def _sweep(sides: Sequence[Side], contract: Contract) -> Inputs:
    """The sizes that both sides take; if the files fix others than the sweep has, those."""
    fixed = _fixed(sides, contract)
    wanted = sweep_sizes(contract)
    kept = [sizes for sizes in wanted if all(sizes[axis] == size for axis, size in fixed.items())]
    kept = kept or [{**wanted[0], **fixed}]
    outside = [f"{axis}={size}" for axis, size in fixed.items() if size not in contract.axes[axis]]
    if outside:
        raise InputError(f"one of these models takes {', '.join(outside)} alone, which the other does not promise: there is no size to compare them at")
    cases = [InputCase(name=_told(sizes), arrays=sweep_inputs(contract, sizes, SEED + index)) for index, sizes in enumerate(kept)]
    narrow = f"one of the models takes {_told(fixed)} alone, so {len(wanted) - len(kept)} sizes were left out" if len(kept) < len(wanted) else ""
    return Inputs(kind=SWEEP, cases=tuple(cases), left_out=narrow)


def _fixed(sides: Sequence[Side], contract: Contract) -> Sizes:
    """The only sizes that one of the sides takes."""
    return {axis: size for side in sides for axis, size in side.fixed(contract).items()}


def _told(sizes: Sizes) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items()) or "the only size"


def _golden_cases(sides: Sequence[Side], contract: Contract, *, photographs: bool = False) -> list[InputCase]:
    """Of the first side that has some. `photographs`: without those that a formula makes, a pattern that int8 was never calibrated for."""
    for side in sides:
        cases = [InputCase(name=name, arrays=_checked(arrays, contract)) for name, arrays in _case_folders(side, with_formula=not photographs)]
        if cases:
            return cases
    return []


def _is_own_size(case: InputCase, contract: Contract) -> bool:
    """Whether the images have the contract's own height and width. Tensors have no size of their own, and where each image keeps its own, the smallest that the
    contract promises is no photograph."""
    given = contract.inputs[0]
    if given.pixels is None:
        return True
    height, width = case.arrays[given.name].shape[1:3]
    if given.pixels.resize != "keep":
        return (height, width) == (given.pixels.height, given.pixels.width)
    return any(isinstance(axis, int) or size > contract.axes[axis].low for axis, size in zip(given.shape[1:3], (height, width), strict=True))


def _golden(sides: Sequence[Side], contract: Contract) -> Inputs:
    cases = _golden_cases(sides, contract)
    if cases:
        return Inputs(kind=GOLDEN, cases=tuple(cases))
    raise InputError("neither side has golden cases beside it: compare them on images, on an .npz file, or on the sweep")


def _case_folders(side: Side, *, with_formula: bool) -> Iterator[tuple[str, Arrays]]:
    """Stored inputs of a bundle, or of an ONNX backend test, by the graph's own input names."""
    if not isinstance(side, GraphSide) or side.folder is None:
        return
    if (side.folder / MANIFEST).exists():
        bundle = Bundle(side.folder)
        yield from ((case.folder, case_inputs(bundle, case)) for case in bundle.manifest.golden if with_formula or case.sizes is None)
        return
    for folder in sorted(side.folder.glob(CASES)):
        tensors = [read_tensor(path.read_bytes())[1] for path in sorted(folder.glob("input_*.pb"), key=lambda path: int(path.stem.rpartition("_")[2]))]
        yield folder.name, {end.name: tensor for end, tensor in zip(side.ends.inputs, tensors, strict=False)}


def _loaded(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, AttributeError) as error:  # one array alone has no names
        raise InputError(f"{path}: this cannot be read as an .npz file of named arrays; numpy.savez writes one") from error


def _checked(arrays: Mapping[str, Any], contract: Contract) -> Arrays:
    found = {name: np.asarray(value) for name, value in arrays.items()}
    if len(found) == len(contract.inputs) == 1:  # with one input there is nothing to mistake
        found = {contract.inputs[0].name: next(iter(found.values()))}
    contract.require_arrays(found)
    return found


def _images(examples: Sequence[Example], contract: Contract, fixed: Sizes) -> Inputs:
    """`fixed`: the batch, height and width that one of the models takes alone."""
    taken = [examples[index] for index in np.linspace(0, len(examples) - 1, min(MOST_IMAGES, len(examples))).round().astype(int)]
    cases, batch = [], fixed.get("batch")
    sides = (fixed["height"], fixed["width"]) if {"height", "width"} <= set(fixed) and contract.pixels.resize != "keep" else None
    for indices, pixels, _ in pixel_batches([each.source for each in taken], contract, size_px=sides, prepared_at_once=batch or IMAGES_AT_ONCE):
        if batch not in (None, len(pixels)):
            continue
        here = tuple(taken[index] for index in indices)
        name = describe(here[0].source) + (f" and {len(here) - 1} more" if len(here) > 1 else "")
        cases.append(InputCase(name=name, arrays={contract.inputs[0].name: pixels}, examples=here))
    count = sum(len(case.examples) for case in cases)
    more = f"{count} of {len(examples)} images were taken{', evenly' if len(taken) < len(examples) else ''}" if count < len(examples) else ""
    return Inputs(kind="images", cases=tuple(cases), left_out=more)
