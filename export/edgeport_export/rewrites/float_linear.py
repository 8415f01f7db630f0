"""Linear layers between float operators give floats: their integer sums are scaled once, and the bias is added in float.

By the quantizer's own rules a linear layer before LayerNorm, GELU or a scaled residual is rounded, its bias rounded to 8 bits and added to
integers, the result rounded again, and then dequantised for its reader: three passes more, and the bias's precision. Measured on
ConvNeXt-tiny, 16 images of 224x224, two threads, side by side: 448 -> 423 ms at the same 28.2 dB. onnxruntime takes MatMulIntegerToFloat
for such a product, and for Gemm a QGemm that gives floats.

1. What follows a MatMul or Gemm that runs as integers (the Add of a constant to a MatMul, Relu, Clip) stays float where no integer operator reads
   its result, through layout or at once.
2. Where no integer operator reads what a MatMul or Gemm gives, the Q/DQ pair behind it goes. An output of the graph is none of this rule's.
3. A Relu or Clip that gives an output of the graph stays float: the quantizer makes it a part of the rounding behind it, and that one is removed
   there (`quantize.drop_last_pairs`), with the Relu.
"""

import onnx

from .attention_product import LAYOUT

ACTIVATIONS = ("Relu", "Clip")  # which the quantizer makes a part of the rounding behind them


def float_followers(graph: onnx.GraphProto, products: set[str], followers: set[str]) -> set[str]:
    """Rules 1 and 3: names among the `followers` of `products`, all of which run as integers otherwise, that stay float."""
    outputs = {each.name for each in graph.output}
    behind = _behind_linear(graph, products)
    staying: set[str] = set()
    while True:
        integer = products | followers - staying
        found = {
            node.name
            for node in graph.node
            if node.name in followers - staying
            and (node.name in behind or (node.op_type in ACTIVATIONS and node.output[0] in outputs))
            and not _feeds_integers(graph, node.output[0], integer)
        }
        if not found:
            return staying
        staying |= found  # what comes before them may stay float then, too


def _behind_linear(graph: onnx.GraphProto, products: set[str]) -> set[str]:
    """Names of biases and activations right behind the linear layers among `products`."""
    constants = {each.name for each in graph.initializer}
    sums = {node.output[0] for node in graph.node if node.op_type == "MatMul" and node.name in products}
    given = sums | {node.output[0] for node in graph.node if node.op_type == "Gemm" and node.name in products}
    found = set()
    for node in graph.node:
        bias = node.op_type == "Add" and constants & set(node.input) and sums & set(node.input)
        if bias or (node.op_type in ACTIVATIONS and node.input[0] in given):
            found.add(node.name)
            given.add(node.output[0])
    return found


def give_floats(graph: onnx.GraphProto, integer: set[str]) -> None:
    """Rule 2, in place, on a graph with its Q/DQ pairs."""
    producers = {out: node for node in graph.node for out in node.output}
    outputs = {each.name for each in graph.output}
    for last in [node for node in graph.node if node.op_type == "DequantizeLinear" and node.output[0] not in outputs]:
        first = producers.get(last.input[0])
        product = producers.get(first.input[0]) if first is not None and first.op_type == "QuantizeLinear" else None
        if first is None or product is None or product.op_type not in ("MatMul", "Gemm") or product.name not in integer:
            continue
        if [node for node in graph.node if first.output[0] in node.input] == [last] and not _feeds_integers(graph, last.output[0], integer):
            for node in graph.node:
                for index, name in enumerate(node.input):
                    if name == last.output[0]:
                        node.input[index] = product.output[0]
            graph.node.remove(first)
            graph.node.remove(last)


def _feeds_integers(graph: onnx.GraphProto, value: str, integer: set[str]) -> bool:
    """Whether an operator of `integer`, or a rounding, reads the value, through layout or at once."""
    for node in graph.node:
        if value in node.input and (node.name in integer or node.op_type == "QuantizeLinear"):
            return True
        if value in node.input and node.op_type in LAYOUT and _feeds_integers(graph, node.output[0], integer):
            return True
    return False
