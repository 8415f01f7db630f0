"""Nearest upsampling by whole numbers as copies, channels last.

Decoders, generators and feature pyramids grow their maps so, and onnxruntime's Resize of 8-bit maps looks every position up: 64 channels from 64x64 to
128x128, batch 16, take some 14 ms of 26 with a 1x1 convolution before and behind, copied in pieces of 64 bytes some 2 of 14 (onnxruntime
1.31.1, two threads).

1. Applies to a Resize of (N, C, H, W) by nearest, whose constant factors are whole numbers on height and width and 1 elsewhere, and which takes for
   output position i the input position floor(i / factor): each position is repeated.
2. The same values, moved: the output has the range of the input.
"""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .constants import drop_unread
from .nodes import attributes


def repeats(graph: onnx.GraphProto, node: onnx.NodeProto) -> tuple[int, int] | None:
    """How often each row and each column is repeated; None where rule 1 does not apply."""
    said = attributes(node)
    plain = said.get("coordinate_transformation_mode") == b"asymmetric" and said.get("nearest_mode") == b"floor" and "axes" not in said
    if node.op_type != "Resize" or said.get("mode", b"nearest") != b"nearest" or not plain or len(node.input) != 3:
        return None
    factors = next((numpy_helper.to_array(each) for each in graph.initializer if each.name == node.input[2]), np.array([]))
    whole = len(factors) == 4 and all(float(each).is_integer() and each >= 1 for each in factors) and factors[0] == factors[1] == 1
    return (int(factors[2]), int(factors[3])) if whole else None


def nearest_upsampling(model: onnx.ModelProto, names: set[str]) -> dict[str, str]:
    """Rewrite the named nodes of `model` in place, those to which rule 1 applies. Returns, for each output, the value whose range it has."""
    graph = model.graph
    found = {}
    for node in [each for each in graph.node if each.name in names]:
        times = repeats(graph, node)
        if times is not None:
            found[node.output[0]] = node.input[0]
            place = list(graph.node).index(node)
            graph.node.remove(node)
            for each in reversed(_copies(graph, node.input[0], node.output[0], times)):
                graph.node.insert(place, each)
    drop_unread(graph)
    return found


def _copies(graph: onnx.GraphProto, source: str, out: str, times: tuple[int, int]) -> list[onnx.NodeProto]:
    constants = {"axes": [2, 4], "copies": [1, 1, times[0], 1, times[1], 1], "times": list(times), "batch": [0], "channels": [-1]}
    graph.initializer.extend(numpy_helper.from_array(np.array(value, np.int64), f"{out}.{name}") for name, value in constants.items())

    def made(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        read = [f"{out}{each}" if each.startswith(".") else each for each in inputs]
        written = f"{out}{output}"
        return helper.make_node(kind, read, [written], name=f"edgeport/{written}", **attributes)

    return [
        made("Transpose", [source], ".nhwc", perm=[0, 2, 3, 1]),
        made("Unsqueeze", [".nhwc", ".axes"], ".apart"),
        made("Expand", [".apart", ".copies"], ".repeated"),
        made("Shape", [source], ".given", start=2),
        made("Mul", [".given", ".times"], ".wanted"),
        made("Concat", [".batch", ".wanted", ".channels"], ".shape", axis=0),
        made("Reshape", [".repeated", ".shape"], ".map"),
        made("Transpose", [".map"], "", perm=[0, 3, 1, 2]),
    ]
