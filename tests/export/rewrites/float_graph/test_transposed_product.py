"""Products that are transposed: computed the other way round, and held to numpy in float64."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeport_export.rewrites.float_graph.transposed_product import transposed_product
from edgeport_export.rewrites.graph import GraphEditor
from edgeport_runtime import Pixels, SessionOptions
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import classification
from edgeport_runtime.device import open_session

Graph = Callable[..., onnx.ModelProto]
CONTRACT = classification(Pixels(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3), ("a", "b"), image_axes(smallest_px=1))
A, B = (np.random.default_rng(seed).standard_normal((2, 3, 4)) for seed in range(2))


@pytest.fixture
def product(exported_graph: Graph) -> Callable[[nn.Module], onnx.ModelProto]:
    return lambda module: exported_graph(module, torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))


def run(model: onnx.ModelProto) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    return np.asarray(open_session(model.SerializeToString(), SessionOptions()).run(None, {"a": A.astype(np.float32), "b": B.astype(np.float32)})[0])


class Backwards(nn.Module):
    """(weights · valuesᵀ)ᵀ, as attention over a map ends."""

    def __init__(self, swap: tuple[int, int] = (1, 2), both: bool = False) -> None:
        super().__init__()
        self.swap, self.both = swap, both

    def forward(self, weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        product = weights @ values.transpose(1, 2)
        return product.transpose(*self.swap) + (product.sum() if self.both else 0)


def test_a_product_that_is_transposed_is_computed_the_other_way_round(product: Callable[[nn.Module], onnx.ModelProto]) -> None:
    model = product(Backwards())
    assert transposed_product(GraphEditor(model), CONTRACT).changed == 1
    assert [node.op_type for node in model.graph.node] == ["Transpose", "MatMul"]
    np.testing.assert_allclose(run(model), np.swapaxes(A @ np.swapaxes(B, 1, 2), 1, 2), atol=1e-6)


class Spread(nn.Module):
    """One matrix before a stack of them: the product spreads it, a transposition of three axes cannot be applied to it."""

    def forward(self, weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return (weights[0] @ values.transpose(1, 2)).transpose(1, 2)


class Chained(nn.Module):
    """The second product reads what the first one became."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        inner = (a @ b.transpose(1, 2)).transpose(1, 2)
        return (a.transpose(1, 2) @ inner).transpose(1, 2)


def test_products_one_in_another_are_turned_one_after_the_other(product: Callable[[nn.Module], onnx.ModelProto]) -> None:
    model = product(Chained())
    assert transposed_product(GraphEditor(model), CONTRACT)
    np.testing.assert_allclose(run(model), np.swapaxes(np.swapaxes(A, 1, 2) @ np.swapaxes(A @ np.swapaxes(B, 1, 2), 1, 2), 1, 2), atol=1e-5)


@pytest.mark.parametrize("module", [Backwards(swap=(0, 1)), Backwards(both=True), Spread()], ids=["another axis", "two readers", "fewer axes"])
def test_other_products_stay(product: Callable[[nn.Module], onnx.ModelProto], module: nn.Module) -> None:
    model = product(module)
    before = model.SerializeToString()
    assert not transposed_product(GraphEditor(model), CONTRACT) and model.SerializeToString() == before
