"""The passes over the graph: exact in float, so they are held to PyTorch in float64, or to the graph before them."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeport_export.quantize import preprocess
from edgeport_export.rewrites.channel_padding import BLOCK, channel_padding
from edgeport_export.rewrites.global_pool import global_pool
from edgeport_export.rewrites.pixel_convolution import REAL, pixel_convolution
from edgeport_export.rewrites.position_blocks import position_blocks
from edgeport_export.rewrites.separable_fusion import separable_fusion
from edgeport_export.rewrites.transposed_product import transposed_product
from edgeport_export.trace import trace
from edgeport_runtime import Contract, Pixels, Range, SessionOptions
from edgeport_runtime.contract import Output, pixel_input
from edgeport_runtime.device import open_session

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def contract(pixels: Pixels) -> Contract:
    sides = Range(low=4, high=64)
    output = Output(name="maps", dtype="float32", shape=("batch", 5, "?", "?"), kind="tensor")
    return Contract(task="tensors", inputs=(pixel_input(pixels),), outputs=(output,), axes={"batch": Range(low=1, high=4), "height": sides, "width": sides})


def network(channels: int, **options: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 8, **{"kernel_size": 3, "padding": 1, **options}), nn.ReLU(), nn.Conv2d(8, 5, 3)).eval()


def prepared(module: nn.Module, pixels: Pixels) -> onnx.ModelProto:
    return preprocess(trace(module, contract(pixels)).model)


def run(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    return np.asarray(open_session(model.SerializeToString(), SessionOptions(threads=1)).run(["maps"], {"pixels": pixels})[0])


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made


CASES = {
    "ImageNet": (network(3), Pixels(height=16, width=16, **IMAGENET)),
    "halves": (network(3), Pixels(height=16, width=16)),
    "grey": (network(1), Pixels(height=16, width=16, mode="L", mean=(0.5,), std=(0.5,))),
    "7x7 by 2": (network(3, kernel_size=7, stride=2, padding=3), Pixels(height=16, width=16, **IMAGENET)),
    "white is zero": (network(3), Pixels(height=16, width=16, mean=(1.0,) * 3, std=(0.2, 0.3, 0.4))),
    "no padding": (network(3, padding=0), Pixels(height=16, width=16, **IMAGENET)),
}
GRAPHS = {name: prepared(*case) for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(7, 40), st.integers(7, 40), st.integers(0, 9))
def test_a_convolution_of_pixels_is_exact_at_the_borders_too(name: str, batch: int, height: int, width: int, seed: int) -> None:
    module, pixels = CASES[name]
    made = copy(GRAPHS[name])
    limits = pixel_convolution(made, "pixels", pixels)
    assert limits is not None and limits[0] <= 0 < limits[1]
    image = np.random.default_rng(seed).integers(0, 256, (batch, height, width, pixels.channels), dtype=np.uint8)
    image[:, 0] = 255
    image[:, :, 0] = 0
    x = (torch.from_numpy(image).double() / 255 - torch.tensor(pixels.mean).double()) / torch.tensor(pixels.std).double()
    expected = module.double()(x.permute(0, 3, 1, 2)).detach().numpy()
    module.float()
    np.testing.assert_allclose(run(made, image), expected, atol=3e-6 * np.ptp(expected))


def test_the_dequantised_pixels_cover_their_range() -> None:
    pixels = CASES["ImageNet"][1]
    made = copy(GRAPHS["ImageNet"])
    limits = pixel_convolution(made, "pixels", pixels)
    made.graph.output.append(onnx.helper.make_tensor_value_info(REAL, onnx.TensorProto.FLOAT, None))
    image = np.zeros((1, 8, 8, 3), np.uint8)
    image[0, 0] = 255
    real = open_session(made.SerializeToString(), SessionOptions()).run([REAL], {"pixels": image})[0]
    assert real.shape == (1, 4, 8, 8) and (real.min(), real.max()) == pytest.approx(limits)


class Twice(nn.Module):
    """Two readers of the normalised picture: the pass must keep its hands off."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) + self.second(x)


@pytest.mark.parametrize(
    "module",
    [Twice(), nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(6, 5, 1)), nn.Sequential(nn.Sigmoid(), nn.Conv2d(3, 5, 3))],
    ids=["two readers", "grouped", "something in between"],
)
def test_other_patterns_are_left_as_they_are(module: nn.Module) -> None:
    model = prepared(module.eval(), Pixels(height=16, width=16))
    before = model.SerializeToString(deterministic=True)
    assert pixel_convolution(model, "pixels", Pixels(height=16, width=16)) is None
    assert model.SerializeToString(deterministic=True) == before


def test_few_filters_are_padded_and_cut_off_exactly() -> None:
    made = copy(GRAPHS["halves"])
    names = {node.name for node in made.graph.node if node.op_type == "Conv"}
    widened = channel_padding(made, names)
    assert len(widened) == 2 and all(wide == narrow + ".wide" for wide, narrow in widened.items())
    shapes = [each.dims[0] for each in made.graph.initializer if len(each.dims) == 4]
    assert set(shapes) == {BLOCK}
    image = np.random.default_rng(0).integers(0, 256, (2, 17, 11, 3), dtype=np.uint8)
    np.testing.assert_array_equal(run(made, image), run(GRAPHS["halves"], image))
    assert run(made, image).shape[1] == 5


def test_only_the_named_ones_are_padded() -> None:
    made = copy(GRAPHS["halves"])
    assert channel_padding(made, set()) == {} and made.SerializeToString() == GRAPHS["halves"].SerializeToString()
    last = [node.name for node in made.graph.node if node.op_type == "Conv"][-1]
    assert len(channel_padding(made, {last})) == 1


NARROW = {
    "3x3 same": nn.Conv2d(8, 3, 3, padding=1),
    "1 filter, no bias": nn.Conv2d(8, 1, 3, padding=1, bias=False),
    "5x2, uneven": nn.Conv2d(8, 4, (5, 2), padding=(2, 1)),
    "no padding": nn.Conv2d(8, 2, 3),
    "4 filters": nn.Conv2d(8, 4, 3, padding=1),
}


def narrow(last: nn.Module) -> onnx.ModelProto:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), last)
    filters = module(torch.zeros(1, 3, 8, 8)).shape[1]
    made = contract(Pixels(height=16, width=16))
    output = replace(made.outputs[0], shape=("batch", filters, "?", "?"))
    return preprocess(trace(module.eval(), replace(made, outputs=(output,))).model)


@pytest.mark.parametrize("name", NARROW)
def test_a_square_of_positions_at_a_time_is_the_same_numbers_at_every_size(name: str) -> None:
    before = narrow(NARROW[name])
    filters = NARROW[name].out_channels
    last = [node.name for node in before.graph.node if node.op_type == "Conv"][-1]
    made = copy(before)
    assert list(position_blocks(made, {last})) == [f"{value}.blocks" for value in position_blocks(copy(before), {last}).values()]
    wide = next(node for node in made.graph.node if node.name == last)
    assert next(each.dims[0] for each in made.graph.initializer if each.name == wide.input[1]) == (16 if filters == 4 else 16 * filters)
    generator = np.random.default_rng(0)
    for batch, height, width in ((1, 16, 16), (2, 17, 12), (1, 9, 31), (3, 7, 8)):
        image = generator.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
        expected = run(before, image)
        got = run(made, image)
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, atol=2e-6 * np.ptp(expected))


@pytest.mark.parametrize(
    "last",
    [nn.Conv2d(8, 5, 3), nn.Conv2d(8, 3, 1), nn.Conv2d(8, 3, 3, stride=2), nn.Conv2d(8, 3, 3, dilation=2), nn.Conv2d(8, 4, 3, groups=2)],
    ids=["five filters", "1x1", "strided", "dilated", "grouped"],
)
def test_other_convolutions_keep_their_positions(last: nn.Module) -> None:
    model = narrow(last)
    before = model.SerializeToString()
    assert position_blocks(model, {node.name for node in model.graph.node if "2/" in node.name}) == {} and model.SerializeToString() == before


class Mean(nn.Module):
    def __init__(self, axes: tuple[int, ...], keep: bool) -> None:
        super().__init__()
        self.axes, self.keep = axes, keep

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.mean(self.axes, keepdim=self.keep)
        return y if y.dim() == 4 else y.reshape(x.shape[0], -1, 1, 1)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(("axes", "pools"), [((2, 3), True), ((-1, -2), True), ((1, 2), False), ((3,), False)])
def test_a_mean_over_the_map_is_a_pool(axes: tuple[int, ...], pools: bool, keep: bool) -> None:
    module = nn.Sequential(nn.Conv2d(3, 5, 3), Mean(axes, keep)).eval()
    output = Output(name="maps", dtype="float32", shape=("batch", "?", "?", "?"), kind="tensor")
    before = preprocess(trace(module, replace(contract(Pixels(height=16, width=16)), outputs=(output,))).model)
    made = copy(before)
    mean = next(node.name for node in made.graph.node if node.op_type == "ReduceMean")
    assert global_pool(made, set()) == {} and made.SerializeToString() == before.SerializeToString()
    assert bool(global_pool(made, {mean})) == (pools and not keep)
    assert [node.op_type for node in made.graph.node if node.name == mean] == ["GlobalAveragePool" if pools else "ReduceMean"]
    image = np.random.default_rng(0).integers(0, 256, (2, 17, 11, 3), dtype=np.uint8)
    np.testing.assert_allclose(run(made, image), run(before, image), atol=1e-6)


class Separable(nn.Module):
    def __init__(self, bias: bool, mixing_kernel: int = 1) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(3, 3, 5, stride=2, padding=2, groups=3, bias=bias)
        self.mixing = nn.Conv2d(3, 5, mixing_kernel, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixing(self.spatial(x))


@pytest.mark.parametrize("bias", [True, False])
def test_a_depthwise_stem_becomes_one_dense_convolution_and_then_reads_pixels(bias: bool) -> None:
    torch.manual_seed(0)
    module, pixels = Separable(bias).eval(), Pixels(height=16, width=16, **IMAGENET)
    made = prepared(module, pixels)
    assert separable_fusion(made) == ("spatial/Conv", "mixing/Conv")
    fused = copy(made)
    assert pixel_convolution(made, "pixels", pixels) is not None
    image = np.random.default_rng(0).integers(0, 256, (2, 21, 13, 3), dtype=np.uint8)
    x = (torch.from_numpy(image).double() / 255 - torch.tensor(pixels.mean).double()) / torch.tensor(pixels.std).double()
    expected = module.double()(x.permute(0, 3, 1, 2)).detach().numpy()
    for model in (fused, made):
        assert sum(node.op_type == "Conv" for node in model.graph.node) == 1
        np.testing.assert_allclose(run(model, image), expected, atol=3e-6 * np.ptp(expected))


class Shown(Separable):
    """What lies between the two convolutions is an answer, too."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        between = self.spatial(x)
        return self.mixing(between), between


def test_what_somebody_asks_for_is_not_fused_away() -> None:
    described = tuple(Output(name=name, dtype="float32", shape=("batch", size, "?", "?"), kind="tensor") for name, size in (("out", 5), ("between", 3)))
    model = preprocess(trace(Shown(True).eval(), replace(contract(Pixels(height=16, width=16)), outputs=described)).model)
    assert separable_fusion(model) is None


@pytest.mark.parametrize(
    "module",
    [
        Separable(True, mixing_kernel=3),
        nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.ReLU(), nn.Conv2d(3, 5, 1)),
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1)),
        nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(6, 5, 1)),
        nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 5, 1, stride=2)),
    ],
    ids=["3x3 mixing", "an activation between", "dense", "two filters a channel", "strided mixing"],
)
def test_other_stems_are_left_as_they_are(module: nn.Module) -> None:
    model = prepared(module.eval(), Pixels(height=16, width=16))
    before = model.SerializeToString(deterministic=True)
    assert separable_fusion(model) is None and model.SerializeToString(deterministic=True) == before


class Backwards(nn.Module):
    """(weights · valuesᵀ)ᵀ, as attention over a map ends."""

    def __init__(self, swap: tuple[int, int] = (1, 2), both: bool = False) -> None:
        super().__init__()
        self.swap, self.both = swap, both

    def forward(self, weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        product = weights @ values.transpose(1, 2)
        return product.transpose(*self.swap) + (product.sum() if self.both else 0)


def product_graph(module: nn.Module) -> onnx.ModelProto:
    program = torch.onnx.export(
        module.eval(), (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)), dynamo=True, verbose=False, opset_version=20, input_names=["a", "b"], output_names=["c"]
    )
    return program.model_proto  # type: ignore[union-attr]


def test_a_product_that_is_transposed_is_computed_the_other_way_round() -> None:
    model = product_graph(Backwards())
    assert transposed_product(model)
    assert [node.op_type for node in model.graph.node] == ["Transpose", "MatMul"]
    onnx.checker.check_model(model, full_check=True)
    a, b = (np.random.default_rng(i).standard_normal((2, 3, 4)).astype(np.float32) for i in range(2))
    got = open_session(model.SerializeToString(), SessionOptions()).run(["c"], {"a": a, "b": b})[0]
    np.testing.assert_allclose(got, np.swapaxes(a.astype(np.float64) @ np.swapaxes(b, 1, 2), 1, 2), atol=1e-6)


class Spread(nn.Module):
    """One matrix before a stack of them: the product spreads it, a transposition of three axes cannot be applied to it."""

    def forward(self, weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return (weights[0] @ values.transpose(1, 2)).transpose(1, 2)


class Chained(nn.Module):
    """The second product reads what the first one became."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        inner = (a @ b.transpose(1, 2)).transpose(1, 2)
        return (a.transpose(1, 2) @ inner).transpose(1, 2)


def test_products_one_in_another_are_turned_one_after_the_other() -> None:
    model = product_graph(Chained())
    assert transposed_product(model)
    onnx.checker.check_model(model, full_check=True)
    a, b = (np.random.default_rng(i).standard_normal((2, 3, 4)) for i in range(2))
    got = open_session(model.SerializeToString(), SessionOptions()).run(["c"], {"a": a.astype(np.float32), "b": b.astype(np.float32)})[0]
    np.testing.assert_allclose(got, np.swapaxes(np.swapaxes(a, 1, 2) @ np.swapaxes(a @ np.swapaxes(b, 1, 2), 1, 2), 1, 2), atol=1e-5)


@pytest.mark.parametrize("module", [Backwards(swap=(0, 1)), Backwards(both=True), Spread()], ids=["another axis", "two readers", "fewer axes"])
def test_other_products_stay(module: nn.Module) -> None:
    model = product_graph(module)
    before = model.SerializeToString()
    assert not transposed_product(model) and model.SerializeToString() == before
