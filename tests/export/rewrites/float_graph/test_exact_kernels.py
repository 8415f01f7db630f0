"""The numbers come from float64; docs/kernels.md has the same for every kernel over its whole domain."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgeport_export import ImageTask, image_contract
from edgeport_export.network.reference import TorchReference
from edgeport_export.rewrites.finalize import finalize, finalize_fp32
from edgeport_export.rewrites.float_graph.exact_kernels import exact_kernels
from edgeport_export.rewrites.graph import GraphEditor
from edgeport_export.tracing.exporter import trace
from edgeport_export.validation.parity import Parity
from edgeport_export.validation.sweep import measure_parity
from edgeport_runtime import Contract, Input, Output, Pixels, Range

BENCH = Path(__file__).parents[3] / "bench" / "kernels.py"


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kernels", BENCH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "plain_misses"),
    [("Sigmoid", True), ("Expm1", True), ("InstanceNorm", True), ("GroupNorm", True), ("LogSigmoid", False), ("Softmax", False), ("Sqrt", False)],
)
def test_errors_stay_within_twice_pytorchs_and_2_ulp(name: str, plain_misses: bool, kernels: ModuleType) -> None:
    row = kernels.measured(name, timed=False)
    assert row.holds and (row.plain_ulp > 2 * row.torch_ulp + 2) == plain_misses


@pytest.mark.long
def test_what_misses_the_bar_is_a_closed_list(kernels: ModuleType) -> None:
    missed = {name for name in kernels.FUNCTIONS if name not in ("Normalize", "LayerNorm") and not kernels.measured(name, timed=False).holds}
    assert missed <= set(kernels.EXCEPTIONS), missed - set(kernels.EXCEPTIONS)


def ends(function: Callable[[torch.Tensor], torch.Tensor], values: list[float], kernels: ModuleType) -> np.ndarray:
    promise = kernels.contract(rank=3)
    x = np.resize(np.array(values, np.float32), (1, 4, 2 * len(values)))
    with kernels.Engine(finalize_fp32(kernels.traced(function, promise), promise), promise, kernels.SessionOptions()) as engine:
        return np.asarray(engine.run({"x": x})["y"])[0, 0, : len(values)]


@pytest.mark.parametrize("function", [torch.sigmoid, torch.log1p, torch.expm1])
def test_the_ends_of_the_domain_are_pytorchs(function: Callable[[torch.Tensor], torch.Tensor], kernels: ModuleType) -> None:
    values = [float("-inf"), -1e30, -200.0, -1.0, -0.0, 0.0, 1e-30, 200.0, 1e30, float("inf"), float("nan")]
    np.testing.assert_allclose(ends(function, values, kernels), function(torch.tensor(values)).numpy(), rtol=1e-6)


class Depth(nn.Module):  # as monodepth2 turns a disparity into a depth
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1 / (0.01 + 9.99 * torch.sigmoid(4 * self.conv(x) - 5))


class Tail(nn.Module):
    """A function where its results are small."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], scale: float, shift: float) -> None:
        super().__init__()
        self.conv, self.function, self.scale, self.shift = nn.Conv2d(3, 1, 3, padding=1), function, scale, shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.scale * self.conv(x) + self.shift)


def parity(make: Callable[[], nn.Module], *, plain: bool = False) -> Parity:
    torch.manual_seed(0)
    network = make().eval()
    contract = image_contract(network, ImageTask(task="tensors", pixels=Pixels(height=64, width=64, mean=(0.5,) * 3, std=(0.5,) * 3)))
    model = trace(network, contract).model
    return measure_parity(TorchReference(network, contract), finalize(model, contract) if plain else finalize_fp32(model, contract))


@pytest.mark.parametrize(
    "make",
    [
        Depth,
        lambda: Tail(torch.sigmoid, 1.0, -7.0),
        lambda: Tail(torch.sigmoid, 1.0, -30.0),
        lambda: Tail(lambda x: torch.log(torch.sigmoid(x)), 1.0, -20.0),
        lambda: Tail(lambda x: 1 - torch.sigmoid(-x), 1.0, 0.0),
        lambda: Tail(torch.expm1, 1e-4, 0.0),
        lambda: Tail(torch.log1p, 1e-4, 0.0),
    ],
)
def test_small_results_are_as_exact_as_pytorchs(make: Callable[[], nn.Module]) -> None:
    """Depth networks, log-probabilities and rare masks were refused."""
    found = parity(make)
    assert found, str(found)


@pytest.mark.parametrize("make", [Depth, lambda: Tail(torch.sigmoid, 1.0, -7.0), lambda: Tail(torch.expm1, 1e-4, 0.0)])
def test_the_plain_kernels_are_refused(make: Callable[[], nn.Module]) -> None:
    assert not parity(make, plain=True)


REFUSED: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], float, float]] = {
    "SiLU": (F.silu, 1.0, -15.0),
    "ELU": (F.elu, 1e-4, 0.0),
    "SELU": (F.selu, 1e-4, 0.0),
    "CELU": (F.celu, 1e-4, 0.0),
    "Tanhshrink": (F.tanhshrink, 1e-2, 0.0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_parity_refuses_networks_that_depend_on_an_exception(name: str, kernels: ModuleType) -> None:
    assert name in kernels.EXCEPTIONS and not parity(lambda: Tail(*REFUSED[name]))


class Mean(nn.Module):
    """The mean of a function over numbers that float32 holds exactly: PyTorch's own roundings cancel, and a kernel's that lean to one side do not."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], scale: float, shift: float) -> None:
        super().__init__()
        self.function, self.scale, self.shift = function, scale, shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(torch.round(torch.clamp(x, -3, 3) * 64) / 64 * self.scale + self.shift).mean(-1)


REFUSED_MEANS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], float, float]] = {
    "HardSigmoid": (F.hardsigmoid, 2.0**-16, -3.0),
    "HardSwish": (F.hardswish, 2.0**-16, -3.0),
    "Tanh": (torch.tanh, 2.0**-8, 2.0**-7),
    "Log1p": (torch.log1p, 2.0**-9, 2.0**-6),
    "Log2": (torch.log2, 2.0**-9, 2.0),
    "Mish": (F.mish, 2.0**-4, -8.0),
    "GELU, tanh": (lambda x: F.gelu(x, approximate="tanh"), 2.0**-3, -4.0),
}


@pytest.mark.parametrize("name", REFUSED_MEANS)
def test_parity_refuses_networks_that_add_up_an_exceptions_errors(name: str, kernels: ModuleType) -> None:
    network = Mean(*REFUSED_MEANS[name])
    contract = Contract(
        task="tensors",
        inputs=(Input(name="x", shape=("batch", 8, 4096), dtype="float32"),),
        outputs=(Output(name="y", kind="tensor", shape=("batch", 8), dtype="float32"),),
        axes={"batch": Range(low=1, high=8)},
    )
    found = measure_parity(TorchReference(network, contract), finalize_fp32(trace(network, contract).model, contract))
    assert name in kernels.EXCEPTIONS and not found


def test_every_exception_has_such_a_network(kernels: ModuleType) -> None:
    assert {*REFUSED, *REFUSED_MEANS} == set(kernels.EXCEPTIONS)


def test_the_sigmoid_of_a_silu_stays() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.Sigmoid()).eval()
    contract = image_contract(network, ImageTask(task="tensors", pixels=Pixels(height=16, width=16)))
    editor = GraphEditor.of_copy(trace(network, contract).model)
    assert exact_kernels(editor, contract).changed == 1 and [node.op_type for node in editor.nodes].count("Sigmoid") == 1
    assert not exact_kernels(editor, contract)
    onnx.checker.check_model(editor.model, full_check=True)
