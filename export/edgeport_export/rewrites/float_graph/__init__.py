"""Passes over the fp32 graph. They compute the same function, as exactly as PyTorch or more so.

A pass is called with a `GraphEditor` and the contract. Four are not in the list. `precise_mean` and `prelu` run on every finished variant,
because int8 is made from the operators that they replace. `exact_kernels` and `precise_norm` run on the fp32 variant alone, because int8's steps are coarser.
"""

from .channel_softmax import channel_softmax
from .known_shapes import known_shapes
from .precise_reduction import precise_reduction
from .prelu import leaky_relu
from .transposed_product import transposed_product

FLOAT_PASSES = (known_shapes, transposed_product, precise_reduction, leaky_relu, channel_softmax)
