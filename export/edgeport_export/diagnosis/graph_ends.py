"""The ends of an ONNX graph that edgeport need not have made: fed with the inputs of a contract, its outputs named and laid out as the contract does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeport_export.errors import ExportError
from edgeport_export.rewrites.names import LEVELS_SUFFIX, levels_name
from edgeport_runtime import Contract, Input, Output, Range
from edgeport_runtime.engine import Arrays

FREE_AXIS = Range(low=1, high=8)  # of a size that a file leaves open, if no contract says more
Dims = tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class End:
    """One input or output of a graph. `shape`: sizes, and names of those that are open; None if the file does not say."""

    name: str
    dtype: str
    shape: Dims | None

    @property
    def is_channels_last(self) -> bool:
        """Whether an image here is (N, H, W, C) and not (N, C, H, W): only the last axis has one or three channels."""
        return self.shape is not None and len(self.shape) == 4 and self.shape[3] in (1, 3) and self.shape[1] not in (1, 3)


@dataclass(frozen=True, kw_only=True)
class GraphEnds:
    """The ends of one graph. Values before rounding, which edgeport adds, are outputs too."""

    inputs: tuple[End, ...]
    outputs: tuple[End, ...]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> "GraphEnds":
        """Raises ExportError for an end that is no tensor, such as a sequence."""
        weights = {each.name for each in model.graph.initializer}
        inputs = tuple(_end(each) for each in model.graph.input if each.name not in weights)
        return cls(inputs=inputs, outputs=tuple(map(_end, model.graph.output)))

    def contract(self, fixed: Mapping[str, int] | None = None) -> Contract:
        """Plain tensors as the file itself declares them. `fixed`: open axes that have one size. Raises ContractError for a dtype that is not known."""
        sizes: dict[str | int, int] = dict(fixed.items()) if fixed else {}
        given = tuple(Input(name=each.name, dtype=each.dtype, shape=tuple(sizes.get(axis, axis) for axis in _named(each))) for each in self.inputs)
        made = tuple(Output(name=each.name, dtype=each.dtype, shape=_named(each), kind="tensor") for each in self.outputs)
        axes = {axis: FREE_AXIS for each in given for axis in each.shape if isinstance(axis, str)}
        return Contract(task="tensors", inputs=given, outputs=made, axes=axes)

    def require_fit(self, contract: Contract, name: str) -> None:
        """Raises ExportError if the graph has another number of inputs than the contract, or more outputs. `name`: of the graph, for the message."""
        shown = [each.name for each in self.outputs if not each.name.endswith(LEVELS_SUFFIX)]
        for kind, names, ends in (("inputs", [each.name for each in self.inputs], contract.inputs), ("outputs", shown, contract.outputs)):
            if len(names) > len(ends) or (kind == "inputs" and len(names) < len(ends)):  # an output that is missing is a difference
                wanted = ", ".join(each.name for each in ends)
                raise ExportError(
                    f"{name} has {len(names)} {kind} ({', '.join(names)}), but {len(ends)} are to be compared ({wanted}): "
                    "compare models with the same ends, or describe this one with --contract"
                )

    def sizes(self, contract: Contract) -> dict[str, int]:
        """The sizes that the file fixes of axes that the contract leaves open."""
        found = {}
        for ours, theirs in zip(contract.inputs, self._in_order(contract), strict=True):
            for axis, size in zip(ours.shape, _laid_out(ours, theirs), strict=False):  # of other ranks a run tells
                if isinstance(axis, str) and isinstance(size, int):
                    found[axis] = size
        return found

    def feed(self, arrays: Mapping[str, NDArray[Any]], contract: Contract) -> Arrays:
        """The contract's arrays as this graph takes them: pixels are normalized and laid out if it takes floats."""
        return {theirs.name: _fed(arrays[ours.name], ours, theirs) for ours, theirs in zip(contract.inputs, self._in_order(contract), strict=True)}

    def compared_names(self, contract: Contract) -> list[str | None]:
        """This graph's name for each output of the contract: of the value before rounding, if it has one; otherwise the same name, or the same place.

        None for an output that it does not have.
        """
        names = [each.name for each in self.outputs]
        shown = [name for name in names if not name.endswith(LEVELS_SUFFIX)]
        wanted = [each.name for each in contract.outputs]
        if set(shown) <= set(wanted):
            found: list[str | None] = [name if name in shown else None for name in wanted]
        else:
            found = [shown[place] if place < len(shown) else None for place in range(len(wanted))]
        return [levels_name(name) if name is not None and levels_name(name) in names else name for name in found]

    def answer(self, value: NDArray[Any], output: Output) -> NDArray[Any]:
        """An output of this graph as the contract has it: an image of floats becomes levels in 0..255, (N, H, W, C)."""
        if output.kind != "pixels" or value.dtype.kind != "f" or value.ndim != 4:
            return value
        name = next((each for each in self.outputs if each.name == levels_name(output.name)), None)
        if name is not None:
            return value
        low, high = output.range
        levels: NDArray[Any] = np.clip((value.astype(np.float32) - low) * (255 / (high - low)), 0, 255)
        return levels if levels.shape[-1] == output.shape[-1] and levels.shape[1] != output.shape[-1] else levels.transpose(0, 2, 3, 1)

    def _in_order(self, contract: Contract) -> list[End]:
        ends = {each.name: each for each in self.inputs}
        by_name = {each.name for each in contract.inputs} <= set(ends)
        return [ends[each.name] if by_name else self.inputs[place] for place, each in enumerate(contract.inputs)]


def _end(value: onnx.ValueInfoProto) -> End:
    if not value.type.HasField("tensor_type"):
        kind = value.type.WhichOneof("value") or "of no type"
        raise ExportError(f"{value.name!r} is {kind.replace('_type', '')}: only graphs whose inputs and outputs are tensors can be compared")
    tensor = value.type.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}_{axis}" for axis, dim in enumerate(tensor.shape.dim))
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return End(name=value.name, dtype={"float": "float32", "double": "float64"}.get(kind, kind), shape=shape)


def _named(end: End) -> Dims:
    return () if end.shape is None else end.shape


def _laid_out(ours: Input, theirs: End) -> Sequence[int | str]:
    """Their shape in our order of axes."""
    shape = _named(theirs)
    if ours.pixels is None or len(shape) != 4 or theirs.dtype == ours.dtype or theirs.is_channels_last:
        return shape
    return (shape[0], shape[2], shape[3], shape[1])


def _fed(array: NDArray[Any], ours: Input, theirs: End) -> NDArray[Any]:
    if theirs.dtype == ours.dtype:
        return array
    if ours.pixels is None:
        return array.astype(theirs.dtype)
    normal = normalized(array, ours.pixels.mean, ours.pixels.std)
    return np.ascontiguousarray(normal if theirs.is_channels_last else normal.transpose(0, 3, 1, 2)).astype(theirs.dtype)


def normalized(array: NDArray[Any], mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float64]:
    """Pixels, uint8 (…, H, W, C), as a network sees them, in float64: (pixel / 255 - mean) / std."""
    found: NDArray[np.float64] = (array / 255.0 - np.array(mean)) / np.array(std)
    return found
