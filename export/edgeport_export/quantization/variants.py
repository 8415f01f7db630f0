"""A float graph that can be quantized, and a builder of its int8 variants."""

import hashlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from edgeport_export.rewrites.finalize import finalize
from edgeport_export.rewrites.graph import GraphEditor, Ranges
from edgeport_runtime import Contract
from edgeport_runtime.device import open_session
from edgeport_runtime.engine import Arrays
from edgeport_runtime.timing import example_inputs

from .macs import count_macs
from .output_error import agreement, sqnr_db, standard_error_db, with_parts
from .qdq import candidates, preprocess, quantize
from .recovery.recovered_weights import NOTHING, Recovered
from .recovery.smoothing import Exponents, smoothed
from .targets import Target

Names = frozenset[str]
KEPT_VARIANTS = 4  # the last ones, as models and files
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)


@dataclass(frozen=True, kw_only=True)
class QuantizableGraph:
    """A float graph, and which of its products can run as integers on a target.

    `model`: preprocessed for the quantizer. `sha256`: of the graph as it was traced. `quantizable`: names of products, in the graph's order.
    `not_quantizable`: name -> reason. `smoothing`: what has been moved into weights, see `smoothing`.
    """

    model: onnx.ModelProto
    sha256: str
    contract: Contract
    target: Target
    quantizable: tuple[str, ...]
    not_quantizable: Mapping[str, str]
    smoothing: Exponents = field(default_factory=dict)

    @classmethod
    def of(cls, traced: onnx.ModelProto, contract: Contract, target: Target) -> "QuantizableGraph":
        """Preprocess a traced graph, which is left as it is."""
        model = preprocess(traced)
        quantizable, not_quantizable = candidates(GraphEditor(model), target)
        return cls(
            model=model,
            sha256=hashlib.sha256(traced.SerializeToString(deterministic=True)).hexdigest(),
            contract=contract,
            target=target,
            quantizable=tuple(quantizable),
            not_quantizable=not_quantizable,
        )

    def smoothed(self, exponents: Exponents) -> "QuantizableGraph":
        """The same network with outliers moved into weights; its answers are the same bits."""
        return replace(self, model=smoothed(self.model, exponents), smoothing=exponents) if exponents else self

    @cached_property
    def macs(self) -> dict[str, int]:
        """MACs of every product, at the contract's own size."""
        return count_macs(self.model, example_inputs(self.contract, batch=1))

    @cached_property
    def editor(self) -> GraphEditor:
        """For reading alone."""
        return GraphEditor(self.model)


class Probes:
    """Inputs on which errors are measured, with the float graph's outputs for them. `arrays`: one mapping for each run."""

    def __init__(self, graph: QuantizableGraph, arrays: Iterable[Arrays]) -> None:
        self.graph = graph
        self.arrays = list(arrays)

    @property
    def images(self) -> int:
        """How many."""
        return sum(len(next(iter(arrays.values()))) for arrays in self.arrays)

    @cached_property
    def expected(self) -> list[Arrays]:
        """The float outputs of the float graph."""
        return self.outputs(self.graph.model)

    @cached_property
    def parts(self) -> dict[str, list[NDArray[Any]]]:
        """For each output that joins several things, the number of each value's part, for each probe."""
        model, names = with_parts(self.graph.model, self.graph.contract)
        found = self.outputs(model, names) if names else []
        return {name: [each[name] for each in found] for name in names}

    def sqnr_db(self, got: Sequence[Arrays], kept: Sequence[int] | None = None) -> float:
        """Signal over error of another graph's outputs. `kept`: indices of the runs that count, all if left out."""
        runs = range(len(got)) if kept is None else kept
        numbers = {name: [values[index] for index in runs] for name, values in self.parts.items()}
        return min(
            sqnr_db([self.expected[index][name] for index in runs], [got[index][name] for index in runs], numbers.get(name)) for name in self.expected[0]
        )

    def outputs(self, model: onnx.ModelProto, names: Sequence[str] = ()) -> list[Arrays]:
        """A model's outputs of these names for each probe; without names, all that are floats."""
        session: Any = open_session(model.SerializeToString(), self.graph.target.session)
        names = names or [each.name for each in model.graph.output if each.type.tensor_type.elem_type in FLOATS]
        return [dict(zip(names, session.run(names, arrays), strict=True)) for arrays in self.arrays]


@dataclass
class _Variant:
    """One set of integer products. `model`, `path`: while it is among the latest; `sqnr_db`: once it was asked for."""

    model: onnx.ModelProto | None = None
    path: Path | None = None
    sqnr_db: float | None = None


class VariantBuilder:
    """Makes int8 variants of one graph with given ranges, each once. Use it as a context: it keeps files.

    `method`: how the ranges were chosen. `probes`: inputs for `sqnr_db` and `agreement`. `recovered`: weights that are rounded already.
    """

    def __init__(self, graph: QuantizableGraph, ranges: Ranges, probes: Probes, method: str, recovered: Recovered = NOTHING) -> None:
        self.graph = graph
        self.ranges = ranges
        self.method = method
        self.probes = probes
        self.recovered = recovered
        self._folder = tempfile.TemporaryDirectory()
        self._variants: dict[Names, _Variant] = {}  # the one that was used last comes last
        self._written = 0

    def __enter__(self) -> "VariantBuilder":
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def model(self, integer: Names) -> onnx.ModelProto:
        """The variant in which the named products run as integers, with all traced outputs; without names, the float graph."""
        return self._made(integer)[1]

    def file(self, integer: Names) -> Path:
        """The variant as it would ship."""
        variant, model = self._made(integer)
        if variant.path is None:
            self._written += 1
            variant.path = Path(self._folder.name) / f"{self._written}.onnx"
            variant.path.write_bytes(finalize(model, self.graph.contract, check=False))
        return variant.path

    def _made(self, integer: Names) -> tuple[_Variant, onnx.ModelProto]:
        variant = self._variants[integer] = self._variants.pop(integer, _Variant())
        if variant.model is None:
            settings = (self.graph.contract, integer, self.ranges, self.graph.target, self.recovered)
            variant.model = quantize(self.graph.model, *settings) if integer else self.graph.model
            for oldest in [each for each in self._variants.values() if each.model is not None][:-KEPT_VARIANTS]:
                if oldest.path is not None:
                    oldest.path.unlink()
                oldest.model = oldest.path = None
        return variant, variant.model

    def sqnr_db(self, integer: Names) -> float:
        """Signal over error of the variant's float outputs against the float graph's, on the probes. The worst output counts, and the worst part of it."""
        variant = self._variants.setdefault(integer, _Variant())
        if variant.sqnr_db is None:
            variant.sqnr_db = self.sqnr_db_on(integer, self.probes)
        return variant.sqnr_db

    def sqnr_db_on(self, integer: Names, probes: Probes) -> float:
        """The same on other probes."""
        return probes.sqnr_db(probes.outputs(self.model(integer)))

    def sqnr_and_error_db(self, integer: Names, probes: Probes) -> tuple[float, float | None]:
        """The same, and its standard error, see `standard_error_db`."""
        got = probes.outputs(self.model(integer))
        return probes.sqnr_db(got), standard_error_db(len(got), lambda kept: probes.sqnr_db(got, kept))

    def agreement(self, integer: Names) -> dict[str, float]:
        """For every output of integers, such as the classes of an argmax: the share of its entries, 0..1, that are the float graph's."""
        names = [each.name for each in self.graph.contract.outputs if each.kind != "pixels" and not each.dtype.startswith("float")]
        if not names:
            return {}
        expected, got = (self.probes.outputs(model, names) for model in (self.graph.model, self.model(integer)))
        return {name: agreement([each[name] for each in expected], [each[name] for each in got]) for name in names}
