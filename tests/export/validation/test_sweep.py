from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeport_export import ImageTask, image_contract
from edgeport_export.network.reference import TorchReference
from edgeport_export.network.size_sweep import sweep_inputs, sweep_sizes
from edgeport_export.rewrites.finalize import finalize, finalize_fp32
from edgeport_export.tracing.exporter import trace
from edgeport_export.validation.last_bits import Envelope
from edgeport_export.validation.parity import remedy
from edgeport_export.validation.sweep import MOST_NOISY, Envelopes, Row, compared, measure_parity
from edgeport_runtime import Contract, Input, Output, Pixels
from edgeport_runtime.axes import Range, image_axes
from edgeport_runtime.contract import classification, pixel_input

VECTORS = Contract(
    task="tensors",
    inputs=(Input(name="x", shape=("batch", 64), dtype="float32"),),
    outputs=(Output(name="y", kind="tensor", shape=("batch", 64), dtype="float32"),),
    axes={"batch": Range(low=1, high=8)},
)


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(each for each in model.graph.initializer if each.name == name)


def test_a_sound_export_is_as_near_to_float64_as_torch(tiny: ModuleType, class_contract: Contract) -> None:
    module = tiny.trained_classifier()
    parity = measure_parity(TorchReference(module, class_contract), finalize(trace(module, class_contract).model, class_contract))
    assert parity and parity.worst < 1e-6 and len(parity.cases) > len(sweep_sizes(class_contract))
    assert parity.floors["logits"] < 1e-6 and "parity at" in str(parity)
    assert parity.to_dict()["passed"] is True


@pytest.mark.parametrize(("weight", "factor"), [("network.conv1.weight", 1.001), ("network.conv2.weight", 1.001), ("network.head.bias", 1.001)])
def test_one_changed_weight_fails(tiny: ModuleType, class_contract: Contract, weight: str, factor: float) -> None:
    module = tiny.trained_classifier()
    model = trace(module, class_contract).model
    tensor = initializer(model, weight)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[np.unravel_index(np.argmax(np.abs(values)), values.shape)] *= factor
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, weight))
    parity = measure_parity(TorchReference(module, class_contract), finalize(model, class_contract))
    assert not parity and "FAILED logits at" in str(parity)


def test_a_graph_baked_to_its_example_fails_and_the_sizes_are_named() -> None:
    """What the exporter does to adaptive pooling without the rewrite: the kernel of the example's size."""
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    baked = nn.Sequential(module[0], nn.AvgPool2d(8, 8), nn.Flatten(), module[3])
    axes = {"batch": Range(low=1, high=8)}
    fixed = classification(
        Pixels(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3), tuple("abc"), image_axes(smallest_px=4, largest_px=64, largest_batch=8)
    )
    still = Contract(task="classification", inputs=(pixel_input_of(16),), outputs=fixed.outputs, axes=axes, labels=fixed.labels)
    model = trace(baked, still).model
    parity = measure_parity(TorchReference(module, fixed), finalize(model, fixed))
    failed = {(case.sizes["height"], case.sizes["width"]) for case in parity.failures()}
    assert not parity and (16, 16) not in failed and (17, 16) in failed
    lines = str(parity).splitlines()[1:]
    assert lines and all("onnxruntime failed" in line or "allowed" in line for line in lines)
    assert not any("alone" in line for line in lines)  # of batches that failed as a whole


def pixel_input_of(side: int):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return replace(pixel_input(Pixels(height=side, width=side, mean=(0.5,) * 3, std=(0.5,) * 3)), shape=("batch", side, side, 3))


def test_pixel_outputs_are_compared_before_rounding(tiny: ModuleType, image_contract: Contract) -> None:
    torch.manual_seed(0)
    module = tiny.TinyGenerator()
    model = finalize(trace(module, image_contract).model, image_contract)
    parity = measure_parity(TorchReference(module, image_contract), model)
    assert parity and parity.ranges == {"image.levels": 255.0} and parity.worst < 1e-6
    other = tiny.TinyGenerator()
    other.load_state_dict(module.state_dict())
    with torch.no_grad():
        other.conv2.bias += 1e-5  # a thousandth of a level: the rounded images are all equal
    assert not measure_parity(TorchReference(other, image_contract), model)


def test_nan_never_passes(tiny: ModuleType, class_contract: Contract) -> None:
    module = tiny.trained_classifier()
    model = trace(module, class_contract).model
    tensor = initializer(model, "network.head.bias")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(3, np.nan, np.float32), "network.head.bias"))
    assert not measure_parity(TorchReference(module, class_contract), finalize(model, class_contract))


def row(exact: np.ndarray, got: np.ndarray, *, single: np.ndarray | None = None, run: int = 0) -> Row:
    return Row(run=run, sizes={"batch": run + 1}, output="y", exact=exact, single=exact if single is None else single, got=got)


def test_a_small_answer_does_not_hide_behind_a_large_one() -> None:
    small, large = np.array([[0.0, 1.0]]), np.array([[0.0, 5.0]])
    noise = 1e-6 * np.array([[0.0, 1.0]])  # of the range at each point, in PyTorch's float32
    parity = compared(["y"], [row(small, small + 100 * noise, single=small + noise), row(large, large, single=large + 5 * noise, run=1)])
    assert parity.floors["y"] == pytest.approx(1e-6) and [case.sizes["batch"] for case in parity.failures()] == [1]
    assert parity.ratio(parity.cases[0]) == pytest.approx(100) and parity.ranges["y"] == 5


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int8, np.int64])
def test_flags_and_small_integers_must_be_equal_and_do_not_wrap_around(dtype: type) -> None:
    exact = np.array([[1, 0, 1, 0]]).astype(dtype)
    assert compared(["y"], [row(exact, exact.copy())])
    parity = compared(["y"], [row(exact, 1 - exact if dtype is not np.bool_ else ~exact)])
    assert not parity and parity.worst == 1.0 and parity.ranges["y"] == 1.0
    wide = np.array([[-128, 127]]).astype(np.int8)
    assert compared(["y"], [row(wide, wide)]).ranges["y"] == 255.0


def looking(low: np.ndarray, high: np.ndarray) -> Envelopes:
    return lambda runs: {run: {"y": Envelope(low=low, high=high)} for run in runs}


# six runs, of which the last differs: exact, float32's, the variant's, the envelope; then whether it passes and how many values are unsteady
EXACT = np.array([0.0, 1.0, 2.0, 10.0])
JUMP = np.array([0.0, 1.0, 3.0, 10.0])


@pytest.mark.parametrize(
    ("single", "got", "high", "passes", "unsteady"),
    [
        (EXACT, JUMP, JUMP, True, 1),  # the variant is on the other side of an edge
        (JUMP, EXACT, JUMP, True, 1),  # PyTorch is
        (EXACT, JUMP, EXACT, False, 0),  # no network nearby gives this
        (EXACT, np.array([0, 1, 3.5, 10]), JUMP, False, 1),  # nor this
        (EXACT, np.array([0.01, 1, 3, 10]), JUMP, False, 1),  # a steady value is wrong beside a jump
        (EXACT, JUMP * np.nan, JUMP, False, 1),
    ],
)
def test_a_jump_is_judged_by_the_networks_nearby(single: np.ndarray, got: np.ndarray, high: np.ndarray, passes: bool, unsteady: int) -> None:
    rows = [*(row(EXACT, EXACT, run=run) for run in range(5)), row(EXACT, got, single=single, run=5)]
    parity = compared(["y"], rows, looking(EXACT, high))
    assert bool(parity) is passes and parity.cases[-1].unsteady == unsteady and parity.floors["y"] == 0
    assert ("decided by the last bits" in str(parity)) is (passes and unsteady > 0)


def test_many_jumps_are_no_accident() -> None:
    rows = [row(EXACT, JUMP if run > 3 else EXACT, run=run) for run in range(6)]
    assert not compared(["y"], rows, looking(EXACT, JUMP))


class Floor(nn.Module):
    """Jumps where the mean of the image times `scale` is a whole number."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.floor(self.scale * x.mean((2, 3)))


@pytest.mark.parametrize(("below", "change", "passes"), [(2e-7, 4.2e-7, True), (1e-4, 2e-4, False)])
def test_a_value_on_the_edge_is_no_fault_of_the_graph(below: float, change: float, passes: bool) -> None:
    """The sweep's fourth point lies `below` the edge (as a share), and the graph's weight, larger by `change`, is beyond it."""
    contract = image_contract(Floor(0.3), ImageTask(task="tensors", pixels=Pixels(height=16, width=16)))
    mean = (sweep_inputs(contract, sweep_sizes(contract)[3], seed=3)["pixels"] / 255.0).mean((1, 2))[0, 0]
    scale = float(np.float32(7 * (1 - below) / mean))
    model = trace(Floor(scale * (1 + change)), contract).model
    parity = measure_parity(TorchReference(Floor(scale), contract), finalize(model, contract))
    assert bool(parity) is passes, str(parity)
    assert (sum(case.unsteady for case in parity.cases) > 0) is passes


class LogSigmoid(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(torch.sigmoid(x))


def test_strong_inputs_reach_the_tails() -> None:
    """onnxruntime's own Sigmoid is wrong from -17 on: the numbers of the sweep itself, from a normal distribution, do not get there."""
    model = trace(LogSigmoid(), VECTORS).model
    parity = measure_parity(TorchReference(LogSigmoid(), VECTORS), finalize(model, VECTORS))
    assert {case.factor for case in parity.failures()} == {16.0} and "inputs 16 times as strong" in str(parity)
    assert measure_parity(TorchReference(LogSigmoid(), VECTORS), finalize_fp32(model, VECTORS))


def test_where_float32_overflows_there_is_nothing_to_compare() -> None:
    class Powers(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.exp(8 * x)

    parity = measure_parity(TorchReference(Powers(), VECTORS), finalize_fp32(trace(Powers(), VECTORS).model, VECTORS))
    assert {case.factor for case in parity.cases} == {1.0, 1 / 16}


class Selecting(nn.Module):
    """Adds the mean of all values above `threshold`, or of these and a zero."""

    def __init__(self, threshold: float, or_zero: bool) -> None:
        super().__init__()
        self.threshold, self.or_zero = threshold, or_zero

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = x[x > self.threshold]
        if self.or_zero:
            chosen = torch.cat([chosen, torch.zeros(1)])
        return x.mean((2, 3)) + chosen.mean()


@pytest.mark.parametrize(
    ("threshold", "or_zero", "fault"), [(0.0, False, "a black image: a number where PyTorch gives NaN"), (0.0, True, None), (-1.0, False, None)]
)
def test_a_network_that_selects_is_asked_what_it_gives_for_nothing(threshold: float, or_zero: bool, fault: str | None) -> None:
    network = Selecting(threshold, or_zero)
    contract = image_contract(network, ImageTask(task="tensors", pixels=Pixels(height=16, width=16)))
    fixed = replace(contract, axes={}, inputs=(replace(contract.inputs[0], shape=(1, 16, 16, 3)),), outputs=(replace(contract.outputs[0], shape=(1, 3)),))
    parity = measure_parity(TorchReference(network, fixed), finalize(trace(network, fixed).model, fixed))
    assert bool(parity) is (fault is None), str(parity)
    if fault:
        assert fault in str(parity) and "let it give a number of its own where it finds nothing" in remedy(parity, fixed, ())


@pytest.mark.parametrize(
    ("got", "noise", "passes", "asked"),
    [
        (3.0, 0.0, True, False),  # within four times PyTorch's own: nobody asks
        (6.0, 0.0, False, True),
        (6.0, 2.0, True, True),  # three times the noise at this input
        (6.0, 1.4, False, True),
        (50.0, 20.0, False, False),  # too far for noise: nobody asks, and no noise excuses it
    ],
)
def test_a_noisy_input_is_held_to_its_own_noise(got: float, noise: float, passes: bool, asked: bool) -> None:
    """Distances in units of 1e-6 of the range, at the second of two inputs; PyTorch is 1 from float64 at both."""
    unit, exact = 1e-6, np.linspace(0, 1, 11)[None]
    runs: list[int] = []

    def noise_at(indices: Sequence[int]) -> list[dict[str, float]]:
        runs.extend(indices)
        return [{"y": noise * unit}] * len(indices)

    rows = [row(exact, exact + unit, single=exact + unit), row(exact, exact + got * unit, single=exact + unit, run=1)]
    parity = compared(["y"], rows, noise_at=noise_at)
    assert bool(parity) is passes and runs == [1] * asked
    assert parity.cases[1].noise == pytest.approx(noise * unit if asked else 0.0) and parity.cases[0].noise == 0.0


def test_noise_is_measured_at_a_few_inputs_alone() -> None:
    """If more fail, the others fail as they are."""
    exact, seen = np.linspace(0, 1, 11)[None], []
    rows = [row(exact, exact + 6e-6, single=exact + 1e-6, run=index) for index in range(9)]
    parity = compared(["y"], rows, noise_at=lambda indices: seen.extend(indices) or [{"y": 1.0}] * len(indices))  # type: ignore[func-returns-value]
    assert len(seen) == MOST_NOISY and len(parity.failures()) == 9 - MOST_NOISY
