"""The engine: arrays in, arrays out, through one onnxruntime session."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import Contract
from .device import SessionOptions, onnxruntime, open_session
from .errors import BundleError, DeviceError

Arrays = dict[str, NDArray[Any]]


class Engine:
    """Runs one variant. Safe to call from several threads at once; inputs are never written to."""

    def __init__(self, model: bytes, contract: Contract, options: SessionOptions) -> None:
        self.contract = contract
        self.options = options
        self.session = open_session(model, options)
        self._outputs = [each.name for each in contract.outputs]
        graph = {each.name for each in self.session.get_inputs()}, {each.name for each in self.session.get_outputs()}
        promised = {each.name for each in contract.inputs}, set(self._outputs)
        if graph[0] != promised[0] or not promised[1] <= graph[1]:
            raise BundleError(
                f"the contract promises {sorted(promised[0])} -> {sorted(promised[1])}, but the graph has {sorted(graph[0])} -> {sorted(graph[1])}"
            )

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """One run at the shapes given. Raises InputError outside the contract, DeviceError where the run itself fails."""
        self.contract.require_arrays(inputs)
        try:
            values = self.session.run(self._outputs, {name: np.ascontiguousarray(array) for name, array in inputs.items()})
        except Exception as error:  # onnxruntime's exceptions derive from Exception directly
            shapes = {name: array.shape for name, array in inputs.items()}
            raise DeviceError(f"onnxruntime {onnxruntime().__version__} failed on {self.options.device} at {shapes}: {str(error).splitlines()[0]}") from error
        return dict(zip(self._outputs, values, strict=True))
