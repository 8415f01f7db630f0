"""Functions whose own translation is wrong for some numbers, or knows only constants (onnxscript 0.7.2).

1. log_sigmoid came out as Log(Sigmoid(x)): minus infinity below -88 and nothing left of the tail before, and PyTorch gives x. Here it is -Softplus(-x).
2. Python's floor division of sizes came out as a division that truncates: `-(-width // 8) * 8`, the idiom that rounds up, was 48 for 49. Where the
   dividend may be negative (a negated value, a difference, a product with a negative constant) it is (a - a mod b) / b; Mod has Python's sign.
3. The remainder by a size (`index % width`) was refused: the divisor had to be a constant. Integers by Mod; of floats, x - floor(x / size) * size.
"""

import operator
from collections.abc import Callable
from typing import Any

import onnxscript
import torch
from onnxscript.function_libs.torch_lib.ops.core import aten_remainder_scalar

op: Any = onnxscript.opset20


def log_sigmoid(x: Any) -> Any:
    """aten::log_sigmoid. Rule 1."""
    return op.Neg(op.Softplus(op.Neg(x)))


def log_sigmoid_forward(x: Any) -> tuple[Any, Any]:
    """aten::log_sigmoid_forward: the value, and a buffer for the gradient that nobody reads. Rule 1."""
    return log_sigmoid(x), x


def floordiv(dividend: Any, divisor: Any) -> Any:
    """Python's `//` on sizes, int64 scalars. Rule 2."""
    if not _may_be_negative(dividend):
        return op.Div(dividend, divisor)
    return op.Div(op.Sub(dividend, op.Mod(dividend, divisor)), divisor)


def _may_be_negative(value: Any) -> bool:
    node = value.producer() if hasattr(value, "producer") else None
    if node is None:
        return isinstance(value, int) and value < 0
    if node.op_type == "Constant":
        return bool((node.attributes["value"].value.numpy() < 0).any()) if "value" in node.attributes else True
    return node.op_type in ("Neg", "Sub") or (node.op_type == "Mul" and any(map(_may_be_negative, node.inputs)))


def remainder(x: Any, divisor: Any) -> Any:
    """aten::remainder.Scalar on any tensor. Rule 3."""
    if isinstance(divisor, int | float):
        return aten_remainder_scalar(x, divisor)
    size = op.CastLike(divisor, x)
    return op.Mod(x, size) if x.dtype.is_integer() else op.Sub(x, op.Mul(op.Floor(op.Div(x, size)), size))


TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.log_sigmoid.default: log_sigmoid,
    torch.ops.aten.log_sigmoid_forward.default: log_sigmoid_forward,
    torch.ops.aten.remainder.Scalar: remainder,
    operator.floordiv: floordiv,
}
