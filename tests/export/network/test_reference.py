import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeport_export import ExportError, NetworkFailure
from edgeport_export.network.reference import TorchReference, copied, prepared, without_weights
from edgeport_runtime import Contract, Pixels
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import classification

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 10, 14, 3), dtype=np.uint8)


class Bound(nn.Module):
    """Has a part that works at 16x20 only."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Flatten(), nn.Linear(3 * 16 * 20, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def test_a_network_bound_to_a_size_is_named_with_its_module(class_contract: Contract) -> None:
    reference = TorchReference(Bound(), class_contract)
    assert reference.pixels(np.zeros((1, 16, 20, 3), np.uint8))["logits"].shape == (1, 3)
    with pytest.raises(NetworkFailure, match=r"PyTorch itself fails at \(3, 3, 10, 14\) in body\.2 \(Linear\): .*mat1 and mat2"):
        reference.pixels(PIXELS)


def test_the_network_itself_is_left_alone(class_contract: Contract) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    TorchReference(network, class_contract, torch.float64).pixels(PIXELS)
    assert network.training and next(network.parameters()).dtype == torch.float32


class Single(nn.Module):
    """Makes float32 of its own in every way that people do: a cast, a fresh tensor, one kept beside the buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.kernel = nn.Linear(3, 2), torch.full((3, 1, 3, 3), 1 / 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.conv2d(x, self.kernel, groups=3)
        start = torch.zeros(len(x), 3)
        start[:, 0] = 0.25
        y: torch.Tensor = self.linear((start + x.mean((2, 3))).float())
        return y


def test_the_exact_answer_of_a_network_that_makes_float32_itself() -> None:
    torch.manual_seed(0)
    network = Single().eval()
    contract = classification(Pixels(height=10, width=14, mean=(0.5,) * 3, std=(0.5,) * 3), ("a", "b"), image_axes(smallest_px=3))
    before = torch.get_default_dtype()
    got = TorchReference(network, contract, torch.float64).pixels(PIXELS)["logits"]
    assert got.dtype == np.float64 and torch.get_default_dtype() == before
    values = (PIXELS.astype(np.float64) / 255 - np.array(contract.pixels.mean)) / np.array(contract.pixels.std)
    windows = np.lib.stride_tricks.sliding_window_view(values, (3, 3), axis=(1, 2)).sum((4, 5)) * float(np.float32(1 / 9))
    weight, bias = (each.detach().double().numpy() for each in (network.linear.weight, network.linear.bias))
    expected = (windows.mean((1, 2)) + np.array([0.25, 0, 0])) @ weight.T + bias
    np.testing.assert_allclose(got, expected, atol=1e-13)
    assert np.abs(got - TorchReference(network, contract).pixels(PIXELS)["logits"]).max() > 1e-10


def test_a_network_that_cannot_be_copied_is_refused_with_the_reason() -> None:
    network = nn.Linear(2, 2)
    network.lock = threading.Lock()
    with pytest.raises(ExportError, match=r"cannot be copied \(cannot pickle '_thread.lock' object\).* make what is no module"):
        copied(network)


def test_prepared_is_a_copy_in_eval_mode() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout()).train()
    copy: Any = prepared(network)
    assert not copy.training and network.training
    copy[0].weight.data.zero_()
    assert network[0].weight.abs().sum() > 0


def test_a_copy_without_weights_takes_no_memory_and_computes_shapes() -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)).eval()
    empty = without_weights(network)
    assert {each.device.type for each in (*empty.parameters(), *empty.buffers())} == {"meta"}
    assert empty(torch.zeros(2, 3, 8, 8, device="meta")).shape == (2, 5, 6, 6)
    assert not any(each.is_meta for each in (*network.parameters(), *network.buffers()))


def test_float64_is_made_once(class_contract: Contract) -> None:
    reference = TorchReference(nn.Conv2d(3, 3, 1), class_contract)
    assert reference.double is reference.double and reference.double.dtype == torch.float64
    weights = [next(each.network.parameters()).detach().numpy() for each in (reference, reference.double)]
    assert weights[1].dtype == np.float64 and np.array_equal(weights[0], weights[1])


def test_an_input_that_a_network_changes_in_place_stays_as_it_was(class_contract: Contract) -> None:
    class InPlace(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mul_(0).mean((2, 3))

    pixels = PIXELS.copy()
    TorchReference(InPlace(), class_contract).pixels(pixels)
    assert np.array_equal(pixels, PIXELS)


def test_a_failure_that_does_not_come_again_is_told_as_such(class_contract: Contract) -> None:
    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls == 1:
                raise ValueError
            return x.mean((2, 3))

    with pytest.raises(NetworkFailure, match=r"in the network, but not when it was run again: ValueError$"):  # the message is empty
        TorchReference(Once(), class_contract).pixels(PIXELS)
