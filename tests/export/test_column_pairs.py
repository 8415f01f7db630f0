"""The first convolution over pairs of columns: held to PyTorch in float64, at widths of both kinds."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeport_export.quantize import preprocess
from edgeport_export.rewrites.column_pairs import column_pairs
from edgeport_export.rewrites.pixel_convolution import pixel_convolution
from edgeport_export.trace import trace
from edgeport_runtime import Contract, Pixels, Range, SessionOptions
from edgeport_runtime.contract import Output, pixel_input
from edgeport_runtime.device import open_session

COLOUR = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
GREY = {"mode": "L", "mean": (0.2,), "std": (0.5,)}


def contract(pixels: Pixels, step: int = 1) -> Contract:
    output = Output(name="maps", dtype="float32", shape=("batch", 5, "?", "?"), kind="tensor")
    axes = {"batch": Range(low=1, high=4), "height": Range(low=8, high=64), "width": Range(low=8, high=64, step=step)}
    image = pixel_input(pixels)
    if not step:
        axes, image = {"batch": axes["batch"]}, replace(image, shape=("batch", pixels.height, pixels.width, pixels.channels))
    return Contract(task="tensors", inputs=(image,), outputs=(output,), axes=axes)


def on_pixels(network: nn.Module, described: Contract) -> onnx.ModelProto:
    model = preprocess(trace(network.eval(), described).model)
    assert pixel_convolution(model, "pixels", described.pixels) is not None
    return model


def run(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    return np.asarray(open_session(model.SerializeToString(), SessionOptions(threads=1)).run(["maps"], {"pixels": pixels})[0])


def truth(network: nn.Module, pixels: Pixels, image: np.ndarray) -> np.ndarray:
    x = (torch.from_numpy(image).double() / 255 - torch.tensor(pixels.mean).double()) / torch.tensor(pixels.std).double()
    with torch.no_grad():
        expected = network.double()(x.permute(0, 3, 1, 2)).numpy()
    network.float()
    return np.asarray(expected)


CASES = {
    "7x7, padding 3": ({"kernel_size": 7, "padding": 3}, COLOUR, [5, 8, 7, 4]),
    "5x5, padding 2": ({"kernel_size": 5, "padding": 2}, COLOUR, [5, 8, 5, 3]),
    "3x3, padding 1": ({"kernel_size": 3, "padding": 1}, COLOUR, [5, 8, 3, 2]),
    "3x3, no padding": ({"kernel_size": 3}, COLOUR, [5, 8, 3, 2]),
    "6x3, padding 2 and 1": ({"kernel_size": (6, 3), "padding": (2, 1)}, COLOUR, [5, 8, 6, 2]),
    "one row down": ({"kernel_size": 3, "padding": 1, "stride": (1, 2)}, COLOUR, [5, 8, 3, 2]),
    "more padding than reach": ({"kernel_size": 3, "padding": (0, 2), "stride": (3, 2)}, COLOUR, [5, 8, 3, 2]),
    "grey": ({"kernel_size": 5, "padding": 2}, GREY, [5, 4, 5, 3]),
}


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=12)
@given(st.integers(1, 3), st.integers(8, 30), st.integers(8, 30), st.integers(0, 9))
def test_pairs_of_columns_give_what_columns_gave(name: str, batch: int, height: int, width: int, seed: int) -> None:
    paired = CASES[name][2]
    pixels, made, network = _paired(name)
    assert next(list(each.dims) for each in made.graph.initializer if each.name.endswith(".pairs")) == paired
    image = np.random.default_rng(seed).integers(0, 256, (batch, height, width, pixels.channels), dtype=np.uint8)
    image[:, :, -1] = 255  # what lies beyond the border would show
    expected = truth(network, pixels, image)
    np.testing.assert_allclose(run(made, image), expected, atol=3e-6 * np.ptp(expected))


_MADE: dict[str, tuple[Pixels, onnx.ModelProto, nn.Module]] = {}


def _paired(name: str) -> tuple[Pixels, onnx.ModelProto, nn.Module]:
    if name not in _MADE:
        options, normalisation, _ = CASES[name]
        pixels = Pixels(height=16, width=16, **normalisation)
        network = nn.Conv2d(pixels.channels, 5, **{"stride": 2, **options})
        made = on_pixels(network, contract(pixels))
        assert column_pairs(made, contract(pixels))
        _MADE[name] = pixels, made, network
    return _MADE[name]


@pytest.mark.parametrize(
    ("options", "width", "step", "fills"),
    [
        ({"kernel_size": 5, "padding": 2}, 16, 0, 0),
        ({"kernel_size": 5, "padding": 2}, 17, 0, 1),
        ({"kernel_size": 4, "padding": 1}, 16, 0, 0),
        ({"kernel_size": 4, "padding": 1}, 17, 0, 1),
        ({"kernel_size": 3, "padding": 1}, 15, 0, 1),
        ({"kernel_size": 4, "padding": 1}, 16, 2, 0),
        ({"kernel_size": 2}, 16, 4, 0),
    ],
)
def test_where_the_contract_knows_the_width_nothing_is_filled_up_in_vain(options: dict[str, int], width: int, step: int, fills: int) -> None:
    pixels, network = Pixels(height=9, width=width, **COLOUR), nn.Conv2d(3, 5, stride=2, **options)
    made = on_pixels(network, contract(pixels, step))
    pads = sum(node.op_type == "Pad" for node in made.graph.node)
    assert column_pairs(made, contract(pixels, step)) and sum(node.op_type == "Pad" for node in made.graph.node) == pads + fills
    image = np.random.default_rng(0).integers(0, 256, (2, 9, width, 3), dtype=np.uint8)
    expected = truth(network, pixels, image)
    np.testing.assert_allclose(run(made, image), expected, atol=3e-6 * np.ptp(expected))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": (2, 1), "padding": 1},
        {"kernel_size": 4, "stride": 2, "padding": 1},
        {"kernel_size": 4, "stride": 2, "padding": 2},
        {"kernel_size": (3, 1), "stride": 2},
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "stride": 3},
    ],
    ids=["by 1", "by 1 across", "even, padding 1", "even, padding 2", "one column", "two columns", "dilated", "by 3"],
)
def test_other_convolutions_keep_their_columns(options: dict[str, int]) -> None:
    described = contract(Pixels(height=16, width=16))
    model = on_pixels(nn.Conv2d(3, 5, **options), described)
    before = model.SerializeToString(deterministic=True)
    assert not column_pairs(model, described) and model.SerializeToString(deterministic=True) == before
