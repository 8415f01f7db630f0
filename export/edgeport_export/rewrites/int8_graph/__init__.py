"""Passes that let integer kernels run. One file each; a pass is called with a `GraphEditor` and an `Int8Context`.

`SHAPING_PASSES`: before the quantizer, on the float graph; they give the products the shapes that are fast, and their new values ranges.
`FOLLOWER_PASSES`: after these, for the operators that follow a product, and for biases. `QDQ_PASSES`: after the quantizer, on the graph with its
Q/DQ pairs. `X86_PASSES`: after these, for targets on which they were measured. `GUARDS`: last, against what onnxruntime would do to the graph.
"""

from .attention_product import attention_product, keep_value_scales
from .batch_as_depth import batch_as_depth
from .batch_norm import batch_norm
from .biased_linear import biased_linear
from .channel_padding import channel_padding
from .column_quads import column_quads
from .empty_channels import empty_channels
from .float_linear import float_linear
from .float_products import float_products
from .global_pool import global_pool
from .hard_sigmoid import drop_factors, hard_sigmoid
from .integer_shapes import integer_shapes
from .last_pairs import last_pairs
from .layout import layout_ranges
from .nearest_upsampling import nearest_upsampling
from .pixel_convolution import pixel_convolution
from .position_blocks import position_blocks
from .positions_last import positions_last
from .prelu_steps import integer_halves, prelu_steps
from .quantized_rows import quantized_rows
from .separable_fusion import separable_fusion
from .split_linear import split_linear
from .transposed_convolution import transposed_convolution
from .width_branches import width_branches

SHAPING_PASSES = (
    separable_fusion,
    column_quads,
    pixel_convolution,
    attention_product,
    positions_last,
    transposed_convolution,
    position_blocks,
    channel_padding,
    layout_ranges,
)
FOLLOWER_PASSES = (global_pool, nearest_upsampling, hard_sigmoid, prelu_steps, batch_norm, empty_channels)
QDQ_PASSES = (
    keep_value_scales,
    drop_factors,
    integer_halves,
    float_linear,
    quantized_rows,
    last_pairs,
    integer_shapes,
)
X86_PASSES = (batch_as_depth, width_branches, split_linear, biased_linear)
GUARDS = (float_products,)
