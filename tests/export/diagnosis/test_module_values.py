import numpy as np
import torch
from torch import Tensor, nn

from edgeport_export.diagnosis.module_values import INPUT, matches, module_calls, module_outputs
from edgeport_export.network.reference import TorchReference
from edgeport_export.tracing.exporter import trace
from edgeport_runtime import Pixels
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import classification

CONTRACT = classification(Pixels(height=16, width=16), ("a", "b", "c"), image_axes(smallest_px=8, largest_px=32))


class Block(nn.Module):
    """Folding, one ReLU called three times, a part inside a part, and code of its own between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout())
        self.second, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.activation = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.first(x))
        y = self.activation(self.norm(self.second(x)))
        return self.head(self.activation(x + 0.5 * y).mean((2, 3)))


def settled() -> nn.Module:
    network = Block()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return network.eval()


def test_every_module_is_matched_with_the_value_that_is_its_output() -> None:
    """Each value, run by onnxruntime, equals what the module gave in PyTorch; the shapes alone would not tell these apart."""
    from edgeport_export.quantization.macs import session_with_outputs

    network = settled()
    reference, model = TorchReference(network, CONTRACT), trace(network, CONTRACT).model
    arrays = {"pixels": np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)}
    found, unmatched = matches(model, module_calls(reference, arrays))
    assert not unmatched
    assert [match.key for match in found] == [
        *((INPUT, 0), ("first.2", 0), ("activation", 0), ("norm", 0), ("activation", 1), ("activation", 2), ("head", 0)),
    ]
    assert found[1].modules == ("first.0 (Conv2d)", "first.1 (BatchNorm2d)", "first.2 (Dropout)")
    assert found[3].modules == ("second (Conv2d)", "norm (BatchNorm2d)") and found[3].node == "second/Conv"
    outputs = module_outputs(reference, arrays, [match.key for match in found])
    for match in found:
        got = session_with_outputs(model, [match.candidates[-1]]).run([match.candidates[-1]], arrays)[0]
        np.testing.assert_allclose(got, outputs[match.key], rtol=1e-4, atol=1e-5)


def test_what_works_in_place_does_not_change_what_was_kept() -> None:
    reference = TorchReference(settled(), CONTRACT)
    arrays = {"pixels": np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3)).astype(np.uint8)}
    kept = module_outputs(reference, arrays, [("norm", 0), ("activation", 1)])
    assert kept[("norm", 0)].min() < 0 and kept[("activation", 1)].min() == 0
    np.testing.assert_array_equal(np.maximum(kept[("norm", 0)], 0), kept[("activation", 1)])
    double = module_outputs(reference.double, arrays, [(INPUT, 0)])[(INPUT, 0)]
    assert double.dtype == np.float64
    np.testing.assert_allclose(double, arrays["pixels"].transpose(0, 3, 1, 2) / 255.0)


def test_a_module_that_the_graph_has_under_no_name_is_told() -> None:
    """A BatchNorm behind code of the network's own is folded into nothing that is a module."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(torch.flip(x, (3,))).mean((2, 3)))

    network = Own().eval()
    reference = TorchReference(network, CONTRACT)
    arrays = {"pixels": np.zeros((1, 16, 16, 3), np.uint8)}
    model = trace(network, CONTRACT).model
    for node in model.graph.node:
        if node.name.startswith("norm/"):
            node.name = node.name.replace("norm/", "another/")
    found, unmatched = matches(model, module_calls(reference, arrays))
    assert unmatched == ["norm (BatchNorm2d)"] and [match.key for match in found][-1] == ("head", 0)
