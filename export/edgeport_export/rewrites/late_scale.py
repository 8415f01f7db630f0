"""A scale that onnxruntime does not compute before it chooses its kernels.

MatMulInteger, Cast and Mul become one kernel, MatMulIntegerToFloat, only if another Mul makes the scale. A Mul of two constants is computed ahead of
that, and the three operators then run one after another.

1. The scale is the size of a value's last axis times the scale divided by that size. A size is known while the network runs, even one that is the same
   each time. In a graph without open sizes all of them are known ahead, so there this brings nothing.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from .nodes import NodeBuilder


def late_scale(made: NodeBuilder, scale: NDArray[Any], value: str, size: int) -> str:
    """Rule 1: `scale`, float32 of any shape, under the name that is returned. `size`: of the last axis of `value`."""
    known = made.add("Cast", [made.add("Shape", [value], "size", start=-1)], "real_size", to=onnx.TensorProto.FLOAT)
    return made.add("Mul", [known, made.constant("scale_by_size", np.asarray(scale / np.float32(size), np.float32))], "late_scale")
