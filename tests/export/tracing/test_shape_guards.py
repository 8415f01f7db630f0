"""Guards on sizes: found, and tried at the sizes at which they do not hold."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from edgeport_export import AxisError
from edgeport_export.tracing import shape_guards
from edgeport_export.tracing.exporter import Traced, trace
from edgeport_export.tracing.shape_guards import ShapeGuard, broken, points_of, sizes_to_try
from edgeport_export.tracing.valid_ranges import specialized_axes
from edgeport_export.validation.parity import Parity, remedy
from edgeport_runtime import Contract, Pixels, Range
from edgeport_runtime.contract import classification

Swept = Callable[[nn.Module, Contract], tuple[Traced, Parity]]


def test_the_condition_is_found_and_the_sweep_goes_to_sizes_at_which_it_does_not_hold(
    swept: Swept, branching: Callable[..., nn.Module], contract: Contract
) -> None:
    torch.manual_seed(0)
    traced, parity = swept(branching(), contract)
    own = {"batch": 1, "height": 32, "width": 32}
    assert not broken(traced.guards, own) and not broken(traced.guards, {**own, "height": 21})
    assert broken(traced.guards, {**own, "height": 20}) and broken(traced.guards, {**own, "height": 8})
    tried = sizes_to_try(traced.guards, contract, lambda sizes: 1.0, 2.0)
    assert any(sizes["height"] == 20 for sizes in tried) and any(sizes["height"] == 8 for sizes in tried)
    assert sizes_to_try(traced.guards, contract, lambda sizes: 3.0, 2.0) == []  # nothing fits the budget
    assert not parity and "height" in parity.axes_at_fault()


def test_ranges_of_any_length_are_looked_at_without_their_every_size() -> None:
    sizes_px = Range(low=4, high=10**12, step=3)
    contract = classification(
        Pixels(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3),
        ("a",),
        {"batch": Range(low=1, high=8), "height": sizes_px, "width": Range(low=16, high=17)},
    )
    heights = points_of(contract)["height"]
    assert heights.min() == 4 and heights.max() == sizes_px.nearest(10**12)
    assert all((int(size) - 4) % 3 == 0 for size in heights[::997])


def test_a_branch_whose_ways_agree_does_no_harm(swept: Swept, branching: Callable[..., nn.Module], contract: Contract) -> None:
    torch.manual_seed(0)
    traced, parity = swept(branching(harmless=True), contract)
    assert parity and traced.guards


def test_a_network_without_branches_has_no_guards(contract: Contract) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert not broken(trace(network, contract).guards, {"batch": 1, "height": 9, "width": 60})


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


def test_fractions_are_tried_at_sizes_that_float32_rounds_otherwise(swept: Swept) -> None:
    """floor(0.57 * 100) is 56 in Python, since 0.57 is a little less in float64; float32 has 57."""
    torch.manual_seed(0)
    axes = {"batch": Range(low=1, high=2), "height": Range(low=90, high=110), "width": Range(low=16, high=20)}
    contract = classification(Pixels(height=92, width=18, mean=(0.5,) * 3, std=(0.5,) * 3), tuple("abc"), axes)
    traced, parity = swept(Counting("fraction"), contract)
    assert [guard.where for guard in traced.guards if guard.kind == "rounding"] == ["the network (Counting)"]
    assert [height for height in range(90, 111) if broken(traced.guards, {"batch": 1, "height": height, "width": 18})] == [100]
    assert {case.sizes["height"] for case in parity.failures()} == {100}
    assert "rounds a fraction of its height in the network (Counting)" in remedy(parity, contract, traced.guards)


def guard(condition: str) -> ShapeGuard:
    return ShapeGuard(condition=condition, code=compile(condition, "guard", "eval"))


@pytest.mark.parametrize(
    ("condition", "sizes", "holds"),
    [
        ("height >= 21", {"height": 21}, True),
        ("height >= 21", {"height": 20}, False),
        ("height % 2 == 0", {"height": 7}, False),
        ("width // height <= 4", {"height": 0, "width": 3}, False),  # a division by zero: nothing is known
        ("depth > 3", {"height": 9}, False),  # an axis that is no dynamic one
    ],
)
def test_a_guard_holds_or_not_at_a_size(condition: str, sizes: dict[str, int], holds: bool) -> None:
    assert guard(condition).holds(sizes) == holds


@pytest.mark.parametrize("condition", ["height >= 21", "height * width > 900", "max(height, width) < 60", "(height if height > width else width) < 60"])
def test_points_that_fail_are_those_at_which_the_guard_does_not_hold(condition: str, contract: Contract) -> None:
    points = points_of(contract)
    found = guard(condition).failing_points(points)
    assert 0 < len(found) <= 1000 and not any(guard(condition).holds(sizes) for sizes in found)
    areas = [math.prod(sizes.values()) for sizes in found]
    assert areas == sorted(areas)
    assert guard("height >= 1").failing_points(points) == [] and guard(condition).failing_points({}) == []


def test_no_points_are_made_if_nothing_is_guarded(contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape_guards, "points_of", lambda _: pytest.fail("a million points for nothing"))
    assert sizes_to_try([], contract, lambda sizes: 1.0, 2.0) == [] and specialized_axes([guard("height >= 21")], contract) == ""
