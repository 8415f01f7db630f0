"""A refusal names the ranges in which the graph is right."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeport_export import ExportOptions, ParityError, export_bundle
from edgeport_export.network.reference import TorchReference
from edgeport_export.rewrites.finalize import finalize
from edgeport_export.tracing.exporter import Traced, trace
from edgeport_export.tracing.shape_guards import Kind, ShapeGuard, broken
from edgeport_export.tracing.valid_ranges import explained, specialized_axes
from edgeport_export.validation.parity import Parity, remedy
from edgeport_export.validation.sweep import full_sweep, measure_parity
from edgeport_runtime import Contract, Pixels, Range
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import classification

Swept = Callable[[nn.Module, Contract], tuple[Traced, Parity]]


def test_the_export_is_refused_with_the_range_and_that_range_works(branching: Callable[..., nn.Module], contract: Contract, tmp_path: Path) -> None:
    out = tmp_path / "b"
    torch.manual_seed(0)
    options = ExportOptions(precisions=("fp32",))
    words = r"branches on its height in the network \(Branching\), .* it holds for --dynamic batch=1\.\.4,height=21\.\.64,width=8\.\.64"
    with pytest.raises(ParityError, match=words):
        export_bundle(branching(), contract, out, name="b", options=options)
    assert not out.exists()
    narrower = classification(Pixels(height=32, width=32, mean=(0.5,) * 3, std=(0.5,) * 3), tuple("abc"), {**contract.axes, "height": Range(low=21, high=64)})
    assert export_bundle(branching(), narrower, out, name="b", options=options).folder.exists()


class Padding(nn.Module):
    """Pads odd heights to even ones with ones, as a U-Net pads with zeros."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x, (0, 0, 0, 1), value=1.0) if x.shape[2] % 2 else x


def test_a_guard_on_a_remainder_is_named_in_steps(contract: Contract) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), Padding(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    reference, traced = TorchReference(network, contract), trace(network, contract)
    data = finalize(traced.model, contract)
    words = remedy(measure_parity(reference, data, sizes=full_sweep(reference, traced.guards)), contract, traced.guards)
    assert "branches on its height in 1 (Padding)" in words and "--dynamic batch=1..4,height=8..64:2,width=8..64;" in words
    even = [{"batch": 2, "height": height, "width": 32} for height in range(8, 65, 2)]
    assert measure_parity(reference, data, sizes=even) and not measure_parity(reference, data, sizes=[{**even[0], "height": 9}])


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
def test_a_branch_on_two_axes_is_found_wherever_it_hides(swept: Swept, kind: str) -> None:
    torch.manual_seed(0)
    axes = image_axes(smallest_px=9, largest_px=64, largest_batch=4)
    contract = classification(Pixels(height=33, width=31, mean=(0.5,) * 3, std=(0.5,) * 3), tuple("abc"), axes)
    traced, parity = swept(Related(kind), contract)
    assert not parity
    words = remedy(parity, contract, traced.guards)
    assert "the network branches on its height and width in the network (Related)" in words
    named = dict(part.split("=") for part in words.partition("it holds for --dynamic ")[2].strip("; ").split(",") if "=" in part)
    assert named or "leave height and width out" in words
    for height in range(9, 65):  # inside what is named every branch goes the way it was traced
        for width in range(9, 65):
            inside = [low <= size <= high for size, name in ((height, "height"), (width, "width")) for low, high in [map(int, named[name].split(".."))]]
            assert not all(inside) or not broken(traced.guards, {"batch": 1, "height": height, "width": width})


def guard(condition: str, kind: Kind = "branch") -> ShapeGuard:
    return ShapeGuard(condition=condition, code=compile(condition, "guard", "eval"), where="stage (Swin)", kind=kind)


OWN = {"batch": 1, "height": 32, "width": 32}


@pytest.mark.parametrize(
    ("found", "failed", "passed", "words"),
    [
        ([guard("height >= 21")], [{"height": 9}], [{}], r"branches on its height in stage \(Swin\), .* batch=1\.\.4,height=21\.\.64,width=8\.\.64"),
        ([guard("height < 40"), guard("height > 20")], [{"height": 60}, {"height": 9}], [{}], r"holds for --dynamic batch=1\.\.4,height=21\.\.39,width"),
        ([guard("height < 40"), guard("height > 20")], [{"height": 60}], [{}], r"height=8\.\.39,width"),  # the other one did no harm
        ([guard("width % 4 == 0")], [{"width": 33}], [{}], r"it holds for --dynamic batch=1\.\.4,height=8\.\.64,width=8\.\.64:4"),
        ([guard("height == 40")], [{}], [], "leave height out of --dynamic"),  # it does not hold at the contract's own size
        ([guard("height >= 21")], [{"height": 30}], [{}], ""),  # the failure there has another cause
        ([guard("height >= 21")], [{"height": 9}], [{"height": 10}], ""),  # both ways give the same numbers
        ([], [{"height": 9}], [{}], ""),
    ],
)
def test_the_ranges_follow_from_the_guards(
    found: list[ShapeGuard], failed: list[dict[str, int]], passed: list[dict[str, int]], words: str, contract: Contract
) -> None:
    text = explained(found, contract, [{**OWN, **each} for each in failed], [{**OWN, **each} for each in passed])
    assert re.search(words, text) if words else not text


def test_a_number_in_the_place_of_a_size_is_refused_if_the_ranges_leave_it(contract: Contract) -> None:
    words = "computes with the number of its height in stage (Swin)"
    assert words in specialized_axes([guard("height == 32", "specialization")], contract)
    assert not specialized_axes([guard("height < 65", "specialization")], contract)
