"""Makes int8 variants of one float graph, again and again, and says how far their outputs are from the float graph's."""

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeport_runtime import Contract
from edgeport_runtime.device import open_session
from edgeport_runtime.engine import Arrays
from edgeport_runtime.timing import example_inputs

from .calibration import Limits
from .multiplications import count_multiplications
from .quantize import candidates, preprocess, quantize
from .targets import Target
from .trace import finish

Names = frozenset[str]
KEPT_FILES = 4
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)


class Workshop:
    """`probes`: inputs on which errors are measured. `limits` may be set anew: every variant made afterwards has them."""

    def __init__(self, traced: onnx.ModelProto, contract: Contract, target: Target) -> None:
        self.contract = contract
        self.target = target
        self.sha256 = hashlib.sha256(traced.SerializeToString(deterministic=True)).hexdigest()
        self.prepared = preprocess(traced)
        self.possible, self.never = candidates(self.prepared, target)
        self.limits: Limits = {}
        self.probes: list[Arrays] = []
        self._folder = tempfile.TemporaryDirectory()
        self._files: dict[Names, Path] = {}
        self._made = 0

    def __enter__(self) -> "Workshop":
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    @cached_property
    def multiplications(self) -> dict[str, int]:
        """Of every product, at the contract's size."""
        return count_multiplications(self.prepared, example_inputs(self.contract, batch=1))

    @cached_property
    def nodes(self) -> dict[str, onnx.NodeProto]:
        return {node.name: node for node in self.prepared.graph.node}

    @cached_property
    def _expected(self) -> list[Arrays]:
        return _outputs(self.prepared, self.probes, self.target)

    def variant(self, integer: Iterable[str]) -> onnx.ModelProto:
        return quantize(self.prepared, self.contract, set(integer), self.limits, self.target)

    def file(self, integer: Names) -> Path:
        """The variant as it would ship, or with no names the float graph."""
        path = self._files.pop(integer, None)
        if path is None:
            self._made += 1
            path = Path(self._folder.name) / f"{self._made}.onnx"
            path.write_bytes(finish(self.variant(integer) if integer else self.prepared, self.contract))
            if len(self._files) >= KEPT_FILES:
                self._files.pop(next(iter(self._files))).unlink()
        self._files[integer] = path  # last in the order: the least recently used one goes first
        return path

    def sqnr_db(self, integer: Iterable[str]) -> float:
        """Signal over error of the variant's float outputs against the float graph's, on the probes; the worst output counts."""
        return self._distance(integer, self.probes, self._expected)

    def sqnr_db_at(self, integer: Iterable[str], probes: list[Arrays]) -> float:
        """The same on other probes."""
        return self._distance(integer, probes, _outputs(self.prepared, probes, self.target))

    def agreement(self, integer: Iterable[str]) -> dict[str, float]:
        """Of every output of integers, such as the classes behind an argmax: the share of its entries, 0 to 1, that are the float graph's on the probes."""
        names = [each.name for each in self.contract.outputs if each.kind != "pixels" and not each.dtype.startswith("float")]
        if not names:
            return {}
        expected, got = (_outputs(model, self.probes, self.target, names) for model in (self.prepared, self.variant(integer)))
        return {name: _agreement([each[name] for each in expected], [each[name] for each in got]) for name in names}

    def _distance(self, integer: Iterable[str], probes: list[Arrays], expected: list[Arrays]) -> float:
        got = _outputs(self.variant(integer), probes, self.target)
        return min(_sqnr_db([each[name] for each in expected], [each[name] for each in got]) for name in expected[0])


def _outputs(model: onnx.ModelProto, probes: list[Arrays], target: Target, names: Sequence[str] = ()) -> list[Arrays]:
    """The outputs of these names for each probe; without names, all of floats."""
    session: Any = open_session(model.SerializeToString(), target.session)
    names = names or [each.name for each in model.graph.output if each.type.tensor_type.elem_type in FLOATS]
    return [dict(zip(names, session.run(names, arrays), strict=True)) for arrays in probes]


def _agreement(expected: list[NDArray[Any]], got: list[NDArray[Any]]) -> float:
    """An image whose output has another size, as boxes above a threshold have, agrees nowhere."""
    same = sum(int(np.count_nonzero(a == b)) for a, b in zip(expected, got, strict=True) if a.shape == b.shape)
    return same / max(1, sum(each.size for each in expected))


def _sqnr_db(expected: list[NDArray[Any]], got: list[NDArray[Any]]) -> float:
    """The signal is what differs from image to image: what an output always holds, such as the bias of a depth in metres, would hide any error.

    Each list: (N, …), images along the first axis. Of sizes that only one image has, it is what differs from the output's mean. An error that is
    no number is the largest there is, and so is an output of another size.
    """
    if any(a.shape != b.shape for a, b in zip(expected, got, strict=True)):
        return float("-inf")
    sizes: dict[tuple[int, ...], list[NDArray[np.float64]]] = {}
    for each in expected:
        sizes.setdefault(each.shape[1:], []).append(each.astype(np.float64))
    alike = [np.concatenate(rows) for rows in sizes.values()]
    signal = sum(float(np.sum(np.square(rows - (rows.mean(axis=0) if len(rows) > 1 else rows.mean())))) for rows in alike)
    error = sum(float(np.sum(np.square(a.astype(np.float64) - b.astype(np.float64)))) for a, b in zip(expected, got, strict=True))
    if not error:
        return float("inf")
    return float(10 * np.log10(signal / error)) if signal and np.isfinite(signal) and np.isfinite(error) else float("-inf")
