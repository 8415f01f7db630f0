"""Attention's product of softmax weights and values, as integers with a scale for each row.

With one scale for all rows, weights under 1/510 become zero: 3 dB from float instead of 49 at 1,024 positions. A row that is divided by its
largest weight uses the whole range, however many positions there are, as in SageAttention (arXiv:2410.02367). Measured on onnxruntime 1.31.1,
two threads, 16 maps of 256 positions and 128 channels: 1.23 ms in float, 0.33 as U8 by S8, 0.81 as U8 by U8. The scaling costs 0.23.

1. Applies to MatMul(weights, values), and to MatMul(values, Transpose(weights)) as `transposed_product` leaves it, if the weights come
   directly from a Softmax over the last axis.
2. weights / their row's maximum, in 0..1, become 0..127, with the rows as blocks of one QuantizeLinear. Dividing first took one more pass over the
   weights: 331 us of 16 maps of 256 positions instead of 229. What the maxima are multiplied by has as many axes as they: times a number without
   axes, onnxruntime takes 16 x 256 x 1 of them one by one, 60 us more. The values become S8 with one scale for all. 7 bits keep the sums of pairs
   inside 16 bits (2 * 127 * 128 = 32,512), so that CPUs without VNNI, which saturate there, give the same numbers.
3. The integer sums times (row's maximum * scale of the values / 127) are the result. MatMulInteger, Cast and Mul are written out: from
   Q/DQ pairs, onnxruntime would make the slow U8 by U8 product.
4. Values that come from integers through layout alone, as from a quantized convolution, keep their scale, and their zero point moves by 128.
   This is one rounding instead of two, on bytes. Measured on AttentionNet, 16 images of 64x64: 2.71 -> 2.53 ms, 29.4 -> 29.6 dB.
5. If nothing else reads these bytes, they are rounded to 7 bits where they are made, so that the same bytes are S8 and none has to move. Clip keeps what
   lies outside the calibrated range at its end, where a byte above 127 would turn negative. A pass over floats less: 115 -> 29 us of 8 images in one
   thread, for 0.1 dB.
"""

from dataclasses import dataclass

import numpy as np
import onnx

from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.nodes import NodeBuilder, attributes, swaps_last_axes, transpose_order

from .context import Int8Context
from .layout import LAYOUT

TOP = 127  # largest quantized weight
OPSET = 21  # the first in which QuantizeLinear has a scale for each block
LONGER_THAN_ANY_ROW = 2**30  # one block is then one row, however many positions there are


@dataclass(frozen=True, kw_only=True)
class Parts:
    """`weights`: what the Softmax gives. `values`: what the product reads. `turned`: the order of axes, if the product is the other way round."""

    weights: str
    values: str
    turned: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ScaledRows:
    """A product that was rewritten: names of its quantized values, of their scale and zero point, and of the product's own scale.

    `largest`: of the rows' largest weights. `result`: of the integer sums times both.
    """

    values: str
    scale: str
    zero_point: str
    product_scale: str
    largest: str
    result: str


def attention_parts(editor: GraphEditor, product: onnx.NodeProto) -> Parts | None:
    """Rule 1; None if it does not apply. Softmax times a table of constants is a product like any other."""
    if product.op_type != "MatMul" or set(product.input) & set(editor.constants):
        return None
    if _is_softmax(editor.producer(product.input[0], "Softmax")):
        return Parts(weights=product.input[0], values=product.input[1])
    second = editor.producer(product.input[1], "Transpose")
    if second is not None and swaps_last_axes(second) and _is_softmax(editor.producer(second.input[0], "Softmax")):
        return Parts(weights=second.input[0], values=product.input[0], turned=tuple(transpose_order(second)))
    return None


def _is_softmax(node: onnx.NodeProto | None) -> bool:
    return node is not None and attributes(node).get("axis", -1) == -1


def attention_product(editor: GraphEditor, context: Int8Context) -> PassResult:
    """Rewrite the products of attention among those that run as integers. `changed`: number of products."""
    found = []
    for product in [each for each in editor.nodes if each.name in context.products]:
        parts = attention_parts(editor, product)
        if parts is not None:
            made = editor.builder(f"{product.output[0]}.rows.")
            found.append(_write_out(made, product, parts, context.ranges[parts.values], len(editor.dims.get(parts.weights, ()))))
            editor.replace(product, made.nodes)
            editor.remove_unread([product.input[1]])
            editor.require_opset(OPSET)
    return PassResult(changed=len(found), facts=tuple(found))


def _write_out(made: NodeBuilder, product: onnx.NodeProto, parts: Parts, value_range: tuple[float, float], axes: int) -> ScaledRows:
    """Rules 2 and 3. `value_range`: the lowest and highest value. `axes`: how many the weights have, if that is known."""
    low, high = min(value_range[0], 0.0), max(value_range[1], 0.0)
    value_scale = (high - low) / 255 or 1.0
    last, unit = made.constant("last", [-1]), made.constant("unit", np.full([1] * axes, 1 / TOP, np.float32))
    none, scale = made.constant("none", np.array(0, np.uint8)), made.constant("step", np.array(value_scale, np.float32))
    zero, both = (
        made.constant("zero", np.array(round(-128 - low / value_scale), np.int8)),
        made.constant("both", np.array(value_scale / TOP, np.float32)),
    )
    values = made.add("Transpose", [parts.values], "values", perm=list(parts.turned)) if parts.turned else parts.values
    largest = made.add("ReduceMax", [parts.weights, last], "largest", keepdims=1)
    steps = made.add("Mul", [largest, unit], "steps")
    weights8 = made.add("QuantizeLinear", [parts.weights, steps], "weights8", axis=-1, block_size=LONGER_THAN_ANY_ROW)
    values8 = made.add("QuantizeLinear", [values, scale, zero], "values8")
    sums = made.add("MatMulInteger", [weights8, values8, none, zero], "sums", name=product.name)
    real = made.add("Cast", [sums], "real", to=onnx.TensorProto.FLOAT)
    scales = made.add("Mul", [largest, both], "scale")
    result = made.add("Mul", [real, scales], "result", into="" if parts.turned else product.output[0])
    if parts.turned:
        made.add("Transpose", [result], into=product.output[0], perm=list(parts.turned))
    return ScaledRows(values=values8, scale=scale, zero_point=zero, product_scale=both, largest=largest, result=result)


def keep_value_scales(editor: GraphEditor, context: Int8Context) -> PassResult:
    """Rule 4, on a graph with its Q/DQ pairs. `changed`: number of products."""
    return PassResult(changed=sum(_keep_scale(editor, rows) for rows in context.known(ScaledRows)))


def _keep_scale(editor: GraphEditor, rows: ScaledRows) -> bool:
    """Whether rule 4 applied: the values are dequantized from U8 with one scale."""
    quantized, chain = editor.producers[rows.values], []
    before = quantized.input[0]
    source = editor.producers.get(quantized.input[0])
    while source is not None and source.op_type in LAYOUT:
        chain.append(source)
        source = editor.producers.get(source.input[0])
    if source is None or source.op_type != "DequantizeLinear" or not set(source.input[1:]) <= set(editor.constants):
        return False
    scale, zero = (editor.array(name) for name in source.input[1:])
    if scale.size != 1 or zero.dtype != np.uint8:
        return False
    made, value = editor.builder(rows.values.removesuffix("rows.values8")), source.input[0]
    for index, node in enumerate(reversed(chain)):
        value = made.repeat(node, value, f"bytes{index}")
    if _is_read_by_nothing_else(editor, source, chain):
        _make_seven_bits(editor, made, rows, source, value)
        editor.replace(quantized, made.nodes)
    else:
        editor.set_array(rows.scale, scale.reshape(()))
        editor.set_array(rows.zero_point, np.array(int(zero) - 128, np.int8))
        editor.set_array(rows.product_scale, np.array(float(scale) / TOP, np.float32))
        same = made.add("DequantizeLinear", [value, *source.input[1:]], "same")
        editor.insert_before(quantized, made.nodes)
        editor.set_input(quantized, 0, same)
    editor.remove_unread([before])
    return True


def _is_read_by_nothing_else(editor: GraphEditor, source: onnx.NodeProto, chain: list[onnx.NodeProto]) -> bool:
    """Whether a QuantizeLinear makes the bytes for this product alone, with a scale and zero point that are theirs alone."""
    maker = editor.producer(source.input[0], "QuantizeLinear")
    links = [source.input[0], source.output[0], *(each.output[0] for each in chain)]
    own = maker is not None and all(len(editor.readers[name]) == 2 for name in source.input[1:]) and list(maker.input[1:]) == list(source.input[1:])
    return own and all(editor.only_reader(each) is not None for each in links)


def _make_seven_bits(editor: GraphEditor, made: NodeBuilder, rows: ScaledRows, source: onnx.NodeProto, value: str) -> None:
    """Rule 5. `value`: the bytes as the product wants them."""
    scale, zero = (editor.array(name) for name in source.input[1:])
    wide, middle = np.asarray(scale * (255 / TOP), np.float32), round(int(zero) * TOP / 255)
    editor.set_array(source.input[1], wide)
    editor.set_array(source.input[2], np.asarray(np.full_like(zero, middle)))
    editor.set_array(rows.zero_point, np.array(middle, np.int8))
    editor.set_array(rows.product_scale, np.array(float(wide) / TOP, np.float32))
    within = made.add("Clip", [value, "", made.constant("top", np.array(TOP, np.uint8))], "within")
    made.add("Cast", [within], into=rows.values, to=onnx.TensorProto.INT8)
