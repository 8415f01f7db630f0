"""Parity: is the fp32 variant as close to the truth as PyTorch itself, at every size it promises?

Truth is the network in float64. PyTorch's own distance from it, over the whole sweep, is the floor; the variant may reach
FACTOR times that. So the tolerance is derived from the network, not guessed: a deep network with small outputs has a floor
a hundred times that of a shallow one, and a fixed number would be blind for one and unfair to the other.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from edgeport_runtime import Contract, SessionOptions
from edgeport_runtime.device import open_session
from edgeport_runtime.engine import Arrays

from .wrap import LEVELS, Reference, compared_outputs

FACTOR = 4.0  # times PyTorch's own distance; over 17 sound networks the worst was 1.7, one weight changed by 1 % gives 10 and more
LEAST_FLOOR = 2.0**-24  # half a unit in the last place of float32: no float32 result can promise less


@dataclass(frozen=True, kw_only=True)
class Case:
    """One point of the sweep for one output: largest distances from float64, over the range of the output."""

    output: str
    sizes: Mapping[str, int]
    torch_error: float
    onnx_error: float
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The sweep of one variant. True where at least one case was compared and every one is within FACTOR of the floor.

    `floors`: for each output the root mean square of PyTorch's distances. `ranges`: largest minus smallest value of the output.
    """

    cases: tuple[Case, ...]
    floors: Mapping[str, float]
    ranges: Mapping[str, float]

    def allowed(self, output: str) -> float:
        """The largest distance over the range that the output may have."""
        return FACTOR * max(self.floors[output], LEAST_FLOOR)

    def failures(self) -> list[Case]:
        return [case for case in self.cases if case.fault or not case.onnx_error <= self.allowed(case.output)]

    @property
    def worst(self) -> float:
        """The largest distance from float64 over the range, of all outputs and sizes."""
        return max((case.onnx_error for case in self.cases), default=math.inf)

    def __bool__(self) -> bool:
        return bool(self.cases) and not self.failures()

    def __str__(self) -> str:
        failures = self.failures()
        head = (
            f"parity at {len(self.cases)} points: largest difference {self.worst:.1e} of the output's range (PyTorch itself: {max(self.floors.values()):.1e})"
        )
        lines = [
            f"  FAILED {case.output} at {dict(case.sizes)}: {case.fault or f'{case.onnx_error:.1e}, {self.allowed(case.output):.1e} allowed'}"
            for case in failures
        ]
        return "\n".join([head, *lines])

    def to_dict(self) -> dict[str, Any]:
        return {
            "passed": bool(self),
            "worst": self.worst,
            "factor": FACTOR,
            "floors": dict(self.floors),
            "ranges": dict(self.ranges),
            "cases": [{"output": c.output, "sizes": dict(c.sizes), "torch": c.torch_error, "onnx": c.onnx_error, "fault": c.fault} for c in self.cases],
        }


def sweep_sizes(contract: Contract) -> list[dict[str, int]]:
    """Sizes to compare at: batch 1, 2, odd; the contract's size, odd, non-square, larger, smaller, the smallest. Without repeats."""
    image = next((each.pixels for each in contract.inputs if each.pixels is not None), None)
    height, width = (image.height, image.width) if image else (2, 2)
    wanted = [
        (1, height, width),
        (2, height, width),
        (3, height + 1, width),
        (2, height, width + width // 2 + 1),
        (1, 2 * height, 2 * width),
        (5, height // 2, height // 2 + 3),
        (1, 1, 1),
        (2, 1, width),
        (7, height - 1, width + 5),
    ]
    points = [{name: min(max(size, limits.low), limits.high) for name, limits, size in _named(contract, point)} for point in wanted]
    return [dict(pairs) for pairs in dict.fromkeys(tuple(sorted(point.items())) for point in points)]


def _named(contract: Contract, point: tuple[int, int, int]) -> Iterator[tuple[str, Any, int]]:
    known = dict(zip(("batch", "height", "width"), point, strict=True))
    for name, limits in contract.axes.items():
        yield name, limits, known.get(name, point[0] + 2)


def sweep_inputs(contract: Contract, sizes: Mapping[str, int], seed: int) -> Arrays:
    """Random inputs at one point: smooth fields with grain for pixels, normal values for tensors."""
    generator = np.random.default_rng(seed)
    arrays: Arrays = {}
    for each in contract.inputs:
        shape = tuple(axis if isinstance(axis, int) else sizes[axis] for axis in each.shape)
        if each.pixels is not None:
            arrays[each.name] = _picture(shape, generator)
        elif np.issubdtype(np.dtype(each.dtype), np.integer):
            arrays[each.name] = generator.integers(0, 2, shape).astype(each.dtype)
        else:
            arrays[each.name] = generator.standard_normal(shape).astype(each.dtype)
    return arrays


def _picture(shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Waves of random direction and colour with grain on top, full range: nearer to photographs than white noise."""
    batch, height, width, channels = shape
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = generator.uniform(-12, 12, (batch, 1, 1, channels, 2))
    phase = generator.uniform(0, 2 * np.pi, (batch, 1, 1, channels))
    field = np.sin(waves[..., 0] * y[None, :, :, None] + waves[..., 1] * x[None, :, :, None] + phase)
    picture: NDArray[np.uint8] = np.clip(127.5 + 100 * field + generator.normal(0, 25, shape), 0, 255).astype(np.uint8)
    return picture


def with_levels(model: bytes, contract: Contract) -> bytes:
    """The same graph with the values before rounding as outputs, so that parity can look at them."""
    hidden = [each.name + LEVELS for each in contract.outputs if each.kind == "pixels"]
    if not hidden:
        return model
    proto = onnx.load_from_string(model)
    present = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in hidden if name not in present)
    return bytes(proto.SerializeToString())


def measure_parity(network: nn.Module, contract: Contract, model: bytes, *, seed: int = 0, step: Callable[[int], None] = lambda done: None) -> Parity:
    """Run PyTorch in float32 and float64, and the variant as it ships (all optimisations), over the sweep."""
    names = compared_outputs(contract)
    points = sweep_sizes(contract)
    session = open_session(with_levels(model, contract), SessionOptions())
    truth, single = Reference(network, contract, torch.float64), Reference(network, contract)
    rows: list[tuple[dict[str, int], str, NDArray[Any], NDArray[Any], NDArray[Any] | str]] = []
    for index, sizes in enumerate(points):
        arrays = sweep_inputs(contract, sizes, seed + index)
        exact, rounded = truth.run(arrays), single.run(arrays)
        got = _run(session, names, arrays)
        rows += [(sizes, name, exact[name], rounded[name], got if isinstance(got, str) else got[name]) for name in names]
        step(1)
    return _judge(names, rows)


def _run(session: Any, names: Sequence[str], arrays: Arrays) -> Arrays | str:
    """The outputs, or in words why there are none: a graph that fails at some size is a finding, not an accident."""
    try:
        return dict(zip(names, session.run(list(names), arrays), strict=True))
    except Exception as error:  # onnxruntime's exceptions derive from Exception directly
        return f"onnxruntime failed: {str(error).splitlines()[0]}"


def _judge(names: Sequence[str], rows: Sequence[tuple[dict[str, int], str, Any, Any, Any]]) -> Parity:
    ranges = {name: _range([exact for _, output, exact, _, _ in rows if output == name], name) for name in names}
    cases = []
    for sizes, name, exact, rounded, got in rows:
        fault = got if isinstance(got, str) else "" if got.shape == exact.shape else f"the shape is {got.shape}, PyTorch's {exact.shape}"
        cases.append(
            Case(
                output=name,
                sizes=sizes,
                torch_error=_distance(rounded, exact) / ranges[name],
                onnx_error=math.inf if fault else _distance(got, exact) / ranges[name],
                fault=fault,
            )
        )
    floors = {name: math.sqrt(sum(case.torch_error**2 for case in cases if case.output == name) / max(1, len(rows) // len(names))) for name in names}
    return Parity(cases=tuple(cases), floors=floors, ranges=ranges)


def _range(values: Sequence[NDArray[Any]], name: str) -> float:
    if name.endswith(LEVELS):
        return 255.0
    return float(max(value.max() for value in values) - min(value.min() for value in values)) or 1.0


def _distance(got: NDArray[Any], exact: NDArray[Any]) -> float:
    distance = float(np.max(np.abs(got.astype(np.float64) - exact.astype(np.float64)), initial=0.0))
    return distance if math.isfinite(distance) else math.inf
