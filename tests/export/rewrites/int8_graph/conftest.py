"""Networks that give maps, as graphs that the int8 passes change."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgeport_export.quantization.qdq import preprocess
from edgeport_export.tracing.exporter import trace
from edgeport_runtime import Contract, Output, Pixels, Range, SessionOptions
from edgeport_runtime.contract import pixel_input
from edgeport_runtime.device import open_session


@pytest.fixture(scope="session")
def maps_contract() -> Callable[..., Contract]:
    """Pixels in, maps of unknown size out. `channels`: of the maps."""

    def contract(pixels: Pixels | None = None, channels: int | str = "?") -> Contract:
        sides = Range(low=4, high=64)
        output = Output(name="maps", dtype="float32", shape=("batch", channels, "?", "?"), kind="tensor")
        given = pixel_input(pixels or Pixels(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3))
        return Contract(task="tensors", inputs=(given,), outputs=(output,), axes={"batch": Range(low=1, high=4), "height": sides, "width": sides})

    return contract


@pytest.fixture(scope="session")
def maps_graph() -> Callable[[nn.Module, Contract], onnx.ModelProto]:
    """A network's graph, preprocessed as the quantizer gets it."""
    return lambda module, contract: preprocess(trace(module.eval(), contract).model)


@pytest.fixture(scope="session")
def after_a_convolution(maps_contract: Callable[..., Contract], maps_graph: Callable[..., onnx.ModelProto]) -> Callable[..., tuple[onnx.ModelProto, Contract]]:
    """A 3x3 convolution to 8 channels, a ReLU, and then a module that gives maps."""

    def made(last: nn.Module) -> tuple[onnx.ModelProto, Contract]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), last)
        contract = maps_contract()
        shape = ("batch", module(torch.zeros(1, 3, 8, 8)).shape[1], "?", "?")
        contract = replace(contract, outputs=(replace(contract.outputs[0], shape=shape),))
        return maps_graph(module, contract), contract

    return made


@pytest.fixture(scope="session")
def run_maps() -> Callable[[onnx.ModelProto, np.ndarray], np.ndarray]:
    """The maps of a model that passes ONNX's full check."""

    def run(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
        onnx.checker.check_model(model, full_check=True)
        return np.asarray(open_session(model.SerializeToString(), SessionOptions(threads=1)).run(["maps"], {"pixels": pixels})[0])

    return run


@pytest.fixture(scope="session")
def padded_with_means() -> Callable[[nn.Conv2d, Pixels, np.ndarray], np.ndarray]:
    """A convolution without padding in float64, of an image with pixels around it that are the means in whole levels."""

    def truth(convolution: nn.Conv2d, pixels: Pixels, image: np.ndarray) -> np.ndarray:
        mean, std = (torch.tensor(each).double().reshape(-1, 1, 1) for each in (pixels.mean, pixels.std))
        x = torch.from_numpy(image).permute(0, 3, 1, 2).double() - (255 * mean).round()
        down, across = convolution.padding
        x = functional.pad(x, (int(across), int(across), int(down), int(down))) + (255 * mean).round()
        bias = None if convolution.bias is None else convolution.bias.double()
        return functional.conv2d((x / 255 - mean) / std, convolution.weight.double(), bias, convolution.stride).detach().numpy()

    return truth
