"""Passes over the fp32 graph. They compute the same function, as exactly as PyTorch or more so.

A pass is called with a `GraphEditor` and the contract. Three are not in the list. `precise_mean` runs on every finished variant, because
int8 has an integer kernel for some of the means. `exact_kernels` and `precise_norm` run on the fp32 variant alone, because int8's steps are coarser.
"""

from .known_shapes import known_shapes
from .precise_reduction import precise_reduction
from .transposed_product import transposed_product

FLOAT_PASSES = (known_shapes, transposed_product, precise_reduction)
