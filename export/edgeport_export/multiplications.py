"""How many multiplications each node of a graph does, and which of them run as integers in onnxruntime."""

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeport_runtime import SessionOptions
from edgeport_runtime.device import onnxruntime, open_session
from edgeport_runtime.engine import Arrays

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
INTEGER_PRODUCTS = ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")


def count_multiplications(model: onnx.ModelProto, inputs: Arrays) -> dict[str, int]:
    """Multiplications of every convolution and matrix product at the shapes of `inputs`, by node name.

    The shapes are read from a real run, because shape inference gives up on computed reshapes.
    """
    nodes = [node for node in model.graph.node if node.op_type in PRODUCTS]
    shapes: dict[str, tuple[int, ...]] = {each.name: tuple(each.dims) for each in model.graph.initializer}
    shapes |= {name: array.shape for name, array in inputs.items()}
    wanted = sorted({name for node in nodes for name in (node.output[0], *node.input[:2])} - set(shapes))
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)  # of whatever type
    if wanted:
        values = open_session(probe.SerializeToString(), SessionOptions()).run(wanted, inputs)
        shapes |= {name: value.shape for name, value in zip(wanted, values, strict=True)}
    return {node.name: _multiplications(node, shapes) for node in nodes}


def _multiplications(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    first, weight, out = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
    if node.op_type == "Conv":  # weight (out, in / groups, *kernel): one product of that length for each output value
        return math.prod(out) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":  # weight (in, out / groups, *kernel): each input value is spread over it
        return math.prod(first) * math.prod(weight[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(out) * (first[0] if transposed else first[-1])


def integer_nodes(model: bytes) -> set[str]:
    """Names of the nodes that run as integer products once onnxruntime has optimised the graph for this machine."""
    ort = onnxruntime()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        settings = ort.SessionOptions()
        settings.optimized_model_filepath = str(path)
        settings.log_severity_level = 3
        ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        optimised: Any = onnx.load(path)
    # fused nodes carry their name with a token behind it: "layer1.0.conv1/Conv_token_4"
    return {node.name.split("_token_")[0] for node in optimised.graph.node if node.op_type in INTEGER_PRODUCTS}


def share(counts: Mapping[str, int], names: set[str]) -> float:
    """The share, 0..1, of all multiplications that the named nodes do."""
    total = sum(counts.values())
    return float(np.clip(sum(count for name, count in counts.items() if name in names) / total, 0, 1)) if total else 0.0
