"""One side of a comparison: a PyTorch network, or an ONNX file in an engine that reads it. Both answer the inputs of one contract."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from edgeport_export.errors import ExportError, NetworkFailure, shortened
from edgeport_export.network.preflight import check_modules
from edgeport_export.network.reference import TorchReference
from edgeport_export.network.size_sweep import Sizes, own_sizes, sweep_inputs
from edgeport_export.network.wrapper import compared_outputs, flatten
from edgeport_export.quantization.macs import INTEGER_PRODUCTS
from edgeport_export.validation.sweep import with_levels
from edgeport_runtime import Bundle, Contract, SessionOptions
from edgeport_runtime.contract import METADATA_KEY
from edgeport_runtime.device import open_session
from edgeport_runtime.engine import Arrays
from edgeport_runtime.errors import BundleError, DeviceError, first_line

from .graph_ends import GraphEnds

ENGINES = ("onnxruntime", "openvino")
MOST_WORDS = 250  # characters of an engine's own message
INTEGER_OPERATORS = {"QuantizeLinear", "DequantizeLinear", *INTEGER_PRODUCTS}
Answer = Callable[[Arrays], Arrays]  # a contract's inputs by name -> the values of `compared_outputs`


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkSide:
    """A PyTorch network in float32. `contract`: None if it has none of its own."""

    name: str
    network: nn.Module
    contract: Contract | None = None
    precision: str = "fp32"

    def reference(self, contract: Contract) -> TorchReference:
        """The network under a contract, which loses the outputs that this network does not have. Raises PreflightError, NetworkFailure; ExportError if it
        has more outputs than the contract."""
        check_modules(self.network, contract)
        reference = TorchReference(self.network, contract)
        try:
            count = len(flatten(reference.answer(sweep_inputs(contract, own_sizes(contract), seed=0))))
        except NetworkFailure:  # it is told for every input
            return reference
        if count > len(contract.outputs):
            raise ExportError(f"{self.name} gives {count} outputs, but {len(contract.outputs)} are to be compared: describe all of them with --contract")
        return reference if count == len(contract.outputs) else TorchReference(self.network, replace(contract, outputs=contract.outputs[:count]))

    def answer(self, contract: Contract) -> Answer:
        """Raises NetworkFailure when it is called at a size that the network does not take."""
        reference = self.reference(contract)
        names = compared_outputs(reference.contract)

        def run(arrays: Arrays) -> Arrays:
            found = reference.run(arrays)
            return {name: found[name] for name in names}

        return run

    def fixed(self, contract: Contract) -> Sizes:
        """The only sizes that it takes; a network is asked for all that the contract promises."""
        return {}


@dataclass(frozen=True, kw_only=True, eq=False)
class GraphSide:
    """An ONNX file. `contract`: that edgeport wrote into it; None if another tool made the file. `engine`: one of ENGINES.

    `folder`: of the bundle or of the file, whose golden cases are beside it. `promised_db`: of an int8 variant, the signal over error that was
    measured when the bundle was made; None if that is not known.
    """

    name: str
    model: bytes
    contract: Contract | None = None
    engine: str = "onnxruntime"
    folder: Path | None = None
    promised_db: float | None = None

    @classmethod
    def of_bundle(cls, bundle: Bundle, precision: str = "fp32", engine: str = "onnxruntime") -> "GraphSide":
        """A variant of a bundle. Raises BundleError if there is no such variant, AlteredError if its file was changed."""
        variant = bundle.variant(precision)
        promised = (variant.plan or {}).get("sqnr_db")
        name = f"{bundle.folder}@{precision}" + ("" if engine == "onnxruntime" else f"+{engine}")
        contract = bundle.manifest.contract
        return cls(name=name, model=bundle.read(variant), contract=contract, engine=engine, folder=bundle.folder, promised_db=promised)

    @classmethod
    def of_file(cls, path: str | Path, engine: str = "onnxruntime") -> "GraphSide":
        """Any ONNX file, with its weights beside it if it has them there. Raises BundleError."""
        path = Path(path)
        if not path.is_file():
            raise BundleError(f"{path}: expected an ONNX file, but there is no such file")
        try:
            proto = onnx.load(path)
            if not proto.graph.output:
                raise ValueError("it has no graph")
        except Exception as error:  # protobuf's own errors, and those of the file system
            raise BundleError(f"{path}: this cannot be read as an ONNX model ({first_line(error)})") from error
        written = {each.key: each.value for each in proto.metadata_props}.get(METADATA_KEY)
        contract = None if written is None else Contract.from_json(written)
        name = str(path) + ("" if engine == "onnxruntime" else f"@{engine}")
        return cls(name=name, model=proto.SerializeToString(), contract=contract, engine=engine, folder=path.parent)

    @cached_property
    def proto(self) -> onnx.ModelProto:
        """The model, for reading alone."""
        return onnx.load_from_string(self.model)

    @cached_property
    def ends(self) -> GraphEnds:
        """The graph's inputs and outputs. Raises ExportError."""
        return GraphEnds.of(self.proto)

    @property
    def precision(self) -> str:
        """ "int8" if the graph quantizes, "fp16" if it has weights of that kind, else "fp32"."""
        if any(node.op_type in INTEGER_OPERATORS for node in self.proto.graph.node):
            return "int8"
        return "fp16" if any(each.data_type == onnx.TensorProto.FLOAT16 for each in self.proto.graph.initializer) else "fp32"

    def answer(self, contract: Contract) -> Answer:
        """Raises ExportError if the graph has other ends than the contract, DeviceError without the engine, or when a run fails."""
        model = with_levels(self.model, self.contract) if self.contract is not None else self.model
        ends = GraphEnds.of(onnx.load_from_string(model))
        ends.require_fit(contract, self.name)
        theirs = ends.compared_names(contract)
        present = [name for name in theirs if name is not None]
        session = _ENGINES[self.engine](model, self.name)

        def run(arrays: Arrays) -> Arrays:
            values = dict(zip(present, session(present, ends.feed(arrays, contract)), strict=True))
            ours = zip(compared_outputs(contract), contract.outputs, theirs, strict=True)
            return {name: ends.answer(values[other], output) for name, output, other in ours if other is not None}

        return run

    def fixed(self, contract: Contract) -> Sizes:
        """The sizes that the file fixes of those that the contract leaves open."""
        return self.ends.sizes(contract)


Side = NetworkSide | GraphSide


def _onnxruntime(model: bytes, name: str) -> Callable[[list[str], Mapping[str, NDArray[Any]]], list[NDArray[Any]]]:
    session = open_session(model, SessionOptions())

    def run(names: list[str], arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        try:
            return list(session.run(names, dict(arrays)))
        except Exception as error:  # onnxruntime's exceptions derive from Exception directly
            words = " ".join(str(error).partition("Please fix")[0].split())  # its second line has the sizes
            raise DeviceError(f"{name}: onnxruntime failed: {shortened(words, MOST_WORDS)}") from error

    return run


def _openvino(model: bytes, name: str) -> Callable[[list[str], Mapping[str, NDArray[Any]]], list[NDArray[Any]]]:
    try:
        import openvino
    except ImportError as error:
        raise DeviceError(f"{name}: OpenVINO is not installed ({error}); install it with pip install 'edgeport[openvino]'") from error
    core = openvino.Core()
    try:
        compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        raise ExportError(f"{name}: OpenVINO cannot read this graph: {first_line(error)}") from error
    places = {each: index for index, output in enumerate(compiled.outputs) for each in output.get_names()}

    def run(names: list[str], arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        try:
            found = compiled(dict(arrays))
        except RuntimeError as error:
            raise DeviceError(f"{name}: OpenVINO failed: {first_line(error)}") from error
        return [np.array(found[places[each]]) for each in names]

    return run


_ENGINES = {"onnxruntime": _onnxruntime, "openvino": _openvino}
