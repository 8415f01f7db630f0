from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeport_export import ImageTask, image_contract
from edgeport_export.network.reference import TorchReference
from edgeport_export.rewrites.finalize import finalize, finalize_fp32
from edgeport_export.rewrites.float_graph.precise_norm import precise_norm
from edgeport_export.rewrites.graph import GraphEditor
from edgeport_export.tracing.exporter import trace
from edgeport_export.validation.sweep import measure_parity
from edgeport_runtime import Pixels, SessionOptions
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import classification
from edgeport_runtime.device import open_session

HW = {0: "batch", 2: "height", 3: "width"}
EXAMPLE = torch.zeros(2, 8, 20, 28)


def drawn(norm: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return norm.eval()


NORMS: dict[str, Callable[[], nn.Module]] = {
    "instance": lambda: nn.InstanceNorm2d(8),
    "instance, affine": lambda: nn.InstanceNorm2d(8, affine=True, eps=1e-3),
    "groups": lambda: nn.GroupNorm(2, 8, eps=1e-6),
    "one group": lambda: nn.GroupNorm(1, 8, affine=False),
    "a group for each channel": lambda: nn.GroupNorm(8, 8),
}


@pytest.mark.parametrize(("top", "changes"), [(160, True), (4, False)])
@pytest.mark.parametrize("norm", NORMS)
def test_large_maps_are_as_precise_as_pytorchs(exported_graph: Callable[..., onnx.ModelProto], norm: str, top: int, changes: bool) -> None:
    network = drawn(NORMS[norm]())
    contract = classification(Pixels(height=top, width=top), ("a",), image_axes(smallest_px=2, largest_px=top, largest_batch=4))
    model = exported_graph(network, EXAMPLE, axes=[HW])
    assert precise_norm(GraphEditor(model), contract).changed == changes and not precise_norm(GraphEditor(model), contract)
    onnx.checker.check_model(model, full_check=True)
    session = open_session(model.SerializeToString(), SessionOptions(threads=1))
    for batch, height, width in ((2, 7, 5), (1, 96, 33), (1, 160, 160)) if changes else ((2, 4, 4), (1, 2, 3)):
        x = np.maximum(np.random.default_rng(0).normal(0.3, 1, (batch, 8, height, width)), 0).astype(np.float32)
        exact = network.double()(torch.from_numpy(x).double()).detach().numpy()
        got = session.run(None, {"a": x})[0]
        assert got.shape == exact.shape
        np.testing.assert_allclose(got, exact, atol=3e-6)
        network.float()


class Styled(nn.Sequential):
    """What networks that transfer a style are made of: the normalization follows a ReLU."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), norm, nn.Conv2d(8, 3, 3, padding=1))


@pytest.mark.parametrize("norm", ["instance", "groups"])
def test_a_normalization_behind_a_relu_passes_parity(norm: str) -> None:
    torch.manual_seed(0)
    network: Any = Styled(NORMS[norm]()).eval()
    contract = image_contract(network, ImageTask(task="tensors", pixels=Pixels(height=64, width=64)))
    model = trace(network, contract).model
    reference = TorchReference(network, contract)
    assert not measure_parity(reference, finalize(model, contract))  # onnxruntime's own kernel: 13 and 19 times PyTorch's noise
    parity = measure_parity(reference, finalize_fp32(model, contract))
    assert parity, str(parity)
