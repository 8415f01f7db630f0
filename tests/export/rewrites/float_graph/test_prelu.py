"""PReLU, by the two forms that stand for it, held to PyTorch bit by bit."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeport_export import export_bundle
from edgeport_export.rewrites.float_graph.prelu import leaky_relu, prelu
from edgeport_export.rewrites.graph import GraphEditor
from edgeport_runtime import Pixels, SessionOptions
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import classification
from edgeport_runtime.device import open_session

CONTRACT = classification(Pixels(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3), ("a", "b"), image_axes(smallest_px=1))
SLOPES = {"one": (0.25,), "one that is negative": (-1.5,), "each channel's": (0.25, -0.5, 1.75), "some without": (0.0, 1.0, -1.0)}
ENDS = (-np.inf, -3e38, -1.0, -1e-40, -0.0, 0.0, 1e-40, 1.0, 3e38, np.inf)


def sloped(slopes: tuple[float, ...]) -> nn.PReLU:
    made = nn.PReLU(len(slopes))
    made.weight.data = torch.tensor(slopes)
    return made


def values(rank: int) -> np.ndarray:
    """Numbers of all sizes, float32; the ends of the range come in each of 3 channels."""
    drawn = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    drawn[0, :, :2, :] = np.array(ENDS, np.float32).reshape(2, 5)
    return drawn if rank == 4 else drawn.transpose(0, 2, 3, 1).reshape(-1, 3)


@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("name", SLOPES)
def test_it_gives_pytorchs_bits(exported_graph: Callable[..., onnx.ModelProto], name: str, rank: int) -> None:
    module, x = sloped(SLOPES[name]), values(rank)
    model = exported_graph(module, torch.from_numpy(x))
    editor = GraphEditor(model)
    one = len(SLOPES[name]) == 1
    assert (leaky_relu(editor, CONTRACT).changed, prelu(editor, CONTRACT).changed) == ((1, 0) if one else (0, 1))
    kinds = ["LeakyRelu"] if one else ["Min", "Mul", "Relu", "Add"]
    assert [node.op_type for node in editor.nodes] == kinds
    onnx.checker.check_model(model, full_check=True)
    got = open_session(model.SerializeToString(), SessionOptions(threads=1)).run(None, {"a": x})[0]
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(got, expected)  # 0 times an infinity is no number in both


class Computed(nn.Module):
    """A slope that is another input."""

    def forward(self, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        return torch.prelu(x, slope)


@pytest.mark.parametrize("given", ["computed", "infinite", "half precision"])
def test_other_slopes_stay(exported_graph: Callable[..., onnx.ModelProto], given: str) -> None:
    x = torch.zeros(2, 3, 4, 5)
    if given == "computed":
        model = exported_graph(Computed(), x, torch.ones(3))
    elif given == "infinite":
        model = exported_graph(sloped((0.5, float("inf"), 0.5)), x)
    else:
        model = exported_graph(sloped((0.5, 0.25, 0.125)).half(), x.half())
    assert "PRelu" in [node.op_type for node in model.graph.node]
    assert not leaky_relu(GraphEditor(model), CONTRACT) and not prelu(GraphEditor(model), CONTRACT)


def test_a_bundle_holds_none(tmp_path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 8, 3), nn.PReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    contract = classification(Pixels(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3), ("a", "b"), image_axes(smallest_px=8))
    export_bundle(network.eval(), contract, tmp_path / "bundle", name="sloped")
    kinds = [node.op_type for node in onnx.load(tmp_path / "bundle" / "model.onnx").graph.node]
    assert "PRelu" not in kinds and kinds.count("LeakyRelu") == 1
