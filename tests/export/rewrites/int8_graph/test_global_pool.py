"""The mean over a map as a pool: the same sum."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.int8_graph.global_pool import global_pool, is_global_pool
from edgeport_runtime import Contract

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]
Graph = Callable[[nn.Module, Contract], onnx.ModelProto]
Maps = Callable[..., Contract]
Run = Callable[[onnx.ModelProto, np.ndarray], np.ndarray]


class Mean(nn.Module):
    def __init__(self, axes: tuple[int, ...], keep: bool) -> None:
        super().__init__()
        self.axes, self.keep = axes, keep

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.mean(self.axes, keepdim=self.keep)
        return y if y.dim() == 4 else y.reshape(x.shape[0], -1, 1, 1)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(("axes", "pools"), [((2, 3), True), ((-1, -2), True), ((1, 2), False), ((3,), False)])
def test_a_mean_over_the_map_is_a_pool(
    apply: Apply, maps_contract: Maps, maps_graph: Graph, run_maps: Run, axes: tuple[int, ...], pools: bool, keep: bool
) -> None:
    contract = maps_contract()
    before = maps_graph(nn.Sequential(nn.Conv2d(3, 5, 3), Mean(axes, keep)), contract)
    mean = next(node for node in before.graph.node if node.op_type == "ReduceMean")
    assert is_global_pool(GraphEditor(before), mean) == pools
    untouched, nothing = apply(global_pool, before, contract)
    assert not nothing and untouched == before  # it is no follower
    made, result = apply(global_pool, before, contract, followers=frozenset([mean.name]))
    assert result.changed == pools and bool(result.ranges) == (pools and not keep)
    assert [node.op_type for node in made.graph.node if node.name == mean.name] == ["GlobalAveragePool" if pools else "ReduceMean"]
    image = np.random.default_rng(0).integers(0, 256, (2, 17, 11, 3), dtype=np.uint8)
    np.testing.assert_allclose(run_maps(made, image), run_maps(before, image), atol=1e-6)
