"""Branches on a size: found, tried, and explained with the range in which the graph is right."""

import math

import pytest
import torch
from torch import nn

from edgeport_export import AxisError, ParityError, export_bundle, measure_parity
from edgeport_export.branches import broken, points_of, sizes_to_try
from edgeport_export.parity import full_sweep, remedy
from edgeport_export.pipeline import ExportOptions
from edgeport_export.sweep import measured_cost
from edgeport_export.trace import finish, trace
from edgeport_runtime import Contract, Pixels, Range
from edgeport_runtime.contract import classification, image_axes


class Branching(nn.Module):
    """Doubles images that are at least 21 high: what a window that may be larger than the image does to Swin."""

    def __init__(self, harmless: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.harmless = harmless

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x).mean((2, 3))
        if x.shape[2] > 20:
            return y * 1.0 if self.harmless else y * 2
        return y


@pytest.fixture(scope="module")
def contract() -> Contract:
    return classification(Pixels(height=32, width=32), tuple("abc"), image_axes(smallest_px=8, largest_px=64, largest_batch=4))


def test_the_condition_is_found_and_the_sweep_goes_where_it_does_not_hold(contract: Contract) -> None:
    torch.manual_seed(0)
    network = Branching().eval()
    traced = trace(network, contract)
    own = {"batch": 1, "height": 32, "width": 32}
    assert not broken(traced.branches, own) and not broken(traced.branches, {**own, "height": 21})
    assert broken(traced.branches, {**own, "height": 20}) and broken(traced.branches, {**own, "height": 8})
    tried = sizes_to_try(traced.branches, contract, lambda sizes: 1.0, 2.0)
    assert any(sizes["height"] == 20 for sizes in tried) and any(sizes["height"] == 8 for sizes in tried)
    assert sizes_to_try(traced.branches, contract, lambda sizes: 3.0, 2.0) == []  # nothing fits the budget
    sweep = full_sweep(network, contract, traced.branches)
    parity = measure_parity(network, contract, finish(traced.model, contract), sizes=sweep)
    assert not parity and "height" in parity.axes_at_fault()
    assert "branches on its height" in remedy(parity, contract, traced.branches)
    assert "height=21..64,width=8..64" in remedy(parity, contract, traced.branches)


def test_the_export_is_refused_with_the_range_and_that_range_works(contract: Contract, tmp_path: object) -> None:
    from pathlib import Path

    out = Path(str(tmp_path)) / "b"
    torch.manual_seed(0)
    options = ExportOptions(precisions=("fp32",))
    said = r"branches on its height in the network \(Branching\), .* it holds for --dynamic batch=1\.\.4,height=21\.\.64,width=8\.\.64"
    with pytest.raises(ParityError, match=said):
        export_bundle(Branching(), contract, out, name="b", options=options)
    assert not out.exists()
    narrower = classification(Pixels(height=32, width=32), tuple("abc"), {**contract.axes, "height": type(contract.axes["height"])(low=21, high=64)})
    assert export_bundle(Branching(), narrower, out, name="b", options=options).exists()


class Padding(nn.Module):
    """Pads odd heights to even ones with ones, as a U-Net pads with zeros."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x, (0, 0, 0, 1), value=1.0) if x.shape[2] % 2 else x


def test_a_branch_on_a_remainder_is_offered_in_steps(contract: Contract) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), Padding(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    traced = trace(network, contract)
    data = finish(traced.model, contract)
    parity = measure_parity(network, contract, data, sizes=full_sweep(network, contract, traced.branches))
    said = remedy(parity, contract, traced.branches)
    assert "branches on its height in 1 (Padding)" in said and "--dynamic batch=1..4,height=8..64:2,width=8..64;" in said
    even = [{"batch": 2, "height": height, "width": 32} for height in range(8, 65, 2)]
    assert measure_parity(network, contract, data, sizes=even) and not measure_parity(network, contract, data, sizes=[{**even[0], "height": 9}])


def test_ranges_of_any_length_are_looked_at_without_their_every_size() -> None:
    limits = Range(low=4, high=10**12, step=3)
    contract = classification(Pixels(height=16, width=16), ("a",), {"batch": Range(low=1, high=8), "height": limits, "width": Range(low=16, high=17)})
    heights = points_of(contract)["height"]
    assert heights.min() == 4 and heights.max() == limits.nearest(10**12)
    assert all((int(size) - 4) % 3 == 0 for size in heights[::997])


def test_a_branch_whose_ways_agree_does_no_harm(contract: Contract) -> None:
    torch.manual_seed(0)
    network = Branching(harmless=True).eval()
    traced = trace(network, contract)
    parity = measure_parity(network, contract, finish(traced.model, contract), sizes=full_sweep(network, contract, traced.branches))
    assert parity and traced.branches


def test_a_network_without_branches_has_none(contract: Contract) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    traced = trace(network, contract)
    assert not broken(traced.branches, {"batch": 1, "height": 9, "width": 60})
    assert measured_cost(network, contract)({"batch": 2, "height": 32, "width": 32}) > 0


class Counting(nn.Module):
    """Takes the number of a size."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.kind = nn.Conv2d(3, 3, 3, padding=1), kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        y = self.conv(x)
        if self.kind == "root":
            return y * 2 if 44 < math.sqrt(height * width) < 46 else y
        return y[:, :, : math.floor(height * 0.57)].mean((2, 3))


def test_a_size_that_became_a_number_is_refused_with_the_module(contract: Contract) -> None:
    with pytest.raises(AxisError, match=r"computes with the number of its height and width in 0 \(Counting\), .*leave height and width out of --dynamic"):
        trace(nn.Sequential(Counting("root"), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), contract)


def test_fractions_are_tried_where_float32_rounds_to_another_size() -> None:
    """floor(0.57 * 100) is 56 in Python, since 0.57 is a little less in float64; float32 has 57."""
    torch.manual_seed(0)
    network = Counting("fraction").eval()
    axes = {"batch": Range(low=1, high=2), "height": Range(low=90, high=110), "width": Range(low=16, high=20)}
    contract = classification(Pixels(height=92, width=18), tuple("abc"), axes)
    traced = trace(network, contract)
    assert [branch.where for branch in traced.branches if branch.kind == "rounds"] == ["the network (Counting)"]
    assert [height for height in range(90, 111) if broken(traced.branches, {"batch": 1, "height": height, "width": 18})] == [100]
    parity = measure_parity(network, contract, finish(traced.model, contract), sizes=full_sweep(network, contract, traced.branches))
    assert {case.sizes["height"] for case in parity.failures()} == {100}
    assert "rounds a fraction of its height in the network (Counting)" in remedy(parity, contract, traced.branches)


class Outer(nn.Module):
    """The branch lies between two calls of parts, which are not to blame."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2] > 20:
            x = x * 2
        return self.conv(x).mean((2, 3))


def test_the_module_that_asked_is_named_not_the_next_one_that_ran(contract: Contract) -> None:
    traced = trace(nn.Sequential(nn.Identity(), Outer()).eval(), contract)
    assert [branch.where for branch in traced.branches if branch.condition == "height >= 21"] == ["1 (Outer)"]


class Related(nn.Module):
    """Branches on two axes at once."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x).mean((2, 3))
        height, width = x.shape[2], x.shape[3]
        if self.kind == "ratio":
            return y * 2 if width > 4 * height else y
        if self.kind == "difference":
            return y * 2 if height - width > 40 else y
        if self.kind == "one size":
            return y * 2 if height * width == 37 * 41 else y
        return y * 2 if height * width > 63 * 62 else y


@pytest.mark.parametrize("kind", ["ratio", "difference", "one size", "area"])
def test_a_branch_on_two_axes_is_found_wherever_it_hides(kind: str, tmp_path: object) -> None:
    torch.manual_seed(0)
    network = Related(kind).eval()
    axes = image_axes(smallest_px=9, largest_px=64, largest_batch=4)
    contract = classification(Pixels(height=33, width=31), tuple("abc"), axes)
    traced = trace(network, contract)
    parity = measure_parity(network, contract, finish(traced.model, contract), sizes=full_sweep(network, contract, traced.branches))
    assert not parity
    said = remedy(parity, contract, traced.branches)
    assert "the network branches on its height and width in the network (Related)" in said
    offered = dict(part.split("=") for part in said.partition("it holds for --dynamic ")[2].strip("; ").split(",") if "=" in part)
    assert offered or "leave height and width out" in said
    for height in range(9, 65):  # inside what is offered every branch goes the way it was traced
        for width in range(9, 65):
            inside = [low <= size <= high for size, name in ((height, "height"), (width, "width")) for low, high in [map(int, offered[name].split(".."))]]
            assert not all(inside) or not broken(traced.branches, {"batch": 1, "height": height, "width": width})
