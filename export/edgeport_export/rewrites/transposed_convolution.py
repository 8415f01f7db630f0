"""A transposed convolution as an ordinary one that computes every phase of its output, and the phases put in place.

onnxruntime has no integer kernel for ConvTranspose, so that decoders and generators that grow their maps by it would stay float. Output position
q is the sum over taps k of x[(q - k) / step] w[k] where that divides: the positions of one remainder (a phase) all read the same few neighbours, with
weights of their own. One convolution with `step` times as many filters on each axis gives all of them (Shi et al. 2016, arXiv:1609.07009).
Exact: the same products in another order, with zeros where the kernel is no multiple of the step. Measured on onnxruntime 1.31.1, two threads,
batch 16, with a 1x1 convolution before and behind, against the float ConvTranspose: 128 -> 64 channels from 32x32, 4x4 by 2: 8.7 ms
against 39.2; 64 -> 64, 2x2 by 2: 4.2 against 8.8; 512 -> 256 from 4x4, 4x4 by 2: 2.7 against 7.0. In float it gains nothing.

1. Applies to ConvTranspose over height and width, of one group, with constant weights (and bias, where it has one), no dilation, and an output
   size that follows from its padding, whose result is no output of the graph: phases would round and clip it, where that of other products
   stays as it is. `refusal` says which of these is missing.
2. On each axis T = ceil(kernel / step) taps. Whole steps of padding are taken from the convolution's own, the rest is cut off at the end.
3. Filter c of the phase (row, column) is number (row * steps + column) * C + c; channels last, phases move in pieces of `steps * C` values.
4. A Relu, LeakyRelu or Clip that alone reads the result is applied to the phases, where the integer kernel takes it in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from .constants import drop_unread
from .nodes import attributes

PHASES = ".phases"  # suffix of a value before its phases are put in place
ACTIVATIONS = ("Relu", "LeakyRelu", "Clip")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What rule 2 makes of one axis. `before`, `behind`: padding of the convolution; `first`, `last`: positions of its result that are cut off."""

    step: int
    taps: int
    before: int
    behind: int
    first: int
    last: int

    @classmethod
    def of(cls, kernel: int, step: int, begin: int, end: int, extra: int) -> "Axis":
        """`begin`, `end`, `extra`: what the transposed convolution cuts off on both sides, and adds at the end."""
        taps = -(-kernel // step)
        too_many = taps * step - kernel + end - extra
        return cls(step=step, taps=taps, before=taps - 1 - begin // step, behind=taps - 1 - too_many // step, first=begin % step, last=too_many % step)


def refusal(graph: onnx.GraphProto, node: onnx.NodeProto) -> str:
    """Why a ConvTranspose cannot be rewritten; empty where it can. Rule 1."""
    constants, said = {each.name: each for each in graph.initializer}, attributes(node)
    if any(each not in constants for each in node.input[1:] if each):
        return "a transposed convolution whose weights are computed"
    if said.get("group", 1) != 1:
        return "a transposed convolution in groups"
    if any(each != 1 for each in said.get("dilations", [])):
        return "a dilated transposed convolution"
    if len(constants[node.input[1]].dims) != 4:
        return "a transposed convolution over other than two axes"
    if "output_shape" in said or said.get("auto_pad", b"NOTSET") != b"NOTSET":
        return "a transposed convolution that is told its output's size"
    if _gives_output(graph, node.output[0]):
        return "a transposed convolution that gives an output, which its integers would round"
    padding = [each for axis in _axes(node, constants[node.input[1]]) for each in (axis.before, axis.behind)]
    return "a transposed convolution that cuts off more than it computes" if min(padding) < 0 else ""


def transposed_convolution(model: onnx.ModelProto, names: set[str]) -> dict[str, str]:
    """Rewrite the named transposed convolutions of `model` in place. Returns, for each new value in phases, the value whose range it has."""
    graph = model.graph
    constants = {each.name: each for each in graph.initializer}
    found: dict[str, str] = {}
    for node in [each for each in graph.node if each.name in names and each.op_type == "ConvTranspose" and not refusal(graph, each)]:
        found |= _rewrite(graph, node, constants)
    drop_unread(graph)
    return found


def _axes(node: onnx.NodeProto, weight: onnx.TensorProto) -> tuple[Axis, Axis]:
    said = attributes(node)
    steps, cut, extra = said.get("strides", [1, 1]), said.get("pads", [0, 0, 0, 0]), said.get("output_padding", [0, 0])
    rows, columns = (Axis.of(weight.dims[2 + each], steps[each], cut[each], cut[2 + each], extra[each]) for each in (0, 1))
    return rows, columns


def phased(weight: NDArray[Any], rows: Axis, columns: Axis) -> NDArray[Any]:
    """Weights (in, out, kernel height, kernel width) of a transposed convolution as those of a convolution: (phases * out, in, taps, taps). Rule 3."""
    whole = np.zeros((*weight.shape[:2], rows.taps * rows.step, columns.taps * columns.step), weight.dtype)
    whole[:, :, : weight.shape[2], : weight.shape[3]] = weight
    parts = whole.reshape(*weight.shape[:2], rows.taps, rows.step, columns.taps, columns.step)[:, :, ::-1, :, ::-1]
    filters = rows.step * columns.step * weight.shape[1]
    return np.ascontiguousarray(parts.transpose(3, 5, 1, 0, 2, 4)).reshape(filters, weight.shape[0], rows.taps, columns.taps)


def _rewrite(graph: onnx.GraphProto, node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> dict[str, str]:
    rows, columns = axes = _axes(node, constants[node.input[1]])
    weight, out, phases = numpy_helper.to_array(constants[node.input[1]]), node.output[0], rows.step * columns.step
    arrays = {"weight": phased(weight, *axes)}
    if len(node.input) > 2 and node.input[2]:
        arrays["bias"] = np.tile(numpy_helper.to_array(constants[node.input[2]]), phases)
    graph.initializer.extend(numpy_helper.from_array(array, f"{out}{PHASES}.{name}") for name, array in arrays.items())
    inputs, pads = [node.input[0], *(f"{out}{PHASES}.{name}" for name in arrays)], [rows.before, columns.before, rows.behind, columns.behind]
    convolution = helper.make_node("Conv", inputs, [out], name=node.name, kernel_shape=[rows.taps, columns.taps], strides=[1, 1], pads=pads)
    made = [convolution]
    if phases > 1:
        activation = _activation(graph, out, constants)
        convolution.output[0] = out + PHASES
        if activation is not None:
            graph.node.remove(activation)
            out = activation.output[0]
            activation.input[0], activation.output[0] = convolution.output[0], out + PHASES
            made.append(activation)
        made += _in_place(graph, out, axes, weight.shape[1])
    place = list(graph.node).index(node)
    graph.node.remove(node)
    for each in reversed(made):
        graph.node.insert(place, each)
    return {each.output[0]: each.output[0].removesuffix(PHASES) for each in made if each.output[0].endswith(PHASES)}


def _gives_output(graph: onnx.GraphProto, value: str) -> bool:
    """Whether the value is an output, or becomes one through an activation alone."""
    answers = {each.name for each in graph.output}
    return value in answers or any(node.output[0] in answers for node in graph.node if value in node.input and node.op_type in ACTIVATIONS)


def _activation(graph: onnx.GraphProto, value: str, constants: Mapping[str, onnx.TensorProto]) -> onnx.NodeProto | None:
    """Rule 4."""
    readers = [node for node in graph.node if value in node.input]
    if len(readers) != 1 or readers[0].op_type not in ACTIVATIONS or value in {each.name for each in graph.output}:
        return None
    return readers[0] if all(each in constants for each in readers[0].input[1:] if each) else None


def _in_place(graph: onnx.GraphProto, out: str, axes: tuple[Axis, Axis], filters: int) -> list[onnx.NodeProto]:
    """Rules 2 and 3: from `out` in phases to `out`."""
    rows, columns = axes
    constants = {
        "none": [0],
        "pieces": [0, 0, 0, rows.step, columns.step * filters],
        "steps": [rows.step, columns.step],
        "filters": [filters],
        "first": [each.first for each in axes],
        "last": [-each.last if each.last else 2**31 - 1 for each in axes],
        "sides": [1, 2],
    }
    graph.initializer.extend(numpy_helper.from_array(np.array(value, np.int64), f"{out}{PHASES}.{name}") for name, value in constants.items())

    def made(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        read = [f"{out}{PHASES}{each}" for each in inputs]
        written = f"{out}{PHASES}{output}" if output else out
        return helper.make_node(kind, read, [written], name=f"edgeport/{written}", **attributes)

    cut = any(each.first or each.last for each in axes)
    return [
        made("Transpose", [""], ".nhwc", perm=[0, 2, 3, 1]),
        made("Reshape", [".nhwc", ".pieces"], ".rows"),
        made("Transpose", [".rows"], ".shuffled", perm=[0, 1, 3, 2, 4]),
        made("Shape", [""], ".given", start=2),
        made("Mul", [".given", ".steps"], ".wanted"),
        made("Concat", [".none", ".wanted", ".filters"], ".shape", axis=0),
        made("Reshape", [".shuffled", ".shape"], ".map"),
        *([made("Slice", [".map", ".first", ".last", ".sides"], ".cut")] if cut else []),
        made("Transpose", [".cut" if cut else ".map"], "", perm=[0, 3, 1, 2]),
    ]
