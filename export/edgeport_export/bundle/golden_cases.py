"""Golden cases: stored inputs with PyTorch's outputs and each variant's, in the layout of ONNX's own backend tests."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeport_export.errors import ExportError
from edgeport_export.network.reference import TorchReference
from edgeport_export.network.size_sweep import Sizes, edge_sizes, measured_cost, sweep_inputs, sweep_sizes
from edgeport_export.rewrites.names import levels_name
from edgeport_export.validation.parity import FACTOR, Parity
from edgeport_runtime import Contract, Example
from edgeport_runtime.check import drift_tolerance
from edgeport_runtime.engine import Arrays, Engine
from edgeport_runtime.golden_inputs import formula_inputs, sampled
from edgeport_runtime.images import pixel_batches
from edgeport_runtime.manifest import File, GoldenCase, Tolerance

DEVICE_FACTOR = 10.0  # times PyTorch's floor: another CPU or a GPU sums in another order, and a changed weight shows above it
HALF_FACTOR = 4.0  # times fp16's own error on the host, which sums in float32 what a card may sum in half precision
REAL_IMAGES = 3
SAMPLED = 4096  # values at most of an output at a large size
MADE_UP = 4  # inputs without real images
SUM_OF_PROBABILITIES = 1e-3  # how far it may be from 1
MOST_CLIPPED = 0.25  # of an image's values at black or white: photographs have fewer


@dataclass(frozen=True, kw_only=True)
class GoldenInput:
    """The arrays of one case. `sizes`: of the axes, if the arrays are made by the formula and are not stored. `is_edge`: whether they are at an edge of the
    declared ranges."""

    arrays: Arrays
    sizes: Sizes | None = None
    is_edge: bool = False


@dataclass(frozen=True, kw_only=True)
class GoldenAnswers:
    """What every case gave. `inputs`, `truths`: inputs and PyTorch's outputs, for each case. `host`: precision -> outputs for each case.

    `tolerance`: for each case precision -> one for each output.
    """

    contract: Contract
    inputs: Sequence[GoldenInput]
    truths: Sequence[Arrays]
    host: Mapping[str, Sequence[Arrays]]
    tolerance: Sequence[Mapping[str, tuple[Tolerance, ...]]]

    @property
    def _ordinary(self) -> list[Arrays]:
        """What PyTorch gave for inputs that are images, and not a pattern."""
        patterns = {index for index, each in enumerate(self.inputs) if each.sizes is not None}
        return [truth for index, truth in enumerate(self.truths) if index not in patterns]

    @property
    def clipped_share(self) -> float:
        """The share of an image's values, over all cases, that the network gives at or beyond the ends of its range; 0 without such an output."""
        levels = [truth[levels_name(each.name)] for truth in self._ordinary for each in self.contract.outputs if each.kind == "pixels"]
        ends = sum(int(np.count_nonzero((array <= 0) | (array >= 255))) for array in levels)
        return ends / max(1, sum(array.size for array in levels))

    @property
    def are_probabilities(self) -> bool:
        """Whether the network gives probabilities where it promises logits: a softmax inside, which predictions would apply a second time."""
        rows = [truth[each.name] for truth in self._ordinary for each in self.contract.outputs if each.kind == "logits"]
        return bool(rows) and all((array >= 0).all() and np.allclose(array.sum(axis=-1), 1, atol=SUM_OF_PROBABILITIES) for array in rows)

    @property
    def noticed(self) -> list[str]:
        """What the network's answers tell about its description, in sentences."""
        found = []
        if self.clipped_share > MOST_CLIPPED:  # a network that gives -1..1, described as one that gives 0..1, loses its dark half
            beyond = f"{self.clipped_share:.0%} of the image's values lie at the levels 0 or 255 or beyond, and are cut there"
            found.append(f"{beyond}: is the range of the output right (--output-range)?")
        if self.are_probabilities:
            twice = "predictions apply a softmax once more, and their scores come out too near to each other"
            found.append(f"the network gives probabilities where logits are expected; {twice}: leave its own softmax out")
        return found


def golden_inputs(reference: TorchReference, examples: Sequence[Example]) -> list[GoldenInput]:
    """A few real images at the contract's own size if there are any, made-up ones at an odd, non-square size, and the edges of the declared ranges.

    At the smallest edge the input is stored, at the largest ones it is made by a formula: such an image would take megabytes.
    """
    contract = reference.contract
    swept = sweep_sizes(contract)[:MADE_UP]
    made = [GoldenInput(arrays=sweep_inputs(contract, sizes, seed=1000 + index)) for index, sizes in enumerate(swept)]
    if examples:
        sources = [example.source for example in examples[:REAL_IMAGES]]
        made = [*(GoldenInput(arrays={contract.inputs[0].name: pixels}) for _, pixels, _ in pixel_batches(sources, contract)), made[-1]]
    smallest, *largest = edge_sizes(contract, measured_cost(reference.network, contract))
    edges = [] if smallest in swept else [GoldenInput(arrays=sweep_inputs(contract, smallest, seed=1000 + MADE_UP), is_edge=True)]
    edges += [GoldenInput(arrays=formula_inputs(contract, sizes), sizes=sizes, is_edge=True) for sizes in largest if sizes not in swept]
    return [*made, *edges]


def answer_golden(inputs: Sequence[GoldenInput], reference: TorchReference, engines: Mapping[str, Engine], parity: Parity) -> GoldenAnswers:
    """Run every case in PyTorch and in each engine, by precision. Raises ExportError if a variant gives NaN or infinity."""
    contract = reference.contract
    truths = [reference.run(each.arrays) for each in inputs]
    host = {precision: [engine.run(each.arrays) for each in inputs] for precision, engine in engines.items()}
    for precision, answers in host.items():
        if not all(np.isfinite(array).all() for each in answers for array in each.values()):
            raise ExportError(f"{precision} gives NaN or infinity on a golden case, so no bundle was written: leave {precision} out with --precision")
    ordinary = [index for index, each in enumerate(inputs) if not each.is_edge]
    tolerance = []
    for index in range(len(inputs)):
        pooled = sorted({*ordinary, index})  # an edge, where int8 may be much further off, does not widen what the others may differ by
        tolerance.append(
            {
                precision: _tolerances(contract, precision, [truths[each] for each in pooled], [answers[each] for each in pooled], parity)
                for precision, answers in host.items()
            }
        )
    return GoldenAnswers(contract=contract, inputs=inputs, truths=truths, host=host, tolerance=tolerance)


def write_golden(folder: Path, golden: GoldenAnswers) -> tuple[GoldenCase, ...]:
    """Write every case under `folder` and return its entries for the manifest."""
    return tuple(_write_case(folder, golden, index) for index in range(len(golden.inputs)))


def _write_case(folder: Path, golden: GoldenAnswers, index: int) -> GoldenCase:
    given, truth, contract = golden.inputs[index], golden.truths[index], golden.contract
    name = f"test_data_set_{index}" if given.sizes is None else f"large_{index}"  # ONNX's loader would look for an input there
    outputs = list(enumerate(contract.outputs))
    largest = max(truth[each.name].size for each in contract.outputs)
    every = 1 if given.sizes is None else -(-largest // SAMPLED)
    (folder / name).mkdir()

    def write(file: str, output: str, array: NDArray[Any]) -> File:
        return _write(folder, f"{name}/{file}.pb", output, sampled(array, every) if file[:5] != "input" else array)

    return GoldenCase(
        folder=name,
        inputs=tuple(write(f"input_{i}", each.name, given.arrays[each.name]) for i, each in enumerate(contract.inputs) if given.sizes is None),
        outputs=tuple(write(f"output_{i}", each.name, truth[each.name]) for i, each in outputs),
        levels={each.name: write(f"levels_{i}", each.name, truth[levels_name(each.name)]) for i, each in outputs if each.kind == "pixels"},
        host={
            precision: tuple(write(f"{precision}_output_{i}", each.name, answers[index][each.name]) for i, each in outputs)
            for precision, answers in golden.host.items()
        },
        tolerance=golden.tolerance[index],
        sizes=given.sizes,
        every=every,
    )


def _tolerances(contract: Contract, precision: str, truths: Sequence[Arrays], answers: Sequence[Arrays], parity: Parity) -> tuple[Tolerance, ...]:
    """One for each output. fp32 follows PyTorch's own floor; a lossy precision may drift by as much as it already loses."""
    found = []
    for each in contract.outputs:
        compared = levels_name(each.name) if each.kind == "pixels" else each.name
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
