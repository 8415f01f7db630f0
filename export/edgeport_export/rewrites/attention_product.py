"""Attention's product of softmax weights and values, as integers with a scale for each row.

With one scale for all, weights under 1/510 become zero: 3 dB from float instead of 49 at 1,024 positions. Each row divided by its largest
weight uses the whole range however many positions there are, as SageAttention does it (arXiv:2410.02367). Measured on onnxruntime 1.31.1,
two threads, 16 maps of 256 positions and 128 channels: 1.23 ms in float, 0.33 as U8 by S8, 0.81 as U8 by U8; the scaling costs 0.23.

1. Applies to MatMul(weights, values), and to MatMul(values, Transpose(weights)) as `transposed_product` leaves it, where the weights come
   straight from a Softmax over the last axis.
2. weights / their row's maximum, in 0..1, become 0..127; the values become S8 with one scale for all. 7 bits keep the sums of
   pairs inside 16 bits (2 * 127 * 128 = 32,512), so that CPUs without VNNI, which saturate there, give the same numbers.
3. The integer sums times (row's maximum * scale of the values / 127) are the result. MatMulInteger, Cast and Mul are written out: as
   Q/DQ, onnxruntime merges the pairs and takes the slow U8 by U8.
4. Values that come from integers through layout alone (a quantised convolution gives them) keep their step, and their zero moves by 128: one
   rounding instead of two, and the layout is that of bytes. Measured on AttentionNet, 16 images of 64x64: 2.71 -> 2.53 ms, 29.4 -> 29.6 dB.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .transposed_product import order, swaps

TOP = 127  # of the weights
LAYOUT = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")
VALUES8, STEP, ZERO, BOTH = (f".rows.{each}" for each in ("values8", "step", "zero", "both"))  # what rule 4 finds and changes


@dataclass(frozen=True, kw_only=True)
class Parts:
    """`weights`: what the Softmax gives. `values`: what the product reads. `turned`: the order of axes where the product is the other way round."""

    weights: str
    values: str
    turned: tuple[int, ...] = ()


def attention_parts(graph: onnx.GraphProto, product: onnx.NodeProto) -> Parts | None:
    """Rule 1; None where the product is another one."""
    if product.op_type != "MatMul":
        return None
    producers = {out: node for node in graph.node for out in node.output}
    if set(product.input) & {each.name for each in graph.initializer}:  # softmax times a table of constants is a product like any other
        return None
    first, second = (producers.get(name) for name in product.input)
    if first is not None and _is_softmax(first):
        return Parts(weights=product.input[0], values=product.input[1])
    if second is not None and swaps(second):
        before = producers.get(second.input[0])
        if before is not None and _is_softmax(before):
            return Parts(weights=second.input[0], values=product.input[0], turned=tuple(order(second)))
    return None


def _is_softmax(node: onnx.NodeProto) -> bool:
    return node.op_type == "Softmax" and next((each.i for each in node.attribute if each.name == "axis"), -1) == -1


def attention_product(model: onnx.ModelProto, names: set[str], limits: Mapping[str, tuple[float, float]]) -> None:
    """Rewrite the named products of `model` in place. `limits`: the range of their values, by name."""
    graph = model.graph
    for product in [each for each in graph.node if each.name in names]:
        parts = attention_parts(graph, product)
        if parts is None:
            continue
        place = list(graph.node).index(product)
        graph.node.remove(product)
        for node in reversed(_nodes(graph, product, parts, limits[parts.values])):
            graph.node.insert(place, node)


def _nodes(graph: onnx.GraphProto, product: onnx.NodeProto, parts: Parts, limits: tuple[float, float]) -> list[onnx.NodeProto]:
    """Rules 2 and 3."""
    out = product.output[0]
    prefix = f"{out}.rows"
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    step = (high - low) / 255 or 1.0
    constants = {
        "last": np.array([-1]),
        "unit": np.array(1 / TOP, np.float32),
        "none": np.array(0, np.uint8),
        "step": np.array(step, np.float32),
        "zero": np.array(round(-128 - low / step), np.int8),
        "both": np.array(step / TOP, np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(value, f"{prefix}.{name}") for name, value in constants.items())

    def made(kind: str, inputs: list[str], output: str, name: str = "", **attributes: Any) -> onnx.NodeProto:
        read = [f"{prefix}{each}" if each.startswith(".") else each for each in inputs]
        written = f"{prefix}{output}" if output.startswith(".") else output
        return helper.make_node(kind, read, [written], name=name or f"edgeport/{written}", **attributes)

    values = [made("Transpose", [parts.values], ".values", perm=list(parts.turned))] if parts.turned else []
    return [
        *values,
        made("ReduceMax", [parts.weights, ".last"], ".largest", keepdims=1),
        made("Reciprocal", [".largest"], ".inverse"),
        made("Mul", [parts.weights, ".inverse"], ".share"),  # 2 % of AttentionNet at 16 images of 64x64 faster than a division of each
        made("QuantizeLinear", [".share", ".unit", ".none"], ".weights8"),
        made("QuantizeLinear", [".values" if values else parts.values, ".step", ".zero"], ".values8"),
        made("MatMulInteger", [".weights8", ".values8", ".none", ".zero"], ".sums", name=product.name),
        made("Cast", [".sums"], ".real", to=onnx.TensorProto.FLOAT),
        made("Mul", [".largest", ".both"], ".scale"),
        made("Mul", [".real", ".scale"], ".result" if values else out),
        *([made("Transpose", [".result"], out, perm=list(parts.turned))] if values else []),
    ]


def keep_steps(model: onnx.ModelProto) -> int:
    """Rule 4, on a graph with its Q/DQ pairs. Returns the number of products that were changed."""
    graph = model.graph
    producers = {out: node for node in graph.node for out in node.output}
    count = 0
    for quantized in [node for node in graph.node if node.op_type == "QuantizeLinear" and node.output[0].endswith(VALUES8)]:
        chain, source = [], producers.get(quantized.input[0])
        while source is not None and source.op_type in LAYOUT:
            chain.append(source)
            source = producers.get(source.input[0])
        if source is not None and source.op_type == "DequantizeLinear" and _move(graph, quantized, chain[::-1], source):
            count += 1
    _drop_unread(graph)
    return count


def _move(graph: onnx.GraphProto, quantized: onnx.NodeProto, chain: list[onnx.NodeProto], source: onnx.NodeProto) -> bool:
    """The layout on the bytes that `source` dequantises, and after it a pair that moves the zero alone; False where they are not U8 with one step."""
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    step, zero = (constants.get(name) for name in source.input[1:])
    if step is None or zero is None or step.size != 1 or zero.dtype != np.uint8:
        return False
    prefix = quantized.output[0].removesuffix(VALUES8)
    changed = {STEP: step.reshape(()), ZERO: np.array(int(zero) - 128, np.int8), BOTH: np.array(float(step) / TOP, np.float32)}
    for each in graph.initializer:
        suffix = each.name.removeprefix(prefix)
        if each.name.startswith(prefix) and suffix in changed:
            each.CopyFrom(numpy_helper.from_array(changed[suffix], each.name))
    value, made = source.input[0], []
    for index, node in enumerate(chain):
        moved = onnx.NodeProto()
        moved.CopyFrom(node)
        moved.input[0], moved.output[0], moved.name = value, f"{prefix}.bytes{index}", f"edgeport/{prefix}.bytes{index}"
        value = moved.output[0]
        made.append(moved)
    made.append(helper.make_node("DequantizeLinear", [value, *source.input[1:]], [f"{prefix}.same"], name=f"edgeport/{prefix}.same"))
    quantized.input[0] = f"{prefix}.same"
    place = list(graph.node).index(quantized)
    for node in reversed(made):
        graph.node.insert(place, node)
    return True


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Remove the layout that only the values' float went through."""
    read = {name for node in graph.node for name in node.input} | {each.name for each in graph.output}
    idle = [node for node in graph.node if node.op_type in (*LAYOUT, "DequantizeLinear") and not read & set(node.output)]
    for node in idle:
        graph.node.remove(node)
    if idle:
        _drop_unread(graph)
