"""Positions computed a square at a time: the same numbers at every size."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from torch import nn

from edgeport_export.rewrites.graph import PassResult
from edgeport_export.rewrites.int8_graph.position_blocks import BLOCKS, position_blocks
from edgeport_runtime import Contract

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]
AfterConvolution = Callable[..., tuple[onnx.ModelProto, Contract]]
Run = Callable[[onnx.ModelProto, np.ndarray], np.ndarray]


NARROW = {
    "3x3 same": nn.Conv2d(8, 3, 3, padding=1),
    "1 filter, no bias": nn.Conv2d(8, 1, 3, padding=1, bias=False),
    "5x2, uneven": nn.Conv2d(8, 4, (5, 2), padding=(2, 1)),
    "no padding": nn.Conv2d(8, 2, 3),
    "4 filters": nn.Conv2d(8, 4, 3, padding=1),
}


@pytest.mark.parametrize("name", NARROW)
def test_a_square_of_positions_at_a_time_gives_the_same_numbers_at_every_size(
    after_a_convolution: AfterConvolution, apply: Apply, run_maps: Run, name: str
) -> None:
    before, contract = after_a_convolution(NARROW[name])
    filters = NARROW[name].out_channels
    made, result = apply(position_blocks, before, contract, products=["2/Conv"])
    output = next(node.output[0] for node in before.graph.node if node.name == "2/Conv")
    assert result.changed == 1 and list(result.ranges) == [output + BLOCKS]
    wide = next(node for node in made.graph.node if node.name == "2/Conv")
    assert next(each.dims[0] for each in made.graph.initializer if each.name == wide.input[1]) == (16 if filters == 4 else 16 * filters)
    generator = np.random.default_rng(0)
    for batch, height, width in ((1, 16, 16), (2, 17, 12), (1, 9, 31), (3, 7, 8)):
        image = generator.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
        expected, got = run_maps(before, image), run_maps(made, image)
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, atol=2e-6 * np.ptp(expected))


@pytest.mark.parametrize(
    "last",
    [nn.Conv2d(8, 5, 3), nn.Conv2d(8, 3, 1), nn.Conv2d(8, 3, 3, stride=2), nn.Conv2d(8, 3, 3, dilation=2), nn.Conv2d(8, 4, 3, groups=2)],
    ids=["five filters", "1x1", "strided", "dilated", "grouped"],
)
def test_other_convolutions_keep_their_positions(after_a_convolution: AfterConvolution, apply: Apply, last: nn.Module) -> None:
    before, contract = after_a_convolution(last)
    made, result = apply(position_blocks, before, contract, products=["2/Conv"])
    assert not result and made == before


def test_a_convolution_that_stays_float_keeps_its_positions(after_a_convolution: AfterConvolution, apply: Apply) -> None:
    before, contract = after_a_convolution(nn.Conv2d(8, 3, 3))
    made, result = apply(position_blocks, before, contract, products=["0/Conv"])
    assert not result and made == before
