import numpy as np
import pytest
import torch
from torch import nn

from edgeport_export.network.reference import TorchReference
from edgeport_export.validation.last_bits import DRAWS, LAST_BIT, RELATIVE_CHANGE, Envelope, envelopes, last_bit_noise
from edgeport_runtime import Contract, Input, Output, Range

CONTRACT = Contract(
    task="tensors",
    inputs=(Input(name="x", shape=("batch", 4), dtype="float32"),),
    outputs=(Output(name="y", kind="tensor", shape=("batch", 4), dtype="float32"),),
    axes={"batch": Range(low=1, high=8)},
)
X = {"x": np.array([[1.0, -2.0, 0.5, 3.0]], np.float32)}


class Scale(nn.Module):
    def __init__(self, weight: float, position: float = 1.0, rounded: bool = False) -> None:
        super().__init__()
        self.weight, self.rounded = nn.Parameter(torch.tensor(weight)), rounded
        self.register_buffer("position", torch.tensor(position))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.weight * x * self.position
        return torch.round(y) if self.rounded else y


def envelope(network: nn.Module) -> Envelope:
    return envelopes(TorchReference(network, CONTRACT), [X])[0]["y"]


def test_the_envelope_is_as_wide_as_the_change_of_weight_and_input() -> None:
    found, exact = envelope(Scale(0.3)), np.float64(np.float32(0.3)) * X["x"]
    assert (found.low <= exact).all() and (exact <= found.high).all()
    widths = (found.high - found.low) / abs(exact)
    assert (widths > RELATIVE_CHANGE / DRAWS).all() and (widths <= 4.1 * RELATIVE_CHANGE).all()


def test_a_value_on_the_edge_of_rounding_has_both_answers() -> None:
    found = envelope(Scale(0.5 + 1e-8, rounded=True))  # 0.5, -1, 0.25, 1.5
    assert found.low.tolist() == [[0, -1, 0, 1]] and found.high.tolist() == [[1, -1, 0, 2]]


@pytest.mark.parametrize("position", [0.0, 7.0, -3.0])
def test_whole_numbers_among_the_buffers_stay(position: float) -> None:
    class Truncated(Scale):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x) + self.position.long()

    found = envelope(Truncated(1.0, position))
    assert (found.low == position).all() and (found.high == position).all()


def test_the_network_stays_as_it_is_and_the_envelope_is_repeatable() -> None:
    network = Scale(0.3)
    first, again = envelope(network), envelope(network)
    assert torch.equal(network.weight, torch.tensor(0.3)) and np.array_equal(first.low, again.low) and np.array_equal(first.high, again.high)


def test_a_network_nearby_that_refuses_is_left_out() -> None:
    class Strict(Scale):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not torch.equal(self.weight.double(), torch.tensor(0.3).double()):
                raise ValueError("not the trained weight")
            return self.weight * x

    found = envelope(Strict(0.3))
    assert np.array_equal(found.low, found.high)


def test_beyond() -> None:
    found = Envelope(low=np.zeros(5), high=np.ones(5))
    assert found.beyond(np.array([-0.5, 0, 1, 3, np.nan])).tolist() == [0.5, 0, 0, 2, np.inf]


def test_the_noise_is_that_of_a_last_bit_by_hand() -> None:
    """Weight and input move by up to 2^-23 each; the largest value is 3 * 0.3, and no answer can move by more than both."""
    found = last_bit_noise(TorchReference(Scale(0.3), CONTRACT), [X, {"x": 1000 * X["x"]}])
    for noise, scale in zip((each["y"] for each in found), (1.0, 1000.0), strict=True):
        assert 0.1 * LAST_BIT * 0.9 * scale < noise <= 2.01 * LAST_BIT * 0.9 * scale
    assert last_bit_noise(TorchReference(Scale(0.3), CONTRACT), [X]) == last_bit_noise(TorchReference(Scale(0.3), CONTRACT), [X])


def test_where_digits_cancel_the_noise_is_large() -> None:
    class Canceling(Scale):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight - 1000.0

    near, far = last_bit_noise(TorchReference(Canceling(1000.1), CONTRACT), [{"x": np.ones((1, 4), np.float32)}, {"x": np.zeros((1, 4), np.float32)}])
    assert near["y"] > 1e-5 and far["y"] == 0
