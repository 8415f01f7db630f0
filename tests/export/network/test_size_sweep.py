import math
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeport_export.network.size_sweep import (
    MEMORY_BUDGET_BYTES,
    example_sizes,
    measured_cost,
    other_sizes,
    own_sizes,
    random_image,
    sweep_inputs,
    sweep_sizes,
)
from edgeport_models import network
from edgeport_runtime import Contract, Input, Output, Pixels, Range
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import classification


def images(side: int = 16, smallest: int = 4, largest: int = 64, batch: int = 8) -> Contract:
    axes = image_axes(smallest_px=smallest, largest_px=largest, largest_batch=batch)
    return classification(Pixels(height=side, width=side, mean=(0.5,) * 3, std=(0.5,) * 3), tuple("abc"), axes)


def tensors(dtype: str, *shape: int | str) -> Contract:
    axes = {each: Range(low=1, high=9) for each in shape if isinstance(each, str)}
    output = Output(name="y", dtype="float32", shape=shape, kind="tensor")
    return Contract(task="tensors", inputs=(Input(name="x", dtype=dtype, shape=shape),), outputs=(output,), axes=axes)


@pytest.mark.parametrize("name", ["cnn", "resnet18", "attention", "generator"])
def test_the_sweep_covers_what_is_promised(name: str) -> None:
    entry = network(name)
    contract = entry.contract(() if not entry.has_classes else tuple("0123456789"), entry.side_px)
    sizes = sweep_sizes(contract)
    heights, widths, batches = ({point[axis] for point in sizes} for axis in ("height", "width", "batch"))
    assert {1, 2, 3, 5, 7} <= batches
    assert min(heights) == contract.axes["height"].low and max(heights) > entry.side_px and any(h % 2 for h in heights)
    assert any(point["height"] != point["width"] for point in sizes) and min(widths) < entry.side_px < max(widths)
    assert len(sizes) >= 8
    for point in sizes[:2]:
        contract.require_arrays(sweep_inputs(contract, point, seed=0))


def test_a_network_that_fits_no_budget_is_still_compared_at_its_own_size() -> None:
    points = [(point["batch"], point["height"], point["width"]) for point in sweep_sizes(images(), lambda sizes: 1e12)]
    assert points == [(1, 16, 16), (2, 16, 16)]  # resnet50 at 224 needs more than the budget for one image


def test_the_largest_image_and_batch_that_fit_are_among_the_sizes() -> None:
    fits = MEMORY_BUDGET_BYTES / (40 * 40)  # so 40x40 is as large as one image may be
    points = sweep_sizes(images(), lambda sizes: fits * sizes["batch"] * sizes["height"] * sizes["width"])
    assert max(point["height"] for point in points) == 40 and max(point["batch"] for point in points) == 6  # 6.25 images of 16x16
    assert all(point["batch"] * point["height"] * point["width"] <= 40 * 40 for point in points)


@pytest.mark.parametrize("near", [False, True])
@given(side=st.integers(1, 70), low=st.integers(1, 20), span=st.integers(1, 100), step=st.integers(1, 9))
def test_every_size_is_one_that_the_contract_promises(near: bool, side: int, low: int, span: int, step: int) -> None:
    sides = Range(low=low, high=low + span, step=step)
    contract = classification(
        Pixels(height=sides.nearest(side), width=sides.nearest(side), mean=(0.5,) * 3, std=(0.5,) * 3),
        tuple("abc"),
        {"batch": Range(low=1, high=4), "height": sides, "width": sides},
    )
    points = [*sweep_sizes(contract), own_sizes(contract), example_sizes(contract, near=near), other_sizes(contract.axes, own_sizes(contract), least=1)]
    for point in points:
        assert set(point) == set(contract.axes) and all(size in contract.axes[name] for name, size in point.items())
    assert sweep_sizes(contract)[0] == own_sizes(contract)


def test_an_example_shares_no_side_with_another_axis() -> None:
    assert example_sizes(images()) == {"batch": 2, "height": 16, "width": 20}
    assert example_sizes(images(), near=True) == {"batch": 2, "height": 16, "width": 17}
    square = example_sizes(images(side=64))  # the width cannot be larger, so the height gives way
    assert square["height"] != square["width"] and square["batch"] == 2


@pytest.mark.parametrize(
    ("axes", "own", "least", "expected"),
    [
        ({"batch": Range(low=1, high=8)}, {"batch": 2}, 1, {"batch": 4}),
        ({"batch": Range(low=1, high=2)}, {"batch": 2}, 1, {"batch": 1}),
        ({"batch": Range(low=1, high=2)}, {"batch": 2}, 2, {"batch": 2}),  # no other one is allowed
        ({"batch": Range(low=1, high=8), "width": Range(low=16, high=64, step=16)}, {"batch": 1, "width": 32}, 2, {"batch": 3, "width": 64}),
        ({"batch": Range(low=1, high=8), "width": Range(low=16, high=64, step=16)}, {"batch": 1, "width": 64}, 2, {"batch": 3, "width": 16}),
    ],
)
def test_another_size_for_every_axis(axes: dict[str, Range], own: dict[str, int], least: int, expected: dict[str, int]) -> None:
    assert other_sizes(axes, own, least=least) == expected


def test_the_cost_of_a_convolution_grows_with_the_area() -> None:
    class Lifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 32, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).mean((2, 3))[:, :3]

    cost = measured_cost(Lifted(), images())
    one = cost({"batch": 1, "height": 16, "width": 16})
    assert one >= 2 * 4 * 32 * 16 * 16  # the convolution's result alone, in float64
    assert cost({"batch": 5, "height": 16, "width": 16}) == pytest.approx(5 * one)
    assert cost({"batch": 1, "height": 32, "width": 32}) == pytest.approx(4 * one, rel=0.05)


def test_the_cost_of_attention_over_positions_grows_with_the_square_of_the_area() -> None:
    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = x.flatten(2).transpose(1, 2)
            return ((rows @ rows.transpose(1, 2)).softmax(2) @ rows).mean(1)

    cost = measured_cost(Attention(), images())
    growth = cost({"batch": 1, "height": 64, "width": 64}) / cost({"batch": 1, "height": 16, "width": 16})
    assert 16**1.7 < growth < 16**2


def test_a_network_that_asks_for_values_is_costed_on_the_cpu() -> None:
    class Asking(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) if float(x.sum()) > -math.inf else x

    assert measured_cost(Asking(), images())({"batch": 1, "height": 16, "width": 16}) > 8 * 3 * 16 * 16


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("uint8", 0, 255), ("bool", 0, 1), ("int64", 0, None), ("float32", None, None)],
)
def test_tensors_take_the_values_of_their_dtype(dtype: str, low: int | None, high: int | None) -> None:
    array = sweep_inputs(tensors(dtype, "batch", 500), {"batch": 9}, seed=0)["x"]
    assert array.dtype == dtype and array.shape == (9, 500)
    assert low is None or array.min() == low
    assert high is None or array.max() == high
    assert len(np.unique(array)) > (1 if dtype in ("bool", "int64") else 200)


def test_equal_seeds_give_equal_inputs(tiny: ModuleType, class_contract: Contract) -> None:
    sizes = {"batch": 2, "height": 9, "width": 11}
    first, again, other = (sweep_inputs(class_contract, sizes, seed)["pixels"] for seed in (3, 3, 4))
    assert first.shape == (2, 9, 11, 3) and np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_random_image_uses_the_whole_range_and_its_neighbors_are_alike() -> None:
    image = random_image((2, 64, 80, 3), np.random.default_rng(0)).astype(float)
    assert image.min() == 0 and image.max() == 255 and image.std() > 50
    assert np.abs(np.diff(image, axis=2)).mean() < 0.5 * np.abs(image[..., 1:, :] - np.random.default_rng(1).permuted(image, axis=2)[..., 1:, :]).mean()
    assert not np.array_equal(image[0], image[1])
