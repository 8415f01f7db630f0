"""HardSigmoid in steps for which onnxruntime has integer kernels; for itself it has none.

MobileNetV3 (arXiv:1905.02244) has it in its squeeze-and-excitation gates and, as x * HardSigmoid(x), which is HardSwish, after most of its
convolutions: left float, every such map is dequantised, computed on and rounded again. mobilenet_v3_large at 224, batch 16: 42.7 ms so, 31.4
in steps (onnxruntime 1.31.1, two threads).

1. HardSigmoid(x) = Clip(alpha x + beta, 0, 1) is alpha * Clip(x + beta / alpha, 0, 1 / alpha) for alpha > 0. The range of each step is known, and
   Clip's limits are the ends of its integers, so that no Clip runs. One that gives an output stays float: 255 steps are few for an answer.
2. The factor alpha stands between two pairs of scales that differ by it, whose integers are the same: once they are there, `drop_factors` removes it.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .constants import drop_unread
from .nodes import attributes

FACTOR = "edgeport/factor/"  # prefix of the names of rule 2's products


def has_steps(graph: onnx.GraphProto, node: onnx.NodeProto) -> bool:
    """Whether rule 1 applies."""
    return node.op_type == "HardSigmoid" and _line(node)[0] > 0 and node.output[0] not in {each.name for each in graph.output}


def hard_sigmoid(model: onnx.ModelProto, names: set[str]) -> dict[str, tuple[float, float]]:
    """Rewrite the named nodes of `model` in place, and put the new ones that have integer kernels into `names`. Returns the ranges of new values."""
    graph = model.graph
    ranges: dict[str, tuple[float, float]] = {}
    for node in [each for each in graph.node if each.name in names and has_steps(graph, each)]:
        (alpha, beta), out = _line(node), node.output[0]
        constants = {"offset": beta / alpha, "none": 0.0, "ceiling": 1 / alpha, "alpha": alpha}
        graph.initializer.extend(numpy_helper.from_array(np.array(value, np.float32), f"{out}.{name}") for name, value in constants.items())
        made = [
            helper.make_node("Add", [node.input[0], f"{out}.offset"], [f"{out}.sum"], name=f"{node.name}.sum"),
            helper.make_node("Clip", [f"{out}.sum", f"{out}.none", f"{out}.ceiling"], [f"{out}.clipped"], name=f"{node.name}.clipped"),
            helper.make_node("Mul", [f"{out}.clipped", f"{out}.alpha"], [out], name=FACTOR + out),
        ]
        place = list(graph.node).index(node)
        graph.node.remove(node)
        for each in reversed(made):
            graph.node.insert(place, each)
        names |= {each.name for each in made[:2]}
        ranges |= {f"{out}.sum": (0.0, 1 / alpha), f"{out}.clipped": (0.0, 1 / alpha), out: (0.0, 1.0)}
    return ranges


def drop_factors(model: onnx.ModelProto) -> None:
    """Rule 2: QuantizeLinear(alpha * DequantizeLinear(q)) becomes q, where alpha is what their scales differ by."""
    graph = model.graph
    producers = {out: node for node in graph.node for out in node.output}
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer if not each.dims}
    for factor in [node for node in graph.node if node.name.startswith(FACTOR)]:
        before = producers[factor.input[0]]
        for behind in [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == factor.output[0]]:
            if before.op_type == "DequantizeLinear" and _same_integers(before, behind, constants[factor.input[1]], constants):
                for node, index in _readers(graph, behind.output[0]):
                    node.input[index] = before.input[0]
                graph.node.remove(behind)
        if not any(_readers(graph, factor.output[0])):
            graph.node.remove(factor)
            if not any(_readers(graph, before.output[0])):
                graph.node.remove(before)
    drop_unread(graph)


def _line(node: onnx.NodeProto) -> tuple[float, float]:
    said = attributes(node)
    return said.get("alpha", 0.2), said.get("beta", 0.5)


def _same_integers(before: onnx.NodeProto, behind: onnx.NodeProto, factor: "np.ndarray", constants: "dict[str, np.ndarray]") -> bool:
    scales, zeros = ([constants[node.input[index]] for node in (before, behind)] for index in (1, 2))
    return bool(np.isclose(scales[0] * factor, scales[1], rtol=1e-6)) and bool(zeros[0] == zeros[1])


def _readers(graph: onnx.GraphProto, value: str) -> Iterator[tuple[onnx.NodeProto, int]]:
    return ((node, index) for node in graph.node for index, name in enumerate(node.input) if name == value)
