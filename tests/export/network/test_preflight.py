"""One test for each finding, each with its remedy; and sound networks pass."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgeport_export import NetworkFailure, PreflightError
from edgeport_export.network.contracts import with_axes
from edgeport_export.network.preflight import check_modules, preflight
from edgeport_export.rewrites.finalize import finalize
from edgeport_export.tracing.exporter import trace
from edgeport_export.validation.sweep import measure_parity
from edgeport_models import network
from edgeport_runtime import Contract, ContractError, Input, Output, Pixels, Range
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import classification, pixel_input

CONTRACT = classification(Pixels(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3), tuple("abc"), image_axes(smallest_px=4, largest_px=64, largest_batch=8))


class Net(nn.Module):
    """A convolution, whatever `middle` does, and a mean."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.middle = middle

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.middle(self.conv(x)).mean((2, 3))


class Call(nn.Module):
    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class Stubborn(nn.Dropout):
    def train(self, mode: bool = True) -> "Stubborn":
        super().train(True)
        return self


class Counter(nn.Module):
    """`used`: whether its answer depends on what it counts."""

    def __init__(self, used: bool = True) -> None:
        super().__init__()
        self.used = used
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls if self.used else x


class Keeper(nn.Module):
    """Adds what it saw before, as networks for video do."""

    def __init__(self) -> None:
        super().__init__()
        self.before: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before, self.before = self.before, x
        return x if before is None or before.shape != x.shape else x + before


def spoilt(value: float) -> nn.Module:
    net = Net(nn.Identity())
    net.conv.weight.data[0, 0, 0, 0] = value
    return net


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Net(Stubborn(0.5)), r"still in train mode after \.eval\(\): middle"),
        (Net(nn.BatchNorm2d(3, track_running_stats=False)), "BatchNorm without running statistics in middle: .*track_running_stats=True"),
        (Net(Call(F.dropout)), r"two runs of the same input differ, first in middle \(Call\): .*F\.dropout without training=self\.training"),
        (
            Net(Call(lambda x: F.batch_norm(x, None, None, training=True))),
            "an image alone gives another logits than in a batch .*over the whole batch .*use running statistics",
        ),
        (Net(Counter()), r"the network changes middle\.calls while it runs, and its next answer depends on that; .*if self\.training:"),
        (Net(Keeper()), r"two runs of the same input differ, first in middle \(Keeper\): .*it keeps something from one call to the next"),
        (Net(Call(lambda x: (x - x) / (x - x))), r"the network gives NaN at an ordinary input, first in middle \(Call\), so nothing can be compared there"),
        (spoilt(float("nan")), r"NaN or infinite values in conv\.weight"),
        (spoilt(float("inf")), r"NaN or infinite values in conv\.weight"),
        (Net(nn.Identity()).half(), r"the weights are float16; export from float32 with \.float\(\)"),
        (Net(nn.Conv2d(3, 3, 1, device="meta")), r"several devices \(cpu, meta\)"),
    ],
)
def test_findings(module: nn.Module, message: str) -> None:
    with pytest.raises(PreflightError, match=message):
        preflight(module, CONTRACT)


def test_nan_that_does_not_come_out_is_nobodys_concern() -> None:
    inside = Call(lambda x: (x - x) / (x - x))
    assert inside(torch.ones(1)).isnan().all()  # of a module, which is looked at
    preflight(Net(nn.Sequential(inside, Call(lambda x: x.nan_to_num(0.5)))), CONTRACT)


def test_what_is_random_is_not_called_batch_statistics_too() -> None:
    with pytest.raises(PreflightError) as caught:
        preflight(Net(Call(F.dropout)), CONTRACT)
    assert "batch statistics" not in str(caught.value)


def test_what_is_counted_without_consequence_is_nobodys_concern() -> None:
    net = Net(Counter(used=False))
    preflight(net, CONTRACT)
    assert net.middle.calls == 0  # and it was a copy that counted


def test_all_findings_come_at_once() -> None:
    net = spoilt(float("nan"))
    net.middle = nn.Sequential(Stubborn(0.5), nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(PreflightError) as caught:
        preflight(net, CONTRACT)
    for words in ("NaN", "train mode", "BatchNorm without"):
        assert words in str(caught.value)


class Bound(nn.Module):
    """A vision transformer in small: it knows 16x16 and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 4, 4, 4)
        self.position = nn.Parameter(torch.zeros(1, 4, 4, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((self.embed(x) + self.position).mean((2, 3)))


class Halving(nn.Module):
    """A U-Net in small: sides must be multiples of 4."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = F.avg_pool2d(x, 4)
        return (x + F.interpolate(small, scale_factor=4.0)).mean((2, 3))


def test_a_network_bound_to_its_size_gets_the_command_that_works() -> None:
    with pytest.raises(
        NetworkFailure, match=r"PyTorch itself fails at .* in the network \(Bound\).*bound to its size there: export it with --dynamic batch=1\.\.8"
    ):
        preflight(Bound(), CONTRACT)


def test_a_network_that_takes_steps_gets_the_steps() -> None:
    with pytest.raises(NetworkFailure, match=r"it runs in steps of 4, so try --dynamic batch=1\.\.8,height=4\.\.64:4,width=4\.\.64:4"):
        preflight(Halving(), CONTRACT)


class Patches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = x.unflatten(2, (-1, 7)).unflatten(4, (-1, 7))
        return patches.mean((2, 3, 4, 5))


def test_steps_may_be_any_divisor_of_the_size() -> None:
    axes = {**image_axes(smallest_px=7, largest_px=70, largest_batch=8)}
    with pytest.raises(NetworkFailure, match=r"it runs in steps of 7, so try --dynamic batch=1\.\.8,height=7\.\.70:7,width=7\.\.70:7"):
        preflight(Patches(), classification(Pixels(height=28, width=28, mean=(0.5,) * 3, std=(0.5,) * 3), tuple("abc"), axes))


class Viewing(nn.Module):
    """Flattens by view(), as scripts have done since LeNet; and works in place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2).view(x.shape[0], 3, -1).mean(2)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, 0.0, float("-inf")]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.mean((2, 3)) + self.get_buffer("mask")).softmax(1)


class Alone(nn.Module):
    """BatchNorm without running statistics: well defined for one image at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x).amax((2, 3))


@pytest.mark.parametrize("module", [Viewing(), Masked(), Viewing().train()])
def test_what_is_unusual_but_right_passes_and_is_exported_right(module: nn.Module) -> None:
    reference = preflight(module, CONTRACT)
    assert measure_parity(reference, finalize(trace(module, CONTRACT).model, CONTRACT))


def test_batch_statistics_pass_if_there_is_no_batch() -> None:
    with pytest.raises(PreflightError, match=r"or fix the batch at 1"):
        preflight(Alone(), CONTRACT)
    preflight(Alone(), with_axes(CONTRACT, {}))


class Summing(nn.Module):
    """The first image is alone in its sum; the others are not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)).cumsum(0)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Summing(), "an image alone gives another logits than in a batch"),
        (nn.Sequential(nn.LazyConv2d(3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), r"0\.weight, 0\.bias have no shape yet"),
    ],
)
def test_a_network_that_cannot_be_exported_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(PreflightError, match=message):
        preflight(module, CONTRACT)


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_a_traced_module_is_refused() -> None:
    with pytest.raises(PreflightError, match="a scripted or traced module; give the nn"):
        preflight(torch.jit.trace(Summing(), torch.zeros(1, 3, 4, 4)), CONTRACT)


def test_a_wrong_size_in_the_contract_is_named() -> None:
    small = classification(Pixels(height=8, width=8, mean=(0.5,) * 3, std=(0.5,) * 3), tuple("abc"), image_axes(smallest_px=4))
    with pytest.raises(NetworkFailure, match="this is the size the contract gives"):
        preflight(Bound(), small)


@pytest.mark.parametrize("name", ["cnn", "cnn-separable", "attention", "generator"])
def test_sound_networks_pass_even_in_train_mode(name: str) -> None:
    entry = network(name)
    module = entry.make({"num_classes": 10}).train()
    preflight(module, entry.contract(() if not entry.has_classes else tuple("0123456789"), entry.side_px))
    assert module.training  # the user's network was not touched


class Answers(nn.Module):
    """Gives what it is told to."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor) -> Any:
        return self.answer(x.mean((2, 3)))


def promised(*outputs: Output) -> Contract:
    axes = {"batch": Range(low=1, high=4)}
    given = replace(pixel_input(Pixels(height=8, width=8, mean=(0.5,) * 3, std=(0.5,) * 3)), shape=("batch", 8, 8, 3))
    return Contract(task="tensors", inputs=(given,), outputs=outputs, axes=axes)


@pytest.mark.parametrize(
    ("answer", "dtype", "shape", "message"),
    [
        (lambda y: y, "int64", ("batch", 3), "'y' is promised as int64 ('batch', 3), but is float32 (1, 3)"),
        (lambda y: y, "float32", ("batch", 9), "promised as float32 ('batch', 9), but is float32 (1, 3)"),
        (lambda y: y, "float32", ("batch", 3, 3), "but is float32 (1, 3)"),
        (lambda y: y, "float32", ("batch", "zzz"), "'y' names the axis zzz, which no input has"),
        (lambda y: (y, y), "float32", ("batch", 3), "promises 1 outputs, but the network gives 2"),
        (lambda y: y.sum(), "float32", (), "but is float32 ()"),
        (lambda y: (y, "cat"), "float32", ("batch", 3), "a network may return tensors, and tuples, lists and dicts of them, got str"),
    ],
)
def test_a_contract_that_promises_something_else_than_the_network_gives_is_refused(answer: Any, dtype: str, shape: tuple[Any, ...], message: str) -> None:
    contract = promised(Output(name="y", dtype=dtype, shape=shape, kind="tensor"))
    with pytest.raises((ContractError, NetworkFailure), match=re.escape(message)):
        preflight(Answers(answer).eval(), contract)


def test_an_index_or_a_flag_beside_the_logits_passes_and_hides_nothing() -> None:
    logits = Output(name="y", dtype="float32", shape=("batch", 3), kind="tensor")
    best = promised(logits, Output(name="best", dtype="int64", shape=("batch",), kind="tensor"))
    above = promised(logits, Output(name="above", dtype="bool", shape=("batch", 3), kind="tensor"))
    preflight(Answers(lambda y: (y, y.argmax(1))).eval(), best)
    preflight(Answers(lambda y: (y, y > 0)).eval(), above)
    with pytest.raises(PreflightError, match="an image alone gives another y than in a batch"):
        preflight(Answers(lambda y: (y - y.mean(0), y.argmax(1))).eval(), best)


def test_an_output_that_lost_its_batch_names_the_operation() -> None:
    contract = promised(Output(name="y", dtype="float32", shape=("batch", 3), kind="tensor"))
    with pytest.raises(ContractError, match=r"float32 \('batch', 3\), but is float32 \(3,\) \(a squeeze\(\) without an axis"):
        preflight(Answers(lambda y: y.squeeze()).eval(), contract)


class Table(nn.Module):
    """Adds learned positions, of which there are `count`, to a sequence of at least three."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 4, count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x[:, :, 2:].mean(2) if x.shape[2] > 2 else x.new_empty(0, 1) @ x.new_empty(2, 3)
        return y + (x + self.positions[:, :, : x.shape[2]]).mean(2)


@pytest.mark.parametrize(("count", "high", "named"), [(64, 128, "length=3..64"), (50, 120, "length=3..50"), (300, 120, "length=3..120")])
def test_a_table_that_ends_is_named_up_to_its_end(count: int, high: int, named: str) -> None:
    axes = {"batch": Range(low=1, high=8), "length": Range(low=2, high=high)}
    given = Input(name="signal", dtype="float32", shape=("batch", 4, "length"))
    output = Output(name="y", dtype="float32", shape=("batch", 4), kind="tensor")
    contract = Contract(task="tensors", inputs=(given,), outputs=(output,), axes=axes)
    with pytest.raises(NetworkFailure, match=rf"bound to its size there: it runs at --dynamic batch=1\.\.8,{re.escape(named)}$"):
        preflight(Table(count).eval(), contract)


def test_names_that_the_graph_needs_itself_are_refused() -> None:
    contract = replace(promised(Output(name="edgeport.y", dtype="float32", shape=("batch", 3), kind="tensor")))
    with pytest.raises(PreflightError, match=r"edgeport\.y"):
        preflight(Answers(lambda y: y).eval(), contract)


def test_weights_that_hold_no_values_are_named_before_anything_is_copied() -> None:
    with pytest.raises(PreflightError, match=r"conv\.weight, conv\.bias hold no values \(meta device\); load a checkpoint"):
        preflight(Net(nn.Identity()).to("meta"), CONTRACT)


def test_the_copy_that_was_checked_is_the_one_to_compare_with() -> None:
    module = Net(nn.Dropout()).train()
    reference = preflight(module, CONTRACT)
    assert reference.network is not module and not reference.network.training and reference.contract is CONTRACT


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(
    "part", [lambda: torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 1), nn.Tanh())), lambda: torch.jit.trace(nn.Tanh(), torch.rand(1, 8, 4, 4))]
)
def test_a_scripted_part_is_named(part) -> None:  # type: ignore[no-untyped-def]
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(part()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    with pytest.raises(PreflightError, match=r"'1\.0' in the network is a scripted or traced module; give the module that it was made from"):
        check_modules(network, CONTRACT)
