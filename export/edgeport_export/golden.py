"""Golden cases: stored inputs with PyTorch's outputs and each variant's, in the layout of ONNX's own backend tests."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeport_runtime import Contract, Tolerance
from edgeport_runtime.bundle import File, GoldenCase
from edgeport_runtime.check import drift_tolerance
from edgeport_runtime.engine import Arrays, Engine
from edgeport_runtime.evaluate import Example
from edgeport_runtime.images import prepare
from edgeport_runtime.model import batches

from .errors import ExportError
from .parity import FACTOR, Parity
from .sweep import sweep_inputs, sweep_sizes
from .wrap import LEVELS, Reference

DEVICE_FACTOR = 10.0  # times PyTorch's floor: another CPU or a GPU sums in another order, a changed weight shows above it
HALF_FACTOR = 4.0  # times fp16's own error on the host, which sums in float32 what a card may sum in half precision
REAL_IMAGES = 3


def golden_inputs(contract: Contract, examples: Sequence[Example]) -> list[Arrays]:
    """A few real images at the contract's size where there are any, then made-up ones at an odd, non-square size."""
    made = [sweep_inputs(contract, sizes, seed=1000 + index) for index, sizes in enumerate(sweep_sizes(contract)[:4])]
    if not examples:
        return made
    arrays = [prepare(example.source, contract.pixels) for example in examples[:REAL_IMAGES]]
    name = contract.inputs[0].name
    real = [{name: np.stack([arrays[index] for index in group])} for group in batches([array.shape for array in arrays], contract.largest_batch)]
    return [*real, made[-1]]


def write_golden(
    folder: Path, contract: Contract, inputs: Sequence[Arrays], reference: Reference, engines: Mapping[str, Engine], parity: Parity
) -> tuple[GoldenCase, ...]:
    """Write every case under `folder` and return its entries for the manifest. Engines are keyed by precision."""
    truths = [reference.run(arrays) for arrays in inputs]
    answers = {precision: [engine.run(arrays) for arrays in inputs] for precision, engine in engines.items()}
    for precision, given in answers.items():
        if not all(np.isfinite(array).all() for each in given for array in each.values()):
            raise ExportError(f"{precision} gives NaN or infinity on a golden case, so no bundle was written: leave {precision} out with --precision")
    tolerances = {precision: _tolerances(contract, precision, truths, given, parity) for precision, given in answers.items()}
    cases = []
    for index, (arrays, truth) in enumerate(zip(inputs, truths, strict=True)):
        name = f"test_data_set_{index}"
        (folder / name).mkdir()
        cases.append(
            GoldenCase(
                folder=name,
                inputs=tuple(_write(folder, f"{name}/input_{i}.pb", each.name, arrays[each.name]) for i, each in enumerate(contract.inputs)),
                outputs=tuple(_write(folder, f"{name}/output_{i}.pb", each.name, truth[each.name]) for i, each in enumerate(contract.outputs)),
                levels={
                    each.name: _write(folder, f"{name}/levels_{i}.pb", each.name, truth[each.name + LEVELS])
                    for i, each in enumerate(contract.outputs)
                    if each.kind == "pixels"
                },
                host={
                    precision: tuple(
                        _write(folder, f"{name}/{precision}_output_{i}.pb", each.name, given[index][each.name]) for i, each in enumerate(contract.outputs)
                    )
                    for precision, given in answers.items()
                },
                tolerance=tolerances,
            )
        )
    return tuple(cases)


def _tolerances(contract: Contract, precision: str, truths: Sequence[Arrays], answers: Sequence[Arrays], parity: Parity) -> tuple[Tolerance, ...]:
    """One for each output. fp32 follows PyTorch's own floor; a lossy precision may drift by what it already loses."""
    found = []
    for each in contract.outputs:
        compared = each.name + (LEVELS if each.kind == "pixels" else "")
        floor = _significant(DEVICE_FACTOR / FACTOR * parity.allowed(compared) * parity.ranges[compared])
        if precision == "fp32":
            # the device's uint8 is held to PyTorch's value before rounding: half a level is the rounding itself
            found.append(Tolerance(max_abs=floor + (0.5 if each.kind == "pixels" else 0.0)))
            continue
        drift = drift_tolerance(_joined(answers, each.name), _joined(truths, each.name), floor)
        if precision == "fp16":
            drift = Tolerance(max_abs=HALF_FACTOR * drift.max_abs, rms=HALF_FACTOR * drift.rms if drift.rms is not None else None)
        found.append(Tolerance(max_abs=_significant(drift.max_abs), rms=None if drift.rms is None else _significant(drift.rms)))
    return tuple(found)


def _joined(arrays: Sequence[Arrays], name: str) -> NDArray[Any]:
    return np.concatenate([each[name].ravel() for each in arrays])


def _significant(value: float) -> float:
    """Three digits are enough for a tolerance, and keep the manifest readable."""
    return float(f"{value:.3g}")


def _write(folder: Path, file: str, name: str, array: NDArray[Any]) -> File:
    data = onnx.numpy_helper.from_array(np.ascontiguousarray(array), name).SerializeToString(deterministic=True)
    (folder / file).write_bytes(data)
    return File(file=file, sha256=hashlib.sha256(data).hexdigest())
