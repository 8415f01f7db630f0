"""Resizing that gives PyTorch's numbers at every height and width.

ONNX's Resize works from a ratio of sizes in float32, PyTorch from the step between source positions, which is the given factor's
inverse if a factor was given (aten/src/ATen/native/UpSample.h). Measured on torch 2.15, onnxscript 0.7.2, onnxruntime 1.31.1:
28 -> 8 by nearest takes position 6, and PyTorch takes 7. Antialiased resizing by the factor 0.7 is off by 0.5 of the range, because
the graph is given the sizes, not the factor. Here:

1. Nearest by a whole factor: the exporter's own Resize, which is right there and the fastest (0.08 ms for 64 x 64 x 64 -> 128 x 128, two threads).
2. Nearest to a size, by any other factor, and "nearest-exact": the source positions floor(i * step), or floor((i + 1/2) * step), in float32 as
   PyTorch computes them. The columns are a product with a matrix of zeros and ones, which is exact. The rows are a Gather (0.84 ms at that
   size, two Gathers take 4.2).
3. Antialiased: two matrix products with the filter's weights. Cell i of the output looks from max(0, trunc(c - s + 1/2)) up to
   min(length, trunc(c + s + 1/2)). Its center is c = step * (i + 1/2), its support s = radius * max(step, 1). The weights are normalized to
   sum to 1, as Pillow does at the borders too (UpSampleKernel.cpp, HelperInterpLinear and HelperInterpCubic).

4. Nearest along a line or through a volume: the same positions, by a Gather for each axis. Through a volume by a factor that is no whole number it
   is refused if it interpolates (trilinear): Resize rounds the output's size from float32, 1.3 * 90 to 116.

5. Linear, bilinear and bicubic by a factor that is not exact in float32: Resize would round the output's size from float32, 45 * 1.4 to 63, where
   PyTorch gives 62. A matrix product along each side, with the weights of two or four positions. By other factors and to sizes it stays Resize.

The products of rules 2, 3 and 5 are for finite values: an infinity makes its whole row NaN (0 * inf), and PyTorch keeps it in its place.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxscript
import torch
from onnx_ir import DataType
from onnxscript.function_libs.torch_lib.ops.nn import (
    aten_upsample_bicubic2d_vec,
    aten_upsample_bilinear2d_vec,
    aten_upsample_linear1d,
    aten_upsample_nearestnd_vec,
    aten_upsample_trilinear3d_vec,
)

op: Any = onnxscript.opset20  # its annotations know only constants, not the values of a graph
EXACT_NUMERATOR = 256  # 8 bits of a factor and 16 of a size fit the 24 of float32
FLOAT, DOUBLE, INT64 = int(DataType.FLOAT), int(DataType.DOUBLE), int(DataType.INT64)


def _number(value: float) -> Any:
    return op.Constant(value_float=value)


def _length(x: Any, axis: int) -> Any:
    """The size of a negative axis, a vector of one value."""
    return op.Shape(x, start=axis) if axis == -1 else op.Shape(x, start=axis, end=axis + 1)


def _line(x: Any, axis: int, size: Any, factor: float | None) -> tuple[Any, Any, Any]:
    """Along one axis: the output positions 0, 1, … as float32, the input's length (int64), and PyTorch's step between source positions (float32)."""
    length = _length(x, axis)
    if factor is not None:
        grown = op.Mul(op.Cast(length, to=DOUBLE), op.Constant(value=onnx.numpy_helper.from_array(np.array([factor], dtype=np.float64))))
        count = op.Cast(grown, to=INT64)  # PyTorch rounds the size down, in float64
        step = _number(float(np.float32(1.0 / factor)))
    else:
        count = op.Constant(value_ints=[size]) if isinstance(size, int) else op.Reshape(op.Cast(size, to=INT64), op.Constant(value_ints=[1]))
        step = op.Div(op.Cast(length, to=FLOAT), op.Cast(count, to=FLOAT))
    positions = op.Range(op.Constant(value_int=0), op.Squeeze(count, op.Constant(value_ints=[0])), op.Constant(value_int=1))
    return op.Cast(positions, to=FLOAT), length, step


def _along(side: int, sizes: Any, factors: Sequence[float] | None) -> tuple[Any, float | None]:
    """What was asked for one of the two sides: a size, or a factor."""
    return (None, factors[side]) if factors else (sizes[side], None)


def _nearest_positions(x: Any, axis: int, size: Any, factor: float | None, shift: float) -> Any:
    line, length, step = _line(x, axis, size, factor)
    shifted = op.Add(line, _number(shift)) if shift else line
    source = op.Cast(op.Floor(op.Mul(shifted, step)), to=INT64)
    return op.Min(source, op.Sub(length, op.Constant(value_ints=[1])))


def _nearest(x: Any, sizes: Any, factors: Sequence[float] | None, shift: float, axes: int) -> Any:
    """Rules 1, 2 and 4 on (N, C, …), the last `axes` of which are resized."""
    if factors and not shift and all(factor == int(factor) for factor in factors):
        return aten_upsample_nearestnd_vec(x, None, factors)
    positions = [_nearest_positions(x, side - axes, *_along(side, sizes, factors), shift) for side in range(axes)]
    if axes == 2:
        width = op.Range(op.Constant(value_int=0), op.Squeeze(_length(x, -1), op.Constant(value_ints=[0])), op.Constant(value_int=1))
        chosen = op.Equal(op.Unsqueeze(width, op.Constant(value_ints=[1])), positions.pop())  # (input width, output width)
        x = op.MatMul(x, op.CastLike(chosen, x))
    for side, each in enumerate(positions):
        x = op.Gather(x, each, axis=2 + side)
    return x


def _triangle(distance: Any) -> Any:
    return op.Relu(op.Sub(_number(1.0), distance))


def _cubic(distance: Any) -> Any:
    """Keys' kernel with a = -1/2, as Pillow's bicubic filter and PyTorch's antialiased one have it."""
    square = op.Mul(distance, distance)
    near = op.Add(op.Mul(op.Sub(op.Mul(_number(1.5), distance), _number(2.5)), square), _number(1.0))
    far = op.Sub(_number(2.0), op.Mul(op.Add(op.Mul(op.Sub(op.Mul(_number(0.5), distance), _number(2.5)), distance), _number(4.0)), distance))
    return op.Where(op.Less(distance, _number(1.0)), near, op.Where(op.Less(distance, _number(2.0)), far, _number(0.0)))


def _corner_step(line: Any, length: Any) -> Any:
    """From the first position to the last: (length - 1) / (count - 1), and 0 for a single one."""
    steps = op.Cast(op.Sub(op.Shape(line), op.Constant(value_ints=[1])), to=FLOAT)
    return op.Div(op.Mul(op.Cast(op.Sub(length, op.Constant(value_ints=[1])), to=FLOAT), op.Min(steps, _number(1.0))), op.Max(steps, _number(1.0)))


def _weights(x: Any, axis: int, size: Any, factor: float | None, kernel: Callable[[Any], Any], radius: float, corners: bool) -> Any:
    """The (output length, input length) matrix of rule 3."""
    line, length, step = _line(x, axis, size, factor)
    if corners:
        step = _corner_step(line, length)
    stretch = op.Max(step, _number(1.0))
    center = op.Unsqueeze(op.Mul(step, op.Add(line, _number(0.5))), op.Constant(value_ints=[1]))  # (output length, 1)
    support = op.Mul(stretch, _number(radius))
    low = op.Cast(op.Add(op.Sub(center, support), _number(0.5)), to=INT64)  # a cast truncates, and so does PyTorch
    high = op.Cast(op.Add(op.Add(center, support), _number(0.5)), to=INT64)
    position = op.Range(op.Constant(value_int=0), op.Squeeze(length, op.Constant(value_ints=[0])), op.Constant(value_int=1))
    inside = op.And(op.GreaterOrEqual(position, low), op.Less(position, high))
    middle = op.Add(op.Cast(position, to=FLOAT), _number(0.5))
    raw = op.Where(inside, kernel(op.Div(op.Abs(op.Sub(middle, center)), stretch)), _number(0.0))
    return op.CastLike(op.Div(raw, op.ReduceSum(raw, op.Constant(value_ints=[1]), keepdims=1)), x)


def _antialiased(x: Any, sizes: Any, factors: Sequence[float] | None, kernel: Callable[[Any], Any], radius: float, corners: bool) -> Any:
    """Rule 3 on (N, C, H, W)."""
    rows = _weights(x, -2, *_along(0, sizes, factors), kernel, radius, corners)
    columns = _weights(x, -1, *_along(1, sizes, factors), kernel, radius, corners)
    return op.MatMul(rows, op.MatMul(x, op.Transpose(columns, perm=[1, 0])))


def _source(x: Any, axis: int, size: Any, factor: float | None, corners: bool) -> tuple[Any, Any, Any]:
    """Where each output position lies between those of the input, (output length, 1); the input's positions 0, 1, …; and its length. float32."""
    line, length, step = _line(x, axis, size, factor)
    centered = op.Sub(op.Mul(step, op.Add(line, _number(0.5))), _number(0.5))
    source = op.Mul(_corner_step(line, length), line) if corners else centered
    position = op.Range(op.Constant(value_int=0), op.Squeeze(length, op.Constant(value_ints=[0])), op.Constant(value_int=1))
    return op.Unsqueeze(source, op.Constant(value_ints=[1])), op.Cast(position, to=FLOAT), op.Cast(length, to=FLOAT)


def _linear_weights(x: Any, axis: int, size: Any, factor: float | None, corners: bool) -> Any:
    """The (output length, input length) matrix of rule 5, two positions in each row."""
    source, position, length = _source(x, axis, size, factor, corners)
    inside = op.Min(op.Max(source, _number(0.0)), op.Sub(length, _number(1.0)))
    return op.CastLike(_triangle(op.Abs(op.Sub(position, inside))), x)


def _cubic_weights(x: Any, axis: int, size: Any, factor: float | None, corners: bool) -> Any:
    """The same, four positions in each row; those beyond a border are the border's."""
    source, position, length = _source(x, axis, size, factor, corners)
    first, last, weights = op.Floor(source), op.Sub(length, _number(1.0)), None
    for tap in (-1, 0, 1, 2):
        place = op.Add(first, _number(float(tap)))
        weight = _sharp_cubic(op.Abs(op.Sub(source, place)), near=tap in (0, 1))
        met = op.Equal(position, op.Min(op.Max(place, _number(0.0)), last))
        part = op.Where(met, weight, _number(0.0))
        weights = part if weights is None else op.Add(weights, part)
    return op.CastLike(weights, x)


def _sharp_cubic(distance: Any, *, near: bool) -> Any:
    """Keys' kernel with a = -3/4, as PyTorch has it without antialiasing. `near`: for distances up to 1, else up to 2."""
    a = -0.75
    if near:
        inner = op.Sub(op.Mul(_number(a + 2), distance), _number(a + 3))
        return op.Add(op.Mul(op.Mul(inner, distance), distance), _number(1.0))
    inner = op.Add(op.Mul(op.Sub(op.Mul(_number(a), distance), _number(5 * a)), distance), _number(8 * a))
    return op.Sub(op.Mul(inner, distance), _number(4 * a))


def _is_exact(factor: float) -> bool:
    """Whether float32 multiplies a size by it exactly, so that Resize rounds the output's size as PyTorch does."""
    return Fraction(factor).numerator < EXACT_NUMERATOR


def _interpolated(x: Any, factors: Sequence[float], weights: Callable[..., Any], corners: bool) -> Any:
    """Rule 5 on (N, C, L) or (N, C, H, W)."""
    columns = weights(x, -1, None, factors[-1], corners)
    if len(factors) == 1:
        return op.MatMul(x, op.Transpose(columns, perm=[1, 0]))
    return op.MatMul(weights(x, -2, None, factors[0], corners), op.MatMul(x, op.Transpose(columns, perm=[1, 0])))


def _factors(*sides: float | None) -> tuple[float, ...] | None:
    given = tuple(side for side in sides if side is not None)
    return given if len(given) == len(sides) else None


def upsample_trilinear3d(x: Any, output_size: Any, align_corners: bool, scale_factors: Sequence[float] | None) -> Any:
    """aten::upsample_trilinear3d.vec on (N, C, D, H, W). Raises NotImplementedError for a factor that is no whole number. Rule 4."""
    if scale_factors and any(factor != int(factor) for factor in scale_factors):
        raise NotImplementedError("trilinear by a factor that is no whole number; give size=")
    return aten_upsample_trilinear3d_vec(x, output_size, align_corners, scale_factors)


# The exporter reads the arguments of a translation from its signature, so each kind of aten overload has a function of its own.


def _nearest_overloads(name: str, axes: int, shift: float) -> dict[Any, Callable[..., Any]]:
    """Both overloads of a resize by the nearest position over the last `axes` axes."""
    resized = partial(_nearest, shift=shift, axes=axes)

    def line(x: Any, output_size: Any, scales: float | None = None) -> Any:
        return resized(x, output_size, _factors(scales))

    def maps(x: Any, output_size: Any, scales_h: float | None = None, scales_w: float | None = None) -> Any:
        return resized(x, output_size, _factors(scales_h, scales_w))

    def volume(x: Any, output_size: Any, scales_d: float | None = None, scales_h: float | None = None, scales_w: float | None = None) -> Any:
        return resized(x, output_size, _factors(scales_d, scales_h, scales_w))

    def vec(x: Any, output_size: Any, scale_factors: Sequence[float] | None) -> Any:
        return resized(x, output_size, scale_factors)

    overloads = getattr(torch.ops.aten, name)
    return {overloads.default: (line, maps, volume)[axes - 1], overloads.vec: vec}


def _antialiased_overloads(name: str, kernel: Callable[[Any], Any], radius: float) -> dict[Any, Callable[..., Any]]:
    """Both overloads of an antialiased resize of maps."""

    def maps(x: Any, output_size: Any, align_corners: bool, scales_h: float | None = None, scales_w: float | None = None) -> Any:
        return _antialiased(x, output_size, None if align_corners else _factors(scales_h, scales_w), kernel, radius, align_corners)

    def vec(x: Any, output_size: Any, align_corners: bool, scale_factors: Sequence[float] | None) -> Any:
        return _antialiased(x, output_size, scale_factors, kernel, radius, align_corners)

    overloads = getattr(torch.ops.aten, name)
    return {overloads.default: maps, overloads.vec: vec}


def _interpolation_overloads(name: str, weights: Callable[..., Any], plain: Callable[..., Any]) -> dict[Any, Callable[..., Any]]:
    """The overload that takes factors, as F.interpolate calls it. `plain`: the exporter's own translation."""

    def vec(x: Any, output_size: Any, align_corners: bool, scale_factors: Sequence[float] | None) -> Any:
        if scale_factors and not all(map(_is_exact, scale_factors)):
            return _interpolated(x, [float(each) for each in scale_factors], weights, align_corners)
        return plain(x, output_size, align_corners, scale_factors)

    return {getattr(torch.ops.aten, name).vec: vec}


def upsample_linear1d(x: Any, output_size: Any, align_corners: bool, scale_factors: Sequence[float] | None) -> Any:
    """aten::upsample_linear1d.vec on (N, C, L), which the exporter has for sizes alone."""
    if scale_factors:
        return _interpolated(x, [float(each) for each in scale_factors], _linear_weights, align_corners)
    return aten_upsample_linear1d(x, output_size, align_corners)


TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    **{op: function for axes in (1, 2, 3) for op, function in _nearest_overloads(f"upsample_nearest{axes}d", axes, 0.0).items()},
    **{op: function for axes in (1, 2, 3) for op, function in _nearest_overloads(f"_upsample_nearest_exact{axes}d", axes, 0.5).items()},
    **_antialiased_overloads("_upsample_bilinear2d_aa", _triangle, 1.0),
    **_antialiased_overloads("_upsample_bicubic2d_aa", _cubic, 2.0),
    **_interpolation_overloads("upsample_bilinear2d", _linear_weights, aten_upsample_bilinear2d_vec),
    **_interpolation_overloads("upsample_bicubic2d", _cubic_weights, aten_upsample_bicubic2d_vec),
    torch.ops.aten.upsample_linear1d.vec: upsample_linear1d,
    torch.ops.aten.upsample_trilinear3d.vec: upsample_trilinear3d,
}
