import pytest
import torch
from torch import nn

from edgeport_export.network.module_hooks import describe_module, module_hooks


@pytest.mark.parametrize(
    ("path", "kind", "expected"),
    [("layer1.0.conv1", "Conv2d", "layer1.0.conv1 (Conv2d)"), ("", "ResNet", "the network (ResNet)")],
)
def test_a_module_is_named_by_its_path_and_class(path: str, kind: str, expected: str) -> None:
    assert describe_module(path, kind) == expected


def test_every_module_is_reported_in_the_order_of_the_run() -> None:
    network = nn.Sequential(nn.ReLU(), nn.Flatten())
    events: list[tuple[str, str]] = []
    with module_hooks(
        network,
        started=lambda name, inputs: events.append(("started", f"{name} {tuple(inputs[0].shape)}")),
        returned=lambda name, output: events.append(("returned", f"{name} {tuple(output.shape)}")),
        ended=lambda name, inputs: events.append(("ended", name)),
    ):
        network(torch.zeros(1, 2, 2))
    outer, relu, flat = "the network (Sequential)", "0 (ReLU)", "1 (Flatten)"
    assert events == [
        ("started", f"{outer} (1, 2, 2)"),
        *[("started", f"{relu} (1, 2, 2)"), ("ended", relu), ("returned", f"{relu} (1, 2, 2)")],
        *[("started", f"{flat} (1, 2, 2)"), ("ended", flat), ("returned", f"{flat} (1, 4)")],
        *[("ended", outer), ("returned", f"{outer} (1, 4)")],
    ]


class Failing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("it fails")


def test_a_module_that_fails_ends_without_an_output() -> None:
    network = nn.Sequential(nn.ReLU(), Failing())
    returned: list[str] = []
    ended: list[str] = []
    with (
        pytest.raises(RuntimeError, match="it fails"),
        module_hooks(network, returned=lambda name, _: returned.append(name), ended=lambda name, _: ended.append(name)),
    ):
        network(torch.zeros(1))
    assert returned == ["0 (ReLU)"] and ended == ["0 (ReLU)", "1 (Failing)", "the network (Sequential)"]


def test_nothing_is_left_hooked() -> None:
    network = nn.Sequential(nn.ReLU(), Failing())
    seen: list[str] = []
    with pytest.raises(RuntimeError, match="it fails"), module_hooks(network, started=lambda name, _: seen.append(name)):
        network(torch.zeros(1))
    count = len(seen)
    network[0](torch.zeros(1))
    assert len(seen) == count and not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
