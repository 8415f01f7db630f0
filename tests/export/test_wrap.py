import threading

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from edgeport_export import ExportError, NetworkFailure
from edgeport_export.wrap import GraphModule, Reference, as_pixels, compared_outputs, copied, flatten, graph_outputs
from edgeport_runtime import Contract, Pixels
from edgeport_runtime.contract import classification, image_axes

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 10, 14, 3), dtype=np.uint8)


@pytest.mark.parametrize("mean_std", [((0.5,) * 3, (0.5,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
def test_both_paths_feed_the_network_what_torchvision_would(mean_std: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    mean, std = mean_std
    contract = classification(Pixels(height=10, width=14, mean=mean, std=std), tuple("abc"), image_axes(smallest_px=1))
    reference = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float64, scale=True), v2.Normalize(list(mean), list(std))])
    expected = torch.stack([reference(image) for image in PIXELS]).numpy()
    np.testing.assert_allclose(Reference(nn.Identity(), contract, torch.float64).pixels(PIXELS)["logits"], expected, atol=1e-14)
    np.testing.assert_allclose(GraphModule(nn.Identity(), contract)(torch.from_numpy(PIXELS))[0].numpy(), expected, atol=5e-7)


def test_a_pixel_output_comes_as_levels_and_as_rounded_pixels(image_contract: Contract) -> None:
    image, levels = GraphModule(nn.Identity(), image_contract)(torch.from_numpy(PIXELS))
    assert graph_outputs(image_contract) == ["image", "image.levels"] and compared_outputs(image_contract) == ["image.levels"]
    assert image.dtype == torch.uint8 and levels.dtype == torch.float32
    np.testing.assert_array_equal(image.numpy(), PIXELS)  # there and back again: -1..1 becomes 0..255
    np.testing.assert_array_equal(Reference(nn.Identity(), image_contract).pixels(PIXELS)["image"], PIXELS)


def test_levels_beyond_the_range_are_clipped_before_rounding(image_contract: Contract) -> None:
    out = Reference(nn.Hardtanh(-9, 9), image_contract).run({"pixels": PIXELS})
    wide = Reference(_Tripled(), image_contract).run({"pixels": PIXELS})
    assert out["image"].min() >= 0 and wide["image.levels"].min() == 0 and wide["image.levels"].max() == 255


class _Tripled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * x


class Bound(nn.Module):
    """Has a part that works at 16x20 only."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Flatten(), nn.Linear(3 * 16 * 20, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def test_a_network_bound_to_a_size_is_named_with_its_module(class_contract: Contract) -> None:
    reference = Reference(Bound(), class_contract)
    assert reference.pixels(np.zeros((1, 16, 20, 3), np.uint8))["logits"].shape == (1, 3)
    with pytest.raises(NetworkFailure, match=r"PyTorch itself fails at \(3, 3, 10, 14\) in body\.2 \(Linear\): .*mat1 and mat2"):
        reference.pixels(PIXELS)


def test_halves_round_to_even() -> None:
    assert as_pixels(torch.tensor([0.5, 1.5, 2.5, 254.5])).tolist() == [0, 2, 2, 254]


def test_outputs_of_any_nesting_are_flattened_in_order() -> None:
    a, b, c = (torch.full((1,), float(i)) for i in range(3))
    assert [t.item() for t in flatten({"out": a, "aux": [b, (c,)]})] == [0, 1, 2]


def test_the_network_itself_is_left_alone(class_contract: Contract) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    Reference(network, class_contract, torch.float64).pixels(PIXELS)
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
    contract = classification(Pixels(height=10, width=14), ("a", "b"), image_axes(smallest_px=3))
    before = torch.get_default_dtype()
    got = Reference(network, contract, torch.float64).pixels(PIXELS)["logits"]
    assert got.dtype == np.float64 and torch.get_default_dtype() == before
    values = (PIXELS.astype(np.float64) / 255 - np.array(contract.pixels.mean)) / np.array(contract.pixels.std)
    windows = np.lib.stride_tricks.sliding_window_view(values, (3, 3), axis=(1, 2)).sum((4, 5)) * float(np.float32(1 / 9))
    weight, bias = (each.detach().double().numpy() for each in (network.linear.weight, network.linear.bias))
    expected = (windows.mean((1, 2)) + np.array([0.25, 0, 0])) @ weight.T + bias
    np.testing.assert_allclose(got, expected, atol=1e-13)
    assert np.abs(got - Reference(network, contract).pixels(PIXELS)["logits"]).max() > 1e-10


def test_a_network_that_cannot_be_copied_is_refused_with_the_reason() -> None:
    network = nn.Linear(2, 2)
    network.lock = threading.Lock()
    with pytest.raises(ExportError, match=r"cannot be copied \(cannot pickle '_thread.lock' object\).* make what is no module"):
        copied(network)
