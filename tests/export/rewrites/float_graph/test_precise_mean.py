from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgeport_export import ImageTask, image_contract
from edgeport_export.network.reference import TorchReference
from edgeport_export.rewrites.finalize import finalize_fp32
from edgeport_export.rewrites.float_graph.precise_mean import precise_mean
from edgeport_export.rewrites.graph import GraphEditor
from edgeport_export.tracing.exporter import trace
from edgeport_export.validation.sweep import measure_parity
from edgeport_runtime import Pixels, SessionOptions
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import classification
from edgeport_runtime.device import open_session

HW = {0: "batch", 2: "height", 3: "width"}
EXAMPLE = torch.zeros(2, 3, 20, 28)
MAPS = {"large": (1, 512), "small": (1, 96)}


@pytest.mark.parametrize("top", MAPS)
@pytest.mark.parametrize(
    "mean",
    [lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: x.relu().mean((2, 3)), lambda x: x[:, 0].mean((-1, -2), keepdim=True)],
)
def test_the_mean_of_a_large_map_is_as_precise_as_pytorchs(exported_graph: Callable[..., onnx.ModelProto], top: str, mean: Any) -> None:
    low, high = MAPS[top]
    contract = classification(
        Pixels(height=32, width=32, mean=(0.5,) * 3, std=(0.5,) * 3), ("a",), image_axes(smallest_px=low, largest_px=high, largest_batch=4)
    )
    model = exported_graph(mean, EXAMPLE, axes=[HW])
    assert precise_mean(GraphEditor(model), contract).changed == (top == "large") and not precise_mean(GraphEditor(model), contract)
    onnx.checker.check_model(model, full_check=True)
    session = open_session(model.SerializeToString(), SessionOptions(threads=1))
    for batch, height, width in ((1, 1, 1), (2, 7, 5), (1, 96, 96), (1, high, high)):
        x = np.random.default_rng(0).uniform(0, 1, (batch, 3, height, width)).astype(np.float32)
        exact = mean(torch.from_numpy(x).double()).numpy()
        np.testing.assert_allclose(session.run(None, {"a": x})[0], exact, atol=2e-7)


class Means(nn.Module):
    """Nothing but the mean of the pixels, over these axes."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(self.axes)


@pytest.mark.parametrize("axes", [(2, 3), (1, 2, 3)])
@pytest.mark.parametrize("side", [32, 80])
def test_the_mean_of_the_pixels_passes_parity(axes: tuple[int, ...], side: int) -> None:
    """onnxruntime moves the Transpose behind ReduceMean, whose sums were then up to 26 times as far from float64 as PyTorch's."""
    network: Any = Means(*axes)
    contract = image_contract(network, ImageTask(task="tensors", pixels=Pixels(height=side, width=side)))
    parity = measure_parity(TorchReference(network, contract), finalize_fp32(trace(network, contract).model, contract))
    assert parity, str(parity)
