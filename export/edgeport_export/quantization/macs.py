"""Multiply-accumulate operations (MACs) of each node of a graph, and the nodes that run as integers in onnxruntime."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeport_export.rewrites.graph import GraphEditor
from edgeport_export.rewrites.nodes import attributes, every_node
from edgeport_runtime import SessionOptions
from edgeport_runtime.device import open_session, session_settings
from edgeport_runtime.engine import Arrays
from edgeport_runtime.installation import onnxruntime

RECURRENT = ("GRU", "LSTM", "RNN")
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", *RECURRENT)
INTEGER_PRODUCTS = ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")


def count_macs(model: onnx.ModelProto, inputs: Arrays) -> dict[str, int]:
    """MACs of every convolution, matrix product and recurrent layer at the shapes of `inputs`, by node name.

    The shapes are read from a real run, because shape inference gives up on computed reshapes.
    """
    nodes = [node for node in model.graph.node if node.op_type in PRODUCTS]
    shapes: dict[str, tuple[int, ...]] = {each.name: tuple(each.dims) for each in model.graph.initializer}
    shapes |= {name: array.shape for name, array in inputs.items()}
    wanted = sorted({name for node in nodes for name in (node.output[0], *node.input[:3]) if name} - set(shapes))
    if wanted:
        values = session_with_outputs(model, wanted).run(wanted, inputs)
        shapes |= {name: value.shape for name, value in zip(wanted, values, strict=True)}
    return {node.name: _macs(node, shapes) for node in nodes}


def session_with_outputs(model: onnx.ModelProto, values: list[str]) -> Any:
    """A session whose outputs are the named values of the graph, of whatever type."""
    editor = GraphEditor.of_copy(model)
    editor.set_outputs(values)
    return open_session(editor.model.SerializeToString(), SessionOptions())


def value_shapes(model: onnx.ModelProto, values: Sequence[str], inputs: Arrays) -> dict[str, tuple[int, ...]]:
    """Sizes of values at the shapes of `inputs`, from a real run that hands out the sizes alone, so that no values are kept."""
    editor = GraphEditor.of_copy(model)
    shapes = [f"sizes of {value}" for value in values]
    editor.append([onnx.helper.make_node("Shape", [value], [shape], name=shape) for value, shape in zip(values, shapes, strict=True)])
    found = session_with_outputs(editor.model, shapes).run(shapes, inputs)
    return {value: tuple(map(int, shape)) for value, shape in zip(values, found, strict=True)}


def _macs(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    if node.op_type == "Einsum":  # one product for every combination of the indices
        equation = attributes(node)["equation"].decode().replace(" ", "").replace("...", "")
        return math.prod(_index_sizes(equation.split("->")[0].split(","), [shapes[name] for name in node.input]).values())
    first, weight = shapes[node.input[0]], shapes[node.input[1]]
    if node.op_type in RECURRENT:  # (steps, batch, in) by (directions, gates, in), and the state by (directions, gates, hidden)
        return math.prod(first[:2]) * (math.prod(weight) + math.prod(shapes[node.input[2]]))
    out = shapes[node.output[0]]
    if node.op_type == "Conv":  # weight (out, in / groups, *kernel): one product of that length for each output value
        return math.prod(out) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":  # weight (in, out / groups, *kernel): each input value is spread over it
        return math.prod(first) * math.prod(weight[1:])
    return math.prod(out) * (first[0] if attributes(node).get("transA") else first[-1])


def _index_sizes(terms: list[str], shapes: list[tuple[int, ...]]) -> dict[str, int]:
    """The size of every index of an Einsum. Axes of an ellipsis count as indices of their own, from the last one on."""
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        spare = len(shape) - len(term)
        for index, size in zip([*(f"...{spare - each}" for each in range(spare)), *term], shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 1))
    return sizes


def integer_nodes(model: bytes) -> set[str]:
    """Names of the nodes that run as integer products once onnxruntime has optimized the graph for this machine."""
    ort = onnxruntime()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        settings = session_settings(ort, SessionOptions())
        settings.optimized_model_filepath = str(path)
        ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        optimized: Any = onnx.load(path)
    return {unfused_name(node.name) for node in every_node(optimized.graph) if node.op_type in INTEGER_PRODUCTS}


def unfused_name(name: str) -> str:
    """The name of a node before onnxruntime fused it: it appends a token, as in "layer1.0.conv1/Conv_token_4"."""
    return name.split("_token_")[0]


def share_of_macs(macs: Mapping[str, int], names: set[str]) -> float:
    """The share, 0..1, of all MACs that the named nodes do."""
    total = sum(macs.values())
    return float(np.clip(sum(count for name, count in macs.items() if name in names) / total, 0, 1)) if total else 0.0
