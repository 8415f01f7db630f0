"""A depthwise convolution and the 1x1 convolution after it as one: held to PyTorch in float64."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeport_export.rewrites.graph import PassResult
from edgeport_export.rewrites.int8_graph.pixel_convolution import pixel_convolution
from edgeport_export.rewrites.int8_graph.separable_fusion import separable_fusion
from edgeport_runtime import Contract, Output, Pixels

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]
Graph = Callable[[nn.Module, Contract], onnx.ModelProto]
Maps = Callable[..., Contract]
Run = Callable[[onnx.ModelProto, np.ndarray], np.ndarray]
PIXELS = Pixels(height=16, width=16, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class Separable(nn.Module):
    def __init__(self, bias: bool, mixing_kernel: int = 1) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(3, 3, 5, stride=2, padding=2, groups=3, bias=bias)
        self.mixing = nn.Conv2d(3, 5, mixing_kernel, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixing(self.spatial(x))


@pytest.mark.parametrize("bias", [True, False])
def test_a_depthwise_stem_becomes_one_dense_convolution_and_then_reads_pixels(
    apply: Apply, maps_contract: Maps, maps_graph: Graph, run_maps: Run, bias: bool
) -> None:
    torch.manual_seed(0)
    module, contract = Separable(bias).eval(), maps_contract(PIXELS, 5)
    fused, first = apply(separable_fusion, maps_graph(module, contract), contract)
    made, second = apply(pixel_convolution, fused, contract)
    assert first.changed == second.changed == 1
    image = np.random.default_rng(0).integers(0, 256, (2, 21, 13, 3), dtype=np.uint8)
    x = (torch.from_numpy(image).double() / 255 - torch.tensor(PIXELS.mean).double()) / torch.tensor(PIXELS.std).double()
    expected = module.double()(x.permute(0, 3, 1, 2)).detach().numpy()
    for model in (fused, made):
        assert [node.name for node in model.graph.node if node.op_type == "Conv"] == ["mixing/Conv"]
        np.testing.assert_allclose(run_maps(model, image), expected, atol=3e-6 * np.ptp(expected))


@pytest.mark.parametrize("products", [["spatial/Conv"], ["mixing/Conv"], []])
def test_both_must_be_integer_products(apply: Apply, maps_contract: Maps, maps_graph: Graph, products: list[str]) -> None:
    contract = maps_contract(channels=5)
    before = maps_graph(Separable(True), contract)
    made, result = apply(separable_fusion, before, contract, products=products)
    assert not result and made == before


class Shown(Separable):
    """The value between the two convolutions is an output, too."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        between = self.spatial(x)
        return self.mixing(between), between


def test_an_output_between_the_two_is_not_fused_away(apply: Apply, maps_contract: Maps, maps_graph: Graph) -> None:
    described = tuple(Output(name=name, dtype="float32", shape=("batch", size, "?", "?"), kind="tensor") for name, size in (("out", 5), ("between", 3)))
    contract = replace(maps_contract(), outputs=described)
    assert not apply(separable_fusion, maps_graph(Shown(True), contract), contract)[1]


@pytest.mark.parametrize(
    "module",
    [
        Separable(True, mixing_kernel=3),
        nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.ReLU(), nn.Conv2d(3, 5, 1)),
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1)),
        nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(6, 5, 1)),
        nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 5, 1, stride=2)),
    ],
    ids=["3x3 mixing", "an activation between", "dense", "two filters a channel", "strided mixing"],
)
def test_other_stems_are_left_as_they_are(apply: Apply, maps_contract: Maps, maps_graph: Graph, module: nn.Module) -> None:
    contract = maps_contract(channels=5)
    before = maps_graph(module, contract)
    made, result = apply(separable_fusion, before, contract)
    assert not result and made == before
