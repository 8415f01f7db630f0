"""Softmax along other axes than the last, held to PyTorch in float64 and to its rules for infinities."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edgeport_export import export_bundle
from edgeport_export.rewrites.float_graph.channel_softmax import channel_softmax
from edgeport_export.rewrites.graph import GraphEditor
from edgeport_runtime import Pixels, SessionOptions, load
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import classification, image_to_image
from edgeport_runtime.device import open_session

CONTRACT = classification(Pixels(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3), ("a", "b"), image_axes(smallest_px=1))
FUNCTIONS = {"Softmax": torch.softmax, "LogSoftmax": torch.log_softmax}


def rewritten(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    editor = GraphEditor(model)
    changed = channel_softmax(editor, CONTRACT).changed
    onnx.checker.check_model(editor.model, full_check=True)
    return editor.model, changed


def answer(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return np.asarray(open_session(model.SerializeToString(), SessionOptions(threads=1)).run(None, {"a": x})[0])


@pytest.mark.parametrize(("shape", "axis"), [((2, 2, 5, 7), 1), ((1, 150, 4, 4), -3), ((3, 8, 6), 1), ((2, 3, 4, 5), 2), ((4, 6), 0)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_as_near_to_float64_as_pytorch(exported_graph: Callable[..., onnx.ModelProto], name: str, shape: tuple[int, ...], axis: int) -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 6, shape).astype(np.float32))
    function = partial(FUNCTIONS[name], dim=axis)
    model, changed = rewritten(exported_graph(function, x))
    assert changed == 1 and name not in [node.op_type for node in model.graph.node]
    exact = function(x.double()).numpy()
    error, allowed = (np.abs(each - exact).max() for each in (answer(model, x.numpy()), function(x).numpy()))
    assert error <= max(2 * allowed, np.spacing(np.float32(np.abs(exact).max())))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_large_and_infinite_values_give_what_pytorch_gives(exported_graph: Callable[..., onnx.ModelProto], name: str) -> None:
    columns = [[3e38, -3e38, 1], [-np.inf, 0, 1], [-np.inf, -np.inf, 2], [-np.inf] * 3, [np.inf, 0, 1], [np.nan, 0, 1], [-3e38, -3e38, -3e38], [1e-40, 0, -0.0]]
    x = torch.tensor(columns).T[None, :, :, None].contiguous()  # (1, 3, 8, 1)
    function = partial(FUNCTIONS[name], dim=1)
    model, changed = rewritten(exported_graph(function, x))
    assert changed == 1
    np.testing.assert_allclose(answer(model, x.numpy()), function(x).numpy(), rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    ("shape", "axis", "dtype"),
    [((2, 3, 4, 5), -1, torch.float32), ((2, 3), 1, torch.float32), ((2, 3, 4, 5), 1, torch.float16)],
    ids=["the last axis of a map", "the last axis of rows", "half precision"],
)
def test_others_stay(exported_graph: Callable[..., onnx.ModelProto], shape: tuple[int, ...], axis: int, dtype: torch.dtype) -> None:
    before = exported_graph(partial(torch.softmax, dim=axis), torch.zeros(shape, dtype=dtype))
    after, changed = rewritten(GraphEditor.of_copy(before).model)
    assert not changed and after == before


class Segments(nn.Module):
    """Shares of three classes at each position, as an image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.second(self.first(x).relu()), 1)


def test_a_bundle_holds_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    contract = image_to_image(Pixels(height=16, width=16, resize="keep", mean=(0.5,) * 3, std=(0.5,) * 3), image_axes(smallest_px=4, largest_px=32))
    network = Segments().eval()
    export_bundle(network, contract, tmp_path / "bundle", name="segments")
    assert "Softmax" not in [node.op_type for node in onnx.load(tmp_path / "bundle" / "model.onnx").graph.node]
    image = np.random.default_rng(0).integers(0, 256, (1, 24, 17, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = network.double()(torch.from_numpy(image).permute(0, 3, 1, 2).double() / 127.5 - 1).numpy()
    (given,) = load(tmp_path / "bundle").raw(image).values()  # bytes (N, H, W, 3)
    np.testing.assert_allclose(given, 127.5 * (1 + expected.transpose(0, 2, 3, 1)), atol=0.501)
