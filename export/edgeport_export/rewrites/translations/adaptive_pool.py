"""Adaptive pooling that is right at every height and width.

The exporter's own translation bakes the example's kernel into the graph, so that other sizes fail or are wrong. If it
runs, it takes most of a small CNN's time (380 Gather nodes; measured on torch 2.15, onnxscript 0.7.2). PyTorch's rule is that
cell i of n covers the positions floor(i * length / n) up to, not including, ceil((i + 1) * length / n)
(aten/src/ATen/native/AdaptivePooling.h). Here:

1. Average to 1x1: a mean over height and width, and depth if there is one.
2. Average to any other size, also one that is computed from the input (`interpolate(mode="area")`): two matrix products,
   columns then rows, and a third one for depth, with averaging matrices computed from the shape at hand.
   These products are for finite values: an infinity makes its whole row NaN, and PyTorch has it in its own cells alone.
3. Maximum to 1x1: a maximum over height and width.
4. Maximum to a fixed size: for each cell a slice of the rows and its maximum, then the same for the columns. The positions of
   the maxima, which PyTorch returns too, are computed cell by cell; if nobody reads them, they are dropped from the graph.
"""

from collections.abc import Sequence
from typing import Any

import onnxscript
import torch

op: Any = onnxscript.opset20  # its annotations know only constants, not the values of a graph


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _length(x: Any, axis: int) -> Any:
    """The size of axis -2 or -1 as a vector of one value."""
    return op.Shape(x, start=axis) if axis == -1 else op.Shape(x, start=axis, end=axis + 1)


def _matrix(x: Any, axis: int, count: Any) -> Any:
    """The (count, length) averaging matrix along one axis of x; `count` is a number, or a value of the graph."""
    length, one, zero = _length(x, axis), _ints(1), op.Constant(value_int=0)
    n = _ints(count) if isinstance(count, int) else op.Reshape(op.Cast(count, to=7), _ints(1))
    cells = _ints(*range(count)) if isinstance(count, int) else op.Range(zero, op.Squeeze(n, _ints(0)), op.Constant(value_int=1))
    row = op.Unsqueeze(cells, one)  # (count, 1)
    start = op.Div(op.Mul(row, length), n)
    end = op.Div(op.Add(op.Mul(op.Add(row, one), length), op.Sub(n, one)), n)
    position = op.Range(zero, op.Squeeze(length), op.Constant(value_int=1))  # (length,)
    inside = op.And(op.GreaterOrEqual(position, start), op.Less(position, end))
    return op.Div(op.CastLike(inside, x), op.CastLike(op.Sub(end, start), x))


def adaptive_avg_pool2d(x: Any, output_size: Sequence[Any]) -> Any:
    """aten::adaptive_avg_pool2d on (N, C, H, W) or (C, H, W). Rules 1 and 2."""
    if [size if isinstance(size, int) else 0 for size in output_size] == [1, 1]:
        return op.ReduceMean(x, _ints(-2, -1), keepdims=1)
    rows, columns = _matrix(x, -2, output_size[0]), _matrix(x, -1, output_size[1])
    pooled = op.MatMul(x, op.Transpose(columns, perm=[1, 0]))
    return op.MatMul(rows, pooled)


def adaptive_avg_pool3d(x: Any, output_size: Sequence[Any]) -> Any:
    """aten::adaptive_avg_pool3d on (N, C, D, H, W) or (C, D, H, W). Rules 1 and 2."""
    if [size if isinstance(size, int) else 0 for size in output_size] == [1, 1, 1]:
        return op.ReduceMean(x, _ints(-3, -2, -1), keepdims=1)
    planes = adaptive_avg_pool2d(x, output_size[1:])
    flat = op.Reshape(planes, op.Concat(op.Shape(planes, end=-2), _ints(-1), axis=0))  # (…, D, H * W)
    pooled = op.MatMul(_matrix(flat, -2, output_size[0]), flat)
    return op.Reshape(pooled, op.Concat(op.Shape(pooled, end=-1), op.Shape(planes, start=-2), axis=0))


def _bounds(x: Any, axis: int, cell: int, count: int) -> tuple[Any, Any]:
    """The start and end of cell `cell` of `count` starts and ends along one axis, each a vector of one value."""
    length = _length(x, axis)
    start = op.Div(op.Mul(length, _ints(cell)), _ints(count))
    return start, op.Div(op.Add(op.Mul(length, _ints(cell + 1)), _ints(count - 1)), _ints(count))


def adaptive_max_pool2d(x: Any, output_size: Sequence[int]) -> tuple[Any, Any]:
    """aten::adaptive_max_pool2d on (N, C, H, W) or (C, H, W): the maxima, and their positions in the flattened map. Rules 3 and 4."""
    heights = [_bounds(x, -2, cell, output_size[0]) for cell in range(output_size[0])]
    widths = [_bounds(x, -1, cell, output_size[1]) for cell in range(output_size[1])]
    if list(output_size) == [1, 1]:
        return op.ReduceMax(x, _ints(-2, -1), keepdims=1), _positions(x, heights, widths)
    rows = op.Concat(*[op.ReduceMax(op.Slice(x, start, end, _ints(-2)), _ints(-2), keepdims=1) for start, end in heights], axis=-2)
    cells = op.Concat(*[op.ReduceMax(op.Slice(rows, start, end, _ints(-1)), _ints(-1), keepdims=1) for start, end in widths], axis=-1)
    return cells, _positions(x, heights, widths)


def _positions(x: Any, heights: Sequence[tuple[Any, Any]], widths: Sequence[tuple[Any, Any]]) -> Any:
    """Index of each cell's maximum in the map of H * W positions, the first one if several are equal. int64."""
    lead = op.Shape(x, end=-2)
    lines = []
    for top, bottom in heights:
        cells = []
        for left, right in widths:
            window = op.Slice(op.Slice(x, top, bottom, _ints(-2)), left, right, _ints(-1))
            inside = op.ArgMax(op.Reshape(window, op.Concat(lead, _ints(-1), axis=0)), axis=-1, keepdims=1)
            across = op.Sub(right, left)
            row, column = op.Add(op.Div(inside, across), top), op.Add(op.Mod(inside, across), left)
            cells.append(op.Add(op.Mul(row, _length(x, -1)), column))  # (…, 1)
        lines.append(op.Unsqueeze(op.Concat(*cells, axis=-1), _ints(-2)))  # (…, 1, columns)
    return op.Concat(*lines, axis=-2)


TRANSLATIONS = {
    torch.ops.aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d,
    torch.ops.aten.adaptive_avg_pool3d.default: adaptive_avg_pool3d,
    torch.ops.aten.adaptive_max_pool2d.default: adaptive_max_pool2d,
}
