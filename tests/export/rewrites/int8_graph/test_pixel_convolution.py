"""The first convolution on pixels: exact in float, so it is held to PyTorch in float64."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeport_export.rewrites.graph import PassResult
from edgeport_export.rewrites.int8_graph.pixel_convolution import DEQUANTIZED, dequantized_range, pixel_convolution
from edgeport_runtime import Contract, Pixels, SessionOptions
from edgeport_runtime.device import open_session

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]
Graph = Callable[[nn.Module, Contract], onnx.ModelProto]
Maps = Callable[..., Contract]
Run = Callable[[onnx.ModelProto, np.ndarray], np.ndarray]
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def network(channels: int, **options: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 8, **{"kernel_size": 3, "padding": 1, **options}), nn.ReLU(), nn.Conv2d(8, 5, 3)).eval()


CASES = {
    "ImageNet": (network(3), Pixels(height=16, width=16, **IMAGENET)),
    "halves": (network(3), Pixels(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3)),
    "gray": (network(1), Pixels(height=16, width=16, mode="L", mean=(0.5,), std=(0.5,))),
    "7x7 by 2": (network(3, kernel_size=7, stride=2, padding=3), Pixels(height=16, width=16, **IMAGENET)),
    "white is zero": (network(3), Pixels(height=16, width=16, mean=(1.0,) * 3, std=(0.2, 0.3, 0.4))),
    "no padding": (network(3, padding=0), Pixels(height=16, width=16, **IMAGENET)),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, maps_contract: Maps, maps_graph: Graph) -> tuple[nn.Module, Contract, onnx.ModelProto]:
    module, pixels = CASES[request.param]
    contract = maps_contract(pixels, 5)
    return module, contract, maps_graph(module, contract)


@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 3), height=st.integers(7, 40), width=st.integers(7, 40), seed=st.integers(0, 9))
def test_a_convolution_of_pixels_is_exact_at_the_borders_too(
    case: tuple[nn.Module, Contract, onnx.ModelProto], apply: Apply, run_maps: Run, batch: int, height: int, width: int, seed: int
) -> None:
    module, contract, graph = case
    pixels = contract.pixels
    made, result = apply(pixel_convolution, graph, contract)
    low, high = result.ranges[DEQUANTIZED]
    assert result.changed == 1 and low <= 0 < high
    image = np.random.default_rng(seed).integers(0, 256, (batch, height, width, pixels.channels), dtype=np.uint8)
    image[:, 0] = 255
    image[:, :, 0] = 0
    x = (torch.from_numpy(image).double() / 255 - torch.tensor(pixels.mean).double()) / torch.tensor(pixels.std).double()
    expected = module.double()(x.permute(0, 3, 1, 2)).detach().numpy()
    module.float()
    np.testing.assert_allclose(run_maps(made, image), expected, atol=3e-6 * np.ptp(expected))


def test_the_dequantized_pixels_cover_their_range(case: tuple[nn.Module, Contract, onnx.ModelProto], apply: Apply) -> None:
    _, contract, graph = case
    pixels = contract.pixels
    made, result = apply(pixel_convolution, graph, contract)
    made.graph.output.append(onnx.helper.make_tensor_value_info(DEQUANTIZED, onnx.TensorProto.FLOAT, None))
    image = np.zeros((1, 8, 8, pixels.channels), np.uint8)
    image[0, 0] = 255
    real = open_session(made.SerializeToString(), SessionOptions()).run([DEQUANTIZED], {"pixels": image})[0]
    assert real.shape == (1, pixels.channels + 1, 8, 8)
    assert (real.min(), real.max()) == pytest.approx(result.ranges[DEQUANTIZED]) and result.ranges[DEQUANTIZED] == dequantized_range(pixels)


class Twice(nn.Module):
    """Two readers of the normalized image: the pass must keep its hands off."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) + self.second(x)


@pytest.mark.parametrize(
    "module",
    [Twice(), nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(6, 5, 1)), nn.Sequential(nn.Sigmoid(), nn.Conv2d(3, 5, 3))],
    ids=["two readers", "grouped", "something in between"],
)
def test_other_patterns_are_left_as_they_are(module: nn.Module, apply: Apply, maps_contract: Maps, maps_graph: Graph) -> None:
    contract = maps_contract(channels=5)
    before = maps_graph(module, contract)
    made, result = apply(pixel_convolution, before, contract)
    assert not result and made == before


def test_a_convolution_that_stays_float_is_left_as_it_is(apply: Apply, maps_contract: Maps, maps_graph: Graph) -> None:
    contract = maps_contract(channels=5)
    before = maps_graph(network(3), contract)
    made, result = apply(pixel_convolution, before, contract, products=["2/Conv"])
    assert not result and made == before
