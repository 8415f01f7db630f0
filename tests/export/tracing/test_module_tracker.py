from types import SimpleNamespace

import pytest
import torch
from torch import nn

from edgeport_export import AxisError, ExportError
from edgeport_export.tracing.exporter import trace
from edgeport_export.tracing.module_tracker import ModuleTracker, module_of
from edgeport_runtime import Contract


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
    assert [guard.where for guard in traced.guards if guard.condition == "height >= 21"] == ["1 (Outer)"]


class Inner(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[3] > 24 else x


def test_the_innermost_module_is_named(contract: Contract) -> None:
    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), Inner()), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert [guard.where for guard in trace(network.eval(), contract).guards if guard.condition == "width >= 25"] == ["0.1 (Inner)"]


def test_the_module_that_failed_and_the_one_that_fixed_a_size_are_named(contract: Contract) -> None:
    class Failing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (x.data_ptr() > 0)

    class Fixing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + sum(x[:, :, row, None] for row in range(x.shape[2]))

    with pytest.raises(ExportError, match=r"in 1\.0 \(Failing\)"):
        trace(nn.Sequential(nn.ReLU(), nn.Sequential(Failing()), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), contract)
    with pytest.raises(AxisError, match=r"bound to its height in 1\.0 \(Fixing\)"):
        trace(nn.Sequential(nn.ReLU(), nn.Sequential(Fixing()), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), contract)


def test_what_failed_first_is_kept_however_often_it_is_tried_again() -> None:
    class Fussy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError

    network = nn.Sequential(nn.ReLU(), Fussy())
    tracker = ModuleTracker(network)
    with tracker:
        for _ in range(2):
            with pytest.raises(ValueError):
                network(torch.zeros(1, 2))
    assert tracker.failed_in == "1 (Fussy)" and tracker.fixed_in == {} and tracker.module_of_condition("height >= 21") is None
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_node_of_no_module_has_no_name() -> None:
    assert module_of(SimpleNamespace(meta={})) == ""
