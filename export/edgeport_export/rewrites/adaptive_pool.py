"""Adaptive pooling that is right at every height and width.

The exporter's own translation bakes the example's kernel into the graph, so that other sizes fail or are wrong, and where it
runs it takes most of a small CNN's time (380 Gather nodes; measured on torch 2.15, onnxscript 0.7.2). Here instead:

1. Output 1x1: a mean over height and width.
2. Otherwise two matrix products, columns then rows, with pooling matrices computed from the shape at hand: row i averages the
   positions floor(i * length / n) up to, not including, ceil((i + 1) * length / n), which is PyTorch's own rule
   (aten/src/ATen/native/AdaptivePooling.h).
"""

from collections.abc import Sequence
from typing import Any

import onnxscript
import torch

op: Any = onnxscript.opset20  # its annotations know only constants, not the values of a graph


def _matrix(x: Any, axis: int, count: int) -> Any:
    """The (count, length) averaging matrix along one axis of x."""
    length = op.Shape(x, start=axis) if axis == -1 else op.Shape(x, start=axis, end=axis + 1)  # (1,)
    n = op.Constant(value_ints=[count])
    row = op.Unsqueeze(op.Constant(value_ints=list(range(count))), op.Constant(value_ints=[1]))  # (count, 1)
    one = op.Constant(value_ints=[1])
    start = op.Div(op.Mul(row, length), n)
    end = op.Div(op.Add(op.Mul(op.Add(row, one), length), op.Sub(n, one)), n)
    position = op.Range(op.Constant(value_int=0), op.Squeeze(length), op.Constant(value_int=1))  # (length,)
    inside = op.And(op.GreaterOrEqual(position, start), op.Less(position, end))
    return op.Div(op.CastLike(inside, x), op.CastLike(op.Sub(end, start), x))


def adaptive_avg_pool2d(x: Any, output_size: Sequence[int]) -> Any:
    """aten::adaptive_avg_pool2d on (N, C, H, W) or (C, H, W)."""
    if list(output_size) == [1, 1]:
        return op.ReduceMean(x, op.Constant(value_ints=[-2, -1]), keepdims=1)
    rows, columns = _matrix(x, -2, output_size[0]), _matrix(x, -1, output_size[1])
    pooled = op.MatMul(x, op.Transpose(columns, perm=[1, 0]))
    return op.MatMul(rows, pooled)


TRANSLATIONS = {torch.ops.aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d}
