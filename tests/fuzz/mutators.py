"""Mutations that know the form of their input: bytes that are turned at random are no JSON and no model any more, and get no further than the parser."""

import json
import random
from collections.abc import Callable
from typing import Any

import onnx

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    255,
    2**31,
    2**63,
    10**30,
    0.5,
    -0.0,
    1e308,
    "",
    "x",
    "..",
    "/",
    "a/../b",
    "\0",
    "int8",
    [],
    {},
    [[]],
    [1, 2],
]
OPERATORS = (
    "Add",
    "Conv",
    "Gemm",
    "MatMul",
    "Reshape",
    "Resize",
    "Pad",
    "Tile",
    "Expand",
    "Loop",
    "If",
    "Scan",
    "ConstantOfShape",
    "Range",
    "Gather",
    "GatherND",
)
OPERATORS += (
    "ScatterND",
    "TopK",
    "Slice",
    "Split",
    "NonMaxSuppression",
    "OneHot",
    "LSTM",
    "GRU",
    "Einsum",
    "QLinearConv",
    "QuantizeLinear",
    "DequantizeLinear",
)
NUMBERS = (0, 1, -1, 2, 7, 255, 2**15, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63))


def _places(data: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """All (container, key) of a value of JSON."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        found.append((data, key))
        _places(value, found)
    return found


def mutated_json(data: bytes, draw: random.Random) -> bytes:
    """One to three values exchanged, removed, doubled or replaced. Raises ValueError if it is no JSON."""
    whole = json.loads(data)
    for _ in range(draw.randint(1, 3)):
        places = _places(whole, [])
        if not places:
            break
        container, key = draw.choice(places)
        how = draw.randrange(5)
        if how == 0:
            container[key] = draw.choice(VALUES)
        elif how == 1:
            other, name = draw.choice(places)
            container[key] = json.loads(json.dumps(other[name]))
        elif how == 2:
            del container[key]
        elif how == 3 and isinstance(container, dict):
            container[draw.choice(["x", "bytes", "sizes", "every", "format", str(key) + "_"])] = container[key]
        elif isinstance(container[key], int | float) and not isinstance(container[key], bool):
            container[key] = container[key] * draw.choice([-1, 2, 1000, 10**9]) + draw.choice([0, 1, -1])
        elif isinstance(container[key], str):
            container[key] = draw.choice(["../", "", "C:\\", "/"]) + container[key]
    return json.dumps(whole).encode()


def _tensor(model: onnx.ModelProto, draw: random.Random) -> None:
    if not model.graph.initializer:
        return
    tensor = draw.choice(model.graph.initializer)
    how = draw.randrange(5)
    if how == 0 and tensor.dims:
        tensor.dims[draw.randrange(len(tensor.dims))] = draw.choice(NUMBERS)
    elif how == 1:
        tensor.data_type = draw.randrange(0, 28)
    elif how == 2:
        tensor.raw_data = tensor.raw_data[: draw.randrange(len(tensor.raw_data) + 1)]
    elif how == 3:
        values = bytearray(tensor.raw_data)
        for _ in range(min(4, len(values))):
            values[draw.randrange(len(values))] = draw.randrange(256)
        tensor.raw_data = bytes(values)
    else:
        tensor.name = draw.choice(model.graph.initializer).name


def _node(model: onnx.ModelProto, draw: random.Random) -> None:
    node = draw.choice(model.graph.node)
    how = draw.randrange(6)
    if how == 0:
        node.op_type = draw.choice(OPERATORS)
    elif how == 1 and node.input:
        names = [each for other in model.graph.node for each in (*other.input, *other.output)]
        node.input[draw.randrange(len(node.input))] = draw.choice([*names, ""])
    elif how == 2 and node.input:
        del node.input[draw.randrange(len(node.input))]
    elif how == 3 and node.attribute:
        attribute = draw.choice(node.attribute)
        attribute.i = draw.choice(NUMBERS)
        if attribute.ints:
            attribute.ints[draw.randrange(len(attribute.ints))] = draw.choice(NUMBERS)
    elif how == 4:
        node.attribute.extend(list(draw.choice(model.graph.node).attribute))
    else:
        chosen = onnx.NodeProto()
        chosen.CopyFrom(draw.choice(model.graph.node))
        model.graph.node.append(chosen)


def _graph_in_it(model: onnx.ModelProto, draw: random.Random) -> None:
    """The graph within one of its own nodes."""
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)  # before, since protobuf crashes if a message is copied into itself
    attribute = draw.choice(model.graph.node).attribute.add()
    attribute.name, attribute.type = draw.choice(["body", "then_branch", "else_branch"]), onnx.AttributeProto.GRAPH
    attribute.g.CopyFrom(graph)


def _versions(model: onnx.ModelProto, draw: random.Random) -> None:
    model.ir_version = draw.choice([0, 3, 10, 13, 2**31])
    model.opset_import[0].version = draw.choice([1, 7, 13, 20, 26, 2**31])


CHANGES: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (_tensor, _tensor, _node, _node, _node, _graph_in_it, _versions)


def mutated_model(data: bytes, draw: random.Random) -> bytes:
    """One to three changes of tensors, nodes, inputs, attributes or versions. Raises ValueError or DecodeError if it is no model."""
    model = onnx.load_from_string(data)
    if not model.graph.node:
        raise ValueError("no nodes")
    for _ in range(draw.randint(1, 3)):
        draw.choice(CHANGES)(model, draw)
    return bytes(model.SerializeToString())
