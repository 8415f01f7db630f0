from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from edgeport_export.quantization.qdq import shaped, with_pairs
from edgeport_export.quantization.recovery.frontier import run_from
from edgeport_export.quantization.recovery.rounded_network import RoundedNetwork
from edgeport_export.quantization.variants import QuantizableGraph
from edgeport_runtime import Contract

RANGE = (0.0, 5.1)  # of every value: steps of 0.02


class TwoProducts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x))).mean((2, 3))[:, :3]


@pytest.fixture
def network(quantizable: Callable[..., QuantizableGraph], class_contract: Contract) -> tuple[RoundedNetwork, nn.Module]:
    torch.manual_seed(0)
    module = TwoProducts()
    graph = quantizable(module, class_contract)
    ranges = {value: RANGE for node in graph.model.graph.node for value in (*node.input, *node.output)}
    editor, context = shaped(graph.model, class_contract, frozenset(graph.quantizable), ranges, graph.target)
    return RoundedNetwork(editor.model, with_pairs(editor.model, context, graph.target), context.products), module


def exact_first(module: nn.Module, pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return torch.relu(module.double().first(torch.from_numpy(pixels).double().permute(0, 3, 1, 2) / 127.5 - 1)).numpy()


def test_a_product_reads_what_those_before_it_give_rounded(network: tuple[RoundedNetwork, nn.Module]) -> None:
    rounded, module = network
    assert list(rounded.products) == ["first/Conv", "second/Conv"]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    read = run_from(rounded.rounded, [{"pixels": pixels}], [rounded.reads("second/Conv")])[0][0]
    exact = exact_first(module, pixels)
    np.testing.assert_allclose(read / 0.02, np.round(read / 0.02), atol=1e-3)  # on the steps of the range
    assert np.abs(read - np.clip(exact, 0, 5.1)).max() < 0.012
    whole = run_from(rounded.exact, [{"pixels": pixels}], [rounded.products["second/Conv"].given])[0][0]
    np.testing.assert_allclose(whole, exact, atol=1e-5)


def test_weights_and_what_is_added_can_be_replaced(network: tuple[RoundedNetwork, nn.Module]) -> None:
    rounded, _ = network
    sums = rounded.products["first/Conv"]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    rows = sums.rows.shape[0] * sums.rows.shape[1]
    rounded.replace("first/Conv", np.zeros_like(sums.weights), np.linspace(0, 1.5, rows, dtype=np.float32))
    read = run_from(rounded.rounded, [{"pixels": pixels}], [rounded.reads("second/Conv")])[0][0]
    assert read.max() == pytest.approx(1.5, abs=0.011) and read.min() == 0
    rounded.replace("first/Conv", np.zeros_like(sums.weights), None)
    again = run_from(rounded.rounded, [{"pixels": pixels}], [rounded.reads("second/Conv")])[0][0]
    assert np.array_equal(read, again)
