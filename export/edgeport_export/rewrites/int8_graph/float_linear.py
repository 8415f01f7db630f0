"""Linear layers between float operators give floats: their integer sums are scaled once, and the bias is added in float.

By the quantizer's own rules, a linear layer before LayerNorm, GELU or a scaled residual is rounded. Its bias is rounded to 8 bits and added to
integers, the result is rounded again, and then dequantized for its reader. These are three more passes, and the bias loses its precision. Measured on
ConvNeXt-tiny, 16 images of 224x224, two threads, side by side: 448 -> 423 ms at the same 28.2 dB. onnxruntime takes MatMulIntegerToFloat
for such a product, and for Gemm a QGemm that gives floats.

1. What follows a MatMul or Gemm that runs as integers (the Add of a constant to a MatMul, Relu, Clip) stays float if no integer operator reads
   its result, directly or through layout.
2. If no integer operator reads what a MatMul or Gemm gives, the Q/DQ pair after it goes. This rule does not apply to outputs of the graph.
3. A Relu or Clip that gives an output of the graph stays float: the quantizer makes it a part of the rounding after it, and `last_pairs`
   would remove that with the Relu.
"""

from edgeport_export.rewrites.graph import GraphEditor, PassResult

from .context import Int8Context
from .layout import LAYOUT

LINEAR = ("MatMul", "Gemm")
MERGED = ("Relu", "Clip")  # activations that the quantizer makes a part of the rounding after them


def float_followers(editor: GraphEditor, context: Int8Context) -> set[str]:
    """Rules 1 and 3: names of the followers that stay float."""
    after_linear, staying = _after_linear(editor, context.products), set[str]()
    while True:
        integer = context.products | context.followers - staying
        found = {
            node.name
            for node in editor.nodes
            if node.name in context.followers - staying
            and (node.name in after_linear or (node.op_type in MERGED and node.output[0] in editor.outputs))
            and not _feeds_integers(editor, node.output[0], integer)
        }
        if not found:
            return staying
        staying |= found  # what comes before them may stay float then, too


def _after_linear(editor: GraphEditor, products: frozenset[str]) -> set[str]:
    """Names of biases and activations directly after the linear layers among `products`."""
    sums = {node.output[0] for node in editor.nodes if node.op_type == "MatMul" and node.name in products}
    given = {node.output[0] for node in editor.nodes if node.op_type in LINEAR and node.name in products}
    found = set()
    for node in editor.nodes:
        bias = node.op_type == "Add" and set(editor.constants) & set(node.input) and sums & set(node.input)
        if bias or (node.op_type in MERGED and node.input[0] in given):
            found.add(node.name)
            given.add(node.output[0])
    return found


def float_linear(editor: GraphEditor, context: Int8Context) -> PassResult:
    """Rule 2, on a graph with its Q/DQ pairs. `changed`: number of pairs that went."""
    integer, changed = context.products | context.followers, 0
    for last in [node for node in editor.nodes if node.op_type == "DequantizeLinear" and node.output[0] not in editor.outputs]:
        first = editor.producer(last.input[0], "QuantizeLinear")
        product = editor.producer(first.input[0], *LINEAR) if first is not None else None
        if first is None or product is None or product.name not in integer or editor.readers[first.output[0]] != [last]:
            continue
        if not _feeds_integers(editor, last.output[0], integer):
            editor.read_instead(last.output[0], product.output[0])
            editor.remove([first, last])
            changed += 1
    return PassResult(changed=changed)


def _feeds_integers(editor: GraphEditor, value: str, integer: frozenset[str]) -> bool:
    """Whether an operator of `integer`, or a rounding, reads the value, directly or through layout."""
    readers = editor.readers.get(value, [])
    return any(
        node.name in integer or node.op_type == "QuantizeLinear" or (node.op_type in LAYOUT and _feeds_integers(editor, node.output[0], integer))
        for node in readers
    )
