"""Small maps as the depth of one volume: bit for bit what the graph gave before, in fewer blocks, and only where it pays."""

from collections import Counter
from collections.abc import Callable, Sequence
from unittest import mock

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeport_export.quantization import qdq
from edgeport_export.quantization.calibration import calibrate
from edgeport_export.quantization.qdq import candidates, observed_values, preprocess, quantize
from edgeport_export.quantization.targets import TARGETS
from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.int8_graph.batch_as_depth import batch_as_depth
from edgeport_export.tracing.exporter import trace
from edgeport_runtime import Contract, Example, Pixels, Range, SessionOptions
from edgeport_runtime.contract import Output, pixel_input
from edgeport_runtime.device import open_session

SIDE = 32
Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]


def contract(largest_batch: int = 6) -> Contract:
    sides = {name: Range(low=16, high=64, step=4) for name in ("height", "width")}
    output = Output(name="scores", dtype="float32", shape=("batch", 3), kind="tensor")
    image = pixel_input(Pixels(height=SIDE, width=SIDE, mean=(0.5,) * 3, std=(0.5,) * 3))
    return Contract(task="tensors", inputs=(image,), outputs=(output,), axes={"batch": Range(low=1, high=largest_batch), **sides})


class Stage(nn.Module):
    """An image of 32x32 as maps of 16x16, then two residual blocks as a ResNet's last stage has them; `stride` of the first one."""

    def __init__(
        self, *, stride: int = 2, kernel: int = 3, channels: int = 32, groups: int = 1, dilation: int = 1, gate: Callable[[Tensor], Tensor] = torch.relu
    ):
        super().__init__()
        around = {"padding": dilation * (kernel // 2), "dilation": dilation, "groups": groups}
        self.stem, self.gate = nn.Conv2d(3, channels, 3, 2, 1), gate
        self.down, self.short = nn.Conv2d(channels, channels, kernel, stride, **around), nn.Conv2d(channels, channels, 1, stride, groups=groups)
        self.near, self.far = nn.Conv2d(channels, channels, kernel, **around), nn.Conv2d(channels, channels, kernel, **around)
        self.classify = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.near(self.gate(self.down(x))) + self.short(x))
        return self.classify(torch.relu(self.far(x) + x).mean((2, 3)))


class Twice(Stage):
    """One convolution, and so its weights, at two places."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.down(torch.relu(self.stem(x))))
        return self.classify(torch.relu(self.near(torch.relu(self.near(x)))).mean((2, 3)))


class Uneven(nn.Module):
    """No bias, a kernel, strides, dilations and padding that differ by the axis."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.down, self.classify = nn.Conv2d(16, 24, (3, 2), (4, 2), (2, 0), (2, 1), bias=False), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(torch.relu(self.down(torch.relu(self.stem(x)))).mean((2, 3)))


class Inception(nn.Module):
    """A map of 8x8 that a convolution, a pool and a pointwise convolution read; the last one is connected to none that is larger."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1)
        self.near, self.far, self.classify = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(32, 16, 1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.down(torch.relu(self.stem(x))))
        x = torch.cat([nn.functional.max_pool2d(x, 3, 1, 1), torch.relu(self.near(x))], 1)
        return self.classify(torch.relu(self.far(x)).mean((2, 3)))


def before(network: nn.Module, described: Contract, target: str = "x86-vnni") -> onnx.ModelProto:
    """Everything as integers, without this pass."""
    prepared, cpu = preprocess(trace(network.eval(), described).model), TARGETS[target]
    photos = [Example(source=each, truth=0) for each in np.random.default_rng(1).integers(0, 256, (12, SIDE, SIDE, 3), dtype=np.uint8)]
    ranges = calibrate(prepared, observed_values(prepared, cpu), described, photos).ranges("minmax")
    with mock.patch.object(qdq, "X86_PASSES", [each for each in qdq.X86_PASSES if each is not batch_as_depth]):
        return quantize(prepared, described, frozenset(candidates(GraphEditor(prepared), cpu)[0]), ranges, cpu)


def run(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    return np.asarray(open_session(model.SerializeToString(), SessionOptions(threads=2)).run(["scores"], {"pixels": pixels})[0])


def images(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def ranks(model: onnx.ModelProto) -> Counter[int]:
    """How many convolutions there are of each rank, by the weights that they read."""
    constants = {each.name: len(each.dims) - 2 for each in model.graph.initializer}
    integers = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return Counter(constants[integers[node.input[1]]] for node in model.graph.node if node.op_type == "Conv")


@settings(max_examples=12, deadline=None)
@given(
    stride=st.sampled_from([2, 4]),
    kernel=st.sampled_from([1, 2, 3, 5]),
    channels=st.sampled_from([16, 24, 32]),
    dilation=st.integers(1, 2),
    gate=st.sampled_from([torch.relu, torch.sigmoid, nn.functional.hardswish, nn.functional.silu, nn.functional.leaky_relu]),
    seed=st.integers(0, 99),
)
def test_no_number_changes_at_any_size_and_batch(
    apply: Apply, stride: int, kernel: int, channels: int, dilation: int, gate: Callable[[Tensor], Tensor], seed: int
) -> None:
    torch.manual_seed(seed)
    network = Stage(stride=stride, kernel=kernel + (kernel == 2), channels=channels, dilation=dilation, gate=gate)
    old = before(network, contract())
    new, result = apply(batch_as_depth, old, contract())
    assert bool(result) == (kernel > 1)
    for batch, height, width in ((1, 32, 32), (2, 32, 32), (5, 20, 44), (3, 64, 16)):
        pixels = images((batch, height, width), seed)
        np.testing.assert_array_equal(run(new, pixels), run(old, pixels))


def test_the_variant_is_near_pytorch_in_float64(apply: Apply) -> None:
    torch.manual_seed(3)
    network = Stage()
    new, result = apply(batch_as_depth, before(network, contract()), contract())
    assert result.changed == 4
    pixels = images((6, SIDE, SIDE))
    with torch.no_grad():
        expected = network.double()(torch.from_numpy(pixels).double().permute(0, 3, 1, 2) / 127.5 - 1).numpy()
    assert np.abs(run(new, pixels) - expected).max() < 0.05 * np.ptp(expected)


def cases() -> "dict[str, tuple[nn.Module, Contract, dict[int, int]]]":
    return {
        "8x8": (Stage(), contract(), {2: 1, 3: 4}),
        "4x4": (Stage(stride=4), contract(), {2: 1, 3: 4}),
        "one position is no block": (Stage(stride=16), contract(), {2: 5}),
        "16x16 gains nothing": (Stage(stride=1), contract(), {2: 5}),
        "pointwise alone is not worth its views": (Stage(kernel=1), contract(), {2: 5}),
        "depthwise is not dense": (Stage(groups=32), contract(), {2: 5}),
        "weights of two places": (Twice(), contract(), {2: 3, 3: 1}),
        "channels that are copied": (Stage(channels=18), contract(), {2: 5}),
        "no bias, and rows apart from columns": (Uneven(), contract(), {2: 1, 3: 1}),
        "a pool and a concatenation between": (Inception(), contract(), {2: 2, 3: 2}),
        "one image is no batch": (Stage(), contract(largest_batch=1), {2: 5}),
    }


@pytest.mark.parametrize("name", list(cases()))
def test_which_convolutions_become_ones_of_rank_3(apply: Apply, name: str) -> None:
    network, described, expected = cases()[name]
    old = before(network, described)
    model, result = apply(batch_as_depth, old, described)
    assert result.changed == expected.get(3, 0)
    for batch in range(1, described.largest_batch + 1, 2):
        np.testing.assert_array_equal(run(model, images((batch, 28, 36))), run(old, images((batch, 28, 36))))
    assert dict(ranks(model)) == expected
    assert 3 in expected or model == old


@pytest.mark.parametrize(("target", "deep"), [("x86-vnni", 4), ("x86", 4), ("arm64", 0)])
def test_targets_whose_blocks_were_measured(target: str, deep: int) -> None:
    described, cpu = contract(), TARGETS[target]
    prepared = preprocess(trace(Stage().eval(), described).model)
    ranges = {**dict.fromkeys(observed_values(prepared, cpu), (-3.0, 3.0)), "pixels": (0.0, 255.0)}
    made = quantize(prepared, described, frozenset(candidates(GraphEditor(prepared), cpu)[0]), ranges, cpu)
    assert ranks(made)[3] == deep


def test_one_view_where_small_maps_begin_and_one_where_they_end(integer_kernels: "Callable[[type[nn.Module]], Counter[str]]") -> None:
    kinds = integer_kernels(Stage)
    assert (kinds["QLinearConv"], kinds["QLinearAdd"], kinds["Unsqueeze"]) == (5, 2, 1), kinds
    assert kinds["Squeeze"] == 2, kinds  # the mean's is the other one
    assert kinds["Transpose"] <= 1 and not {"Conv", "Add"} & set(kinds), kinds  # at the single position
