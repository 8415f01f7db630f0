"""Linear layers on sequences with their bias inside the integer kernel.

A transformer's linear layers read (N, L, K), so that they are MatMul and Add. By the quantizer's rules onnxruntime multiplies integers and adds the bias
in one more pass over floats, or together with GELU, which takes longer then than both apart. Measured at 224x224, onnxruntime 1.32.0, in one thread:
0.88 of the time for 8 images of ViT-tiny, 0.87 for 4 of ConvNeXt-tiny.

1. Applies to MatMul(x, weights) of bytes and constant integers, with one step for x, and to the Add of a constant vector that alone reads it. They
   become MatMulInteger, Cast, Mul and Add, which onnxruntime runs as one MatMulIntegerToFloat. As Gemm, whose kernel adds a bias to the integers, they
   take 4 % longer.
2. That takes a `late_scale`. In a graph without open sizes there is none, and it is left as it is.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.late_scale import late_scale

from .context import Int8Context


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A linear layer whose operands are dequantized. `x`, `weights`: what dequantizes them. `adding`: the Add of the bias. `table`: the integers,
    (inputs, outputs). `steps`: of the weights, one for each output. `bias`: one for each output."""

    x: onnx.NodeProto
    weights: onnx.NodeProto
    adding: onnx.NodeProto
    table: NDArray[np.int8]
    steps: NDArray[np.float32]
    bias: NDArray[np.float32]


def biased_layer(editor: GraphEditor, product: onnx.NodeProto) -> Layer | None:
    """Rule 1; None if it does not apply."""
    x, weights = (editor.producer(name, "DequantizeLinear") for name in product.input)
    adding = editor.only_reader(product.output[0])
    if x is None or weights is None or adding is None or adding.op_type != "Add" or not editor.are_constants([*x.input[1:], *weights.input]):
        return None
    table, step, zero = (editor.array(name) for name in weights.input)
    bias = next((editor.array(name) for name in adding.input if name in editor.constants), None)
    if bias is None or table.ndim != 2 or table.dtype != np.int8 or zero.any() or editor.array(x.input[1]).size != 1:
        return None
    outputs = table.shape[1]
    if bias.size != outputs or bias.shape[-1:] != (outputs,) or step.size not in (1, outputs):
        return None
    return Layer(x=x, weights=weights, adding=adding, table=table, steps=np.broadcast_to(step.reshape(-1), outputs), bias=bias.reshape(-1))


def biased_linear(editor: GraphEditor, context: Int8Context) -> PassResult:
    """Rules 1 and 2, on a graph with its Q/DQ pairs. `changed`: number of layers."""
    changed, integer = 0, context.products | context.followers
    for product in [node for node in editor.nodes if node.op_type == "MatMul" and node.name in integer and editor.has_open_sizes]:
        layer = biased_layer(editor, product)
        if layer is not None:
            _as_integers(editor, product, layer)
            changed += 1
    return PassResult(changed=changed)


def _as_integers(editor: GraphEditor, product: onnx.NodeProto, layer: Layer) -> None:
    made, unread = editor.builder(f"{layer.adding.output[0]}.integer."), list(product.input)
    x, step, zero = layer.x.input
    operands = [x, layer.weights.input[0], zero, made.constant("zero", np.zeros((), np.int8))]
    sums = made.add("MatMulInteger", operands, "sums", name=product.name)
    real = made.add("Cast", [sums], "real", to=onnx.TensorProto.FLOAT)
    scale = late_scale(made, editor.array(step).reshape(()) * layer.steps, x, size=len(layer.table))
    scaled = made.add("Mul", [real, scale], "scaled")
    made.add("Add", [scaled, made.constant("bias", layer.bias)], into=layer.adding.output[0], name=layer.adding.name)
    editor.replace(layer.adding, made.nodes)
    editor.remove([product])
    editor.remove_unread(unread)
