"""Average pooling that divides by another number than the window's positions.

The exporter's own translation (aten_avg_pool2d of onnxscript 0.7.2) drops `divisor_override` without a word: a window of 2x2 divided by 3 came out
a quarter too small. The rule here: the mean over the whole window, padding counted, times its positions over the divisor. Windows
that reach past the padding (ceil_mode) count fewer positions, so those two together are refused.
"""

from collections.abc import Sequence
from typing import Any

import onnxscript
import torch
from onnxscript.function_libs.torch_lib.ops.nn import aten_avg_pool2d

op: Any = onnxscript.opset20


def avg_pool2d(
    x: Any,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """aten::avg_pool2d on (N, C, H, W). Raises NotImplementedError for a divisor together with ceil_mode."""
    if divisor_override is None:
        return aten_avg_pool2d(x, kernel_size, stride, padding, ceil_mode, count_include_pad)
    if ceil_mode:
        raise NotImplementedError("divisor_override together with ceil_mode")
    mean = aten_avg_pool2d(x, kernel_size, stride, padding, False, True)
    height, width = (kernel_size[0], kernel_size[-1])
    return op.Mul(mean, op.CastLike(op.Constant(value_float=height * width / divisor_override), mean))


TRANSLATIONS = {torch.ops.aten.avg_pool2d.default: avg_pool2d}
