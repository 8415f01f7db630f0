import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from edgeport_export.network.reference import TorchReference
from edgeport_export.network.wrapper import ExportWrapper, as_pixels, compared_outputs, flatten, graph_outputs
from edgeport_runtime import Contract, Pixels
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import classification

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 10, 14, 3), dtype=np.uint8)


@pytest.mark.parametrize("mean_std", [((0.5,) * 3, (0.5,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
def test_both_paths_feed_the_network_what_torchvision_would(mean_std: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    mean, std = mean_std
    contract = classification(Pixels(height=10, width=14, mean=mean, std=std), tuple("abc"), image_axes(smallest_px=1))
    reference = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float64, scale=True), v2.Normalize(list(mean), list(std))])
    expected = torch.stack([reference(image) for image in PIXELS]).numpy()
    np.testing.assert_allclose(TorchReference(nn.Identity(), contract, torch.float64).pixels(PIXELS)["logits"], expected, atol=1e-14)
    np.testing.assert_allclose(ExportWrapper(nn.Identity(), contract)(torch.from_numpy(PIXELS))[0].numpy(), expected, atol=5e-7)


def test_a_pixel_output_comes_as_levels_and_as_rounded_pixels(image_contract: Contract) -> None:
    image, levels = ExportWrapper(nn.Identity(), image_contract)(torch.from_numpy(PIXELS))
    assert graph_outputs(image_contract) == ["image", "image.levels"] and compared_outputs(image_contract) == ["image.levels"]
    assert image.dtype == torch.uint8 and levels.dtype == torch.float32
    np.testing.assert_array_equal(image.numpy(), PIXELS)  # there and back again: -1..1 becomes 0..255
    np.testing.assert_array_equal(TorchReference(nn.Identity(), image_contract).pixels(PIXELS)["image"], PIXELS)


def test_levels_beyond_the_range_are_clipped_before_rounding(image_contract: Contract) -> None:
    out = TorchReference(nn.Hardtanh(-9, 9), image_contract).run({"pixels": PIXELS})
    wide = TorchReference(_Tripled(), image_contract).run({"pixels": PIXELS})
    assert out["image"].min() >= 0 and wide["image.levels"].min() == 0 and wide["image.levels"].max() == 255


class _Tripled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * x


def test_halves_round_to_even() -> None:
    assert as_pixels(torch.tensor([0.5, 1.5, 2.5, 254.5])).tolist() == [0, 2, 2, 254]


def test_outputs_of_any_nesting_are_flattened_in_order() -> None:
    a, b, c = (torch.full((1,), float(i)) for i in range(3))
    assert [t.item() for t in flatten({"out": a, "aux": [b, (c,)]})] == [0, 1, 2]


def test_what_is_no_tensor_cannot_be_flattened() -> None:
    assert flatten({"out": None}) == []  # an auxiliary output that is off at inference
    for other in ("cat", 3, {"boxes": [torch.zeros(1), 0.5]}):
        with pytest.raises(TypeError, match=r"a network may return tensors, and tuples, lists and dicts of them, got (str|int|float)"):
            flatten(other)


def test_the_network_runs_in_half_precision_and_its_ends_stay_float32(class_contract: Contract) -> None:
    seen: list[torch.dtype] = []

    class Half(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.dtype)
            return x.mean((2, 3))

    (logits,) = ExportWrapper(Half(), class_contract, torch.float16)(torch.from_numpy(PIXELS))
    assert seen == [torch.float16] and logits.dtype == torch.float32
