"""The noise of an ONNX file without PyTorch: how far its outputs move if its weights change by their last bit.

Whoever computes in float32 rounds, at every operation, by up to half a unit in the last place. A network whose weights are off by up to one unit
answers as far from itself as another engine does, or PyTorch (Wilkinson's backward error). Over seven networks the distance was 0.6 to 1.4 times
PyTorch's own distance from float64 (docs/parity.md).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeport_export.validation.last_bits import LAST_BIT


def nearby_graph(model: onnx.ModelProto, seed: int) -> bytes:
    """The same graph with every float32 weight changed by up to LAST_BIT of itself, at random."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    generator = np.random.default_rng(seed)
    for weights in changed.graph.initializer:
        if weights.data_type == onnx.TensorProto.FLOAT:
            weights.CopyFrom(numpy_helper.from_array(_moved(numpy_helper.to_array(weights), generator), weights.name))
    return bytes(changed.SerializeToString())


def nearby_inputs(arrays: Mapping[str, NDArray[Any]], seed: int) -> dict[str, NDArray[Any]]:
    """The same for inputs that are floats; pixels and integers stay."""
    generator = np.random.default_rng(seed)
    return {name: _moved(array, generator) if array.dtype == np.float32 else array for name, array in arrays.items()}


def _moved(values: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    return (values.astype(np.float64) * (1 + generator.uniform(-LAST_BIT, LAST_BIT, values.shape))).astype(values.dtype)
