"""Filters padded to the block of the integer kernel: the same numbers."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from torch import nn

from edgeport_export.rewrites.graph import PassResult
from edgeport_export.rewrites.int8_graph.channel_padding import BLOCK, PADDED, channel_padding
from edgeport_runtime import Contract

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]
AfterConvolution = Callable[..., tuple[onnx.ModelProto, Contract]]
Run = Callable[[onnx.ModelProto, np.ndarray], np.ndarray]


@pytest.mark.parametrize("bias", [True, False])
def test_few_filters_are_padded_and_cut_off_exactly(after_a_convolution: AfterConvolution, apply: Apply, run_maps: Run, bias: bool) -> None:
    before, contract = after_a_convolution(nn.Conv2d(8, 5, 3, bias=bias))
    made, result = apply(channel_padding, before, contract)
    assert result.changed == 2 and all(name.endswith(PADDED) for name in result.ranges) and len(result.ranges) == 2
    assert {each.dims[0] for each in made.graph.initializer if len(each.dims) == 4} == {BLOCK}
    image = np.random.default_rng(0).integers(0, 256, (2, 17, 11, 3), dtype=np.uint8)
    np.testing.assert_array_equal(run_maps(made, image), run_maps(before, image))
    assert run_maps(made, image).shape[1] == 5


def test_padded_values_have_the_range_of_the_value_that_they_were(after_a_convolution: AfterConvolution, apply: Apply) -> None:
    before, contract = after_a_convolution(nn.Conv2d(8, 5, 3))
    ranges = {node.output[0]: (-float(index), 1.0) for index, node in enumerate(before.graph.node)}
    _, result = apply(channel_padding, before, contract, ranges=ranges)
    assert result.ranges == {name + PADDED: ranges[name] for name in (each.removesuffix(PADDED) for each in result.ranges)}


def test_only_integer_products_are_padded(after_a_convolution: AfterConvolution, apply: Apply) -> None:
    before, contract = after_a_convolution(nn.Conv2d(8, 5, 3))
    made, result = apply(channel_padding, before, contract, products=[])
    assert not result and made == before
    assert apply(channel_padding, before, contract, products=["2/Conv"])[1].changed == 1


@pytest.mark.parametrize("last", [nn.Conv2d(8, 16, 1), nn.Conv2d(8, 17, 1), nn.Conv2d(8, 8, 1, groups=2)], ids=["a whole block", "more", "grouped"])
def test_other_convolutions_are_left_as_they_are(after_a_convolution: AfterConvolution, apply: Apply, last: nn.Module) -> None:
    before, contract = after_a_convolution(last)
    made, result = apply(channel_padding, before, contract, products=["2/Conv"])
    assert not result and made == before
