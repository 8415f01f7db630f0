"""Scaled-dot-product attention of any rank, written out: softmax(scale · query · keyᵀ + mask) · value.

The exporter's translation (onnxscript 0.7.2) refuses anything but four axes, while PyTorch takes (…, length, channels), and gives other numbers
than PyTorch if a mask forbids a query everything: the mean of the values, or NaN.

1. The scale is applied to the query, which is the smaller product.
2. Key and value heads that several query heads share (`enable_gqa`) are repeated, each one for the query heads that follow one another.
3. A query that its mask forbids everything gives zeros, as in PyTorch since 2.5, and not softmax's 0 / 0.
"""

import math
from typing import Any

import onnxscript
import torch
from onnx_ir import DataType

BOOL = DataType.BOOL
op: Any = onnxscript.opset20  # its annotations know only constants, not the values of a graph


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """aten::scaled_dot_product_attention on (…, length, channels). Dropout is none of a trained network's."""
    rank = len(key.shape)
    if enable_gqa:
        key, value = (_repeated(each, query.shape[-3]) for each in (key, value))
    scaled = op.Mul(query, _scale(query) if scale is None else _like(scale, query))
    scores = op.MatMul(scaled, op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2]))  # (…, L, S)
    if is_causal:
        allowed = op.Cast(op.Trilu(op.Expand(op.Constant(value_float=1.0), op.Shape(scores, start=-2)), upper=0), to=BOOL)
        return op.MatMul(op.Softmax(op.Add(scores, _bias(allowed, scores)), axis=-1), value)
    if attn_mask is None:
        return op.MatMul(op.Softmax(scores, axis=-1), value)
    bias = _bias(attn_mask, scores) if attn_mask.dtype == BOOL else attn_mask
    out = op.MatMul(op.Softmax(op.Add(scores, bias), axis=-1), value)
    forbidden = op.Equal(op.ReduceMax(bias, op.Constant(value_ints=[-1]), keepdims=1), _like(-math.inf, bias))  # (…, L, 1)
    return op.Where(forbidden, _like(0.0, out), out)


def _scale(query: Any) -> Any:
    """1 / sqrt(channels); computed as the graph runs if attention goes over channels, and the positions of a map take their place."""
    channels = query.shape[-1]
    if isinstance(channels, int):
        return _like(1 / math.sqrt(channels), query)
    return op.CastLike(op.Reciprocal(op.Sqrt(op.Cast(op.Shape(query, start=-1), to=DataType.FLOAT))), query)


def _repeated(heads: Any, count: int) -> Any:
    """(…, few heads, length, channels) -> (…, count, length, channels). Rule 2."""
    few = heads.shape[-3]
    if few == count:
        return heads
    axis = op.Constant(value_ints=[-3])
    spread = op.Expand(op.Unsqueeze(heads, axis), op.Constant(value_ints=[count // few, 1, 1]))  # (…, few, count / few, length, channels)
    sizes = [op.Shape(heads, end=-3), op.Constant(value_ints=[count]), op.Shape(heads, start=-2)]
    return op.Reshape(spread, op.Concat(*sizes, axis=0))


def _bias(allowed: Any, scores: Any) -> Any:
    return op.Where(allowed, _like(0.0, scores), _like(-math.inf, scores))


def _like(number: float, value: Any) -> Any:
    return op.CastLike(op.Constant(value_float=number), value)


TRANSLATIONS = {torch.ops.aten.scaled_dot_product_attention.default: scaled_dot_product_attention}
