"""Scaled-dot-product attention of any rank.

The exporter's translation (onnxscript 0.7.2) refuses anything but four axes, while PyTorch takes (…, length, channels):

1. Four axes: the exporter's own translation.
2. Otherwise softmax(scale · query · keyᵀ + mask) · value, written out; the scale is applied to the query, which is the smaller product.
"""

import math
from typing import Any

import onnxscript
import torch
from onnx_ir import DataType
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention

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
    """aten::scaled_dot_product_attention on (…, length, channels)."""
    if len(query.shape) == 4:
        return aten_scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    factor = scale if scale is not None else 1 / math.sqrt(query.shape[-1])
    scaled = op.Mul(query, op.CastLike(op.Constant(value_float=factor), query))
    last, order = len(key.shape) - 1, list(range(len(key.shape)))
    scores = op.MatMul(scaled, op.Transpose(key, perm=[*order[:-2], last, last - 1]))  # (…, L, S)
    if is_causal:
        lower = op.Trilu(op.Expand(op.Constant(value_float=1.0), op.Shape(scores, start=-2)), upper=0)
        attn_mask = op.Cast(lower, to=9)  # bool
    if attn_mask is not None:
        bias = attn_mask
        if is_causal or attn_mask.dtype == BOOL:
            bias = op.Where(attn_mask, op.CastLike(op.Constant(value_float=0.0), scores), op.CastLike(op.Constant(value_float=-math.inf), scores))
        scores = op.Add(scores, bias)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


TRANSLATIONS = {torch.ops.aten.scaled_dot_product_attention.default: scaled_dot_product_attention}
