"""Rewrites against PyTorch in float64, at sizes the graph was not traced at."""

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional as F

from edgeport_export.rewrites import TRANSLATIONS
from edgeport_export.rewrites.precise_mean import precise_mean
from edgeport_export.rewrites.precise_reduction import precise_reduction
from edgeport_runtime import Pixels, SessionOptions
from edgeport_runtime.contract import classification, image_axes
from edgeport_runtime.device import open_session


def exported(module: nn.Module, args: tuple[torch.Tensor, ...], dynamic: tuple[dict[int, str], ...] | None) -> Any:
    program = torch.onnx.export(
        module.eval(),
        args,
        dynamo=True,
        verbose=False,
        opset_version=20,
        dynamic_shapes=dynamic,
        custom_translation_table=TRANSLATIONS,
        input_names=list("abcd")[: len(args)],
    )
    return open_session(onnx_ir.to_proto(program.model).SerializeToString(), SessionOptions(threads=1))


HW = {0: "batch", 2: "height", 3: "width"}
POOLS = {size: exported(nn.AdaptiveAvgPool2d(size), (torch.zeros(2, 3, 20, 28),), (HW,)) for size in ((6, 6), (5, 2), (1, 1), (7, 1))}


@pytest.mark.parametrize("size", POOLS)
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 70))
def test_adaptive_average_pooling_at_random_sizes(size: tuple[int, int], batch: int, height: int, width: int) -> None:
    x = np.random.default_rng(height * 71 + width).standard_normal((batch, 3, height, width)).astype(np.float32)
    expected = F.adaptive_avg_pool2d(torch.from_numpy(x).double(), size).numpy()
    np.testing.assert_allclose(POOLS[size].run(None, {"a": x})[0], expected, atol=2e-6)


@pytest.mark.parametrize("size", [(2, 3, 1), (1, 1, 1), (4, 4, 4)])
def test_adaptive_average_pooling_of_volumes(size: tuple[int, int, int]) -> None:
    session = exported(nn.AdaptiveAvgPool3d(size), (torch.zeros(2, 3, 8, 12, 16),), ({0: "batch", 2: "depth", 3: "height", 4: "width"},))
    for batch, *sides in ((1, 8, 12, 16), (3, 5, 4, 7), (2, 1, 1, 1), (1, 9, 30, 2)):
        x = np.random.default_rng(sides[0]).standard_normal((batch, 3, *sides)).astype(np.float32)
        expected = F.adaptive_avg_pool3d(torch.from_numpy(x).double(), size).numpy()
        np.testing.assert_allclose(session.run(None, {"a": x})[0], expected, atol=2e-6)


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


RESIZES = {
    "max 5x2": lambda x: F.adaptive_max_pool2d(x, (5, 2)),
    "max 1x1": lambda x: F.adaptive_max_pool2d(x, 1),
    "max with positions": lambda x: F.adaptive_max_pool2d(x, (3, 2), return_indices=True),
    "average with a free side": lambda x: F.adaptive_avg_pool2d(x, (None, 3)),
    "trilinear": lambda x: F.interpolate(x[:, None], size=(4, 9, 8), mode="trilinear"),
    "log of a sigmoid": lambda x: F.logsigmoid(40 * x),
    "padded up to whole blocks": lambda x: F.pad(x, (0, -(-x.shape[3] // 8) * 8 - x.shape[3], 0, -1 * x.shape[2] // 5 * -5 - x.shape[2])),
    "the last third": lambda x: x[..., -x.shape[3] // 3 :],
    "average over another divisor": lambda x: F.avg_pool2d(x, (2, 3), padding=(0, 1), count_include_pad=False, divisor_override=5),
    "average of overlapping windows over another divisor": lambda x: F.avg_pool2d(x, 4, stride=(3, 2), padding=2, divisor_override=-7),
    "average over another divisor without a batch": lambda x: F.avg_pool2d(x[0], 3, divisor_override=2),
    "average over the window": lambda x: F.avg_pool2d(x, 3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
    "area to a size": lambda x: F.interpolate(x, size=(7, 5), mode="area"),
    "area by a factor": lambda x: F.interpolate(x, scale_factor=0.5, mode="area"),
    "area to a share of the input": lambda x: F.interpolate(x, size=(x.shape[2] // 3, x.shape[3] // 2), mode="area"),
    "antialiased bilinear": lambda x: F.interpolate(x, size=(9, 11), mode="bilinear", antialias=True),
    "antialiased bilinear by a factor": lambda x: F.interpolate(x, scale_factor=0.7, mode="bilinear", antialias=True),
    "antialiased bicubic by factors": lambda x: F.interpolate(x, scale_factor=(0.4, 1.3), mode="bicubic", antialias=True),
    "antialiased with aligned corners": lambda x: F.interpolate(x, size=(9, 11), mode="bilinear", antialias=True, align_corners=True),
    "antialiased bicubic with aligned corners": lambda x: F.interpolate(x, size=(5, 40), mode="bicubic", antialias=True, align_corners=True),
    "antialiased by a factor that is worked out again": lambda x: F.interpolate(
        x, scale_factor=0.7, mode="bilinear", antialias=True, recompute_scale_factor=True
    ),
}
RESIZED = {name: exported(Function(function), (torch.zeros(2, 3, 20, 28),), (HW,)) for name, function in RESIZES.items()}


@pytest.mark.parametrize("name", RESIZES)
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(6, 60), st.integers(6, 60))
def test_pooling_and_resizing_at_random_sizes(name: str, batch: int, height: int, width: int) -> None:
    x = np.random.default_rng(height * 71 + width).standard_normal((batch, 3, height, width)).astype(np.float32)
    expected = RESIZES[name](torch.from_numpy(x).double())
    got = RESIZED[name].run(None, {"a": x})
    for value, want in zip(got, expected if isinstance(expected, tuple) else (expected,), strict=True):
        # by a factor PyTorch's own float32 is up to 1.2e-5 from its float64 at 60 positions
        np.testing.assert_allclose(value, want.numpy(), atol=3e-5 if "factor" in name or "corners" in name or name == "trilinear" else 3e-6, rtol=1e-6)


NEAREST = {
    "to a size": lambda x: F.interpolate(x, size=(8, 5)),
    "to a computed size": lambda x: F.interpolate(x, size=(x.shape[2] + 3, x.shape[3] // 2)),
    "by a factor": lambda x: F.interpolate(x, scale_factor=1.7),
    "by a whole factor": lambda x: F.interpolate(x, scale_factor=2),
    "exact to a size": lambda x: F.interpolate(x, size=(8, 5), mode="nearest-exact"),
    "exact by factors": lambda x: F.interpolate(x, scale_factor=(0.7, 1.3), mode="nearest-exact"),
    "along a line": lambda x: F.interpolate(x.amax(2), size=x.shape[3] // 2 + 1),
    "along a line by a factor": lambda x: F.interpolate(x.amax(2), scale_factor=1.7),
    "along a line by a whole factor": lambda x: F.interpolate(x.amax(2), scale_factor=3),
    "exact along a line": lambda x: F.interpolate(x.amax(2), size=11, mode="nearest-exact"),
    "through a volume": lambda x: F.interpolate(x[:, None], size=(2, x.shape[2] * 7 // 16, x.shape[3] * 7 // 16)),
    "through a volume by factors": lambda x: F.interpolate(x[:, None], scale_factor=(1, 0.7, 1.3)),
    "exact through a volume": lambda x: F.interpolate(x[:, None], size=(5, 9, 8), mode="nearest-exact"),
}
BY_NEAREST = {name: exported(Function(function), (torch.zeros(2, 3, 20, 28),), (HW,)) for name, function in NEAREST.items()}


@pytest.mark.parametrize("name", NEAREST)
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(3, 90), st.integers(3, 90))
@example(1, 28, 28)  # 28 -> 8 is a tie in every second position
def test_the_nearest_position_is_pytorchs_own(name: str, batch: int, height: int, width: int) -> None:
    x = np.random.default_rng(height * 71 + width).standard_normal((batch, 3, height, width)).astype(np.float32)
    np.testing.assert_array_equal(BY_NEAREST[name].run(None, {"a": x})[0], NEAREST[name](torch.from_numpy(x)).numpy())


@pytest.mark.parametrize(("mode", "resample"), [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)])
def test_antialiased_resizing_equals_pillow_at_the_borders_too(mode: str, resample: Image.Resampling) -> None:
    session = exported(Function(lambda x: F.interpolate(x, size=(17, 60), mode=mode, antialias=True)), (torch.zeros(2, 3, 20, 28),), (HW,))
    x = np.random.default_rng(0).uniform(0, 255, (50, 41)).astype(np.float32)
    expected = np.asarray(Image.fromarray(x).resize((60, 17), resample))
    np.testing.assert_allclose(session.run(None, {"a": np.repeat(x[None, None], 3, axis=1)})[0][0, 0], expected, atol=1e-3)


def test_positions_that_nobody_asks_for_are_not_computed() -> None:
    assert "ArgMax" in operators(lambda x: F.adaptive_max_pool2d(x, (3, 2), return_indices=True))
    assert "ArgMax" not in operators(lambda x: F.adaptive_max_pool2d(x, (3, 2)))


def operators(function: Any) -> set[str]:
    program = torch.onnx.export(
        Function(function).eval(), (torch.zeros(1, 1, 9, 9),), dynamo=True, verbose=False, opset_version=20, custom_translation_table=TRANSLATIONS
    )
    return {node.op_type for node in program.model.graph}


def test_adaptive_average_pooling_without_a_batch_and_with_a_fixed_size() -> None:
    x = torch.randn(3, 9, 11)
    session = exported(nn.AdaptiveAvgPool2d((4, 5)), (x,), None)
    np.testing.assert_allclose(session.run(None, {"a": x.numpy()})[0], F.adaptive_avg_pool2d(x.double(), (4, 5)).numpy(), atol=1e-6)


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **self.options)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"is_causal": True}])
def test_attention_of_any_rank(lead: tuple[int, ...], options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn((*lead, length, channels), generator=generator) for length, channels in ((5, 8), (7, 8), (7, 4)))
    session = exported(Attention(**options), (query, key, value), None)
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), **options).numpy()
    np.testing.assert_allclose(session.run(None, {"a": query.numpy(), "b": key.numpy(), "c": value.numpy()})[0], expected, atol=1e-6)


@pytest.mark.parametrize("lead", [(2,), (2, 3)])
@pytest.mark.parametrize("kind", ["boolean", "added", "forbidding"])
def test_attention_with_a_mask(lead: tuple[int, ...], kind: str) -> None:
    """The third of five queries may look at nothing, where the mask can say so."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn((*lead, length, 8), generator=generator) for length in (5, 7, 7))
    numbers = torch.rand((5, 7), generator=generator)
    allowed = (numbers > 0.3) & (torch.arange(5) != 2)[:, None]
    mask = {"boolean": allowed, "added": numbers, "forbidding": torch.where(allowed, numbers, -math.inf)}[kind]
    session = exported(Attention(), (query, key, value, mask), None)
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), attn_mask=mask if kind == "boolean" else mask.double())
    assert (exact[..., 2, :] == 0).all() == (kind != "added")
    got = session.run(None, {"a": query.numpy(), "b": key.numpy(), "c": value.numpy(), "d": mask.numpy()})[0]
    np.testing.assert_allclose(got, exact.numpy(), atol=1e-6)


@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize(("heads", "shared"), [(6, 2), (4, 1), (3, 3)])
def test_attention_whose_heads_share_keys_and_values(lead: tuple[int, ...], heads: int, shared: int) -> None:
    generator = torch.Generator().manual_seed(2)
    query, key, value = (torch.randn((*lead, *size, 8), generator=generator) for size in ((heads, 5), (shared, 7), (shared, 7)))
    session = exported(Attention(enable_gqa=True), (query, key, value), None)
    spread = [each.double().repeat_interleave(heads // shared, dim=-3) for each in (key, value)]
    expected = F.scaled_dot_product_attention(query.double(), *spread).numpy()
    np.testing.assert_allclose(session.run(None, {"a": query.numpy(), "b": key.numpy(), "c": value.numpy()})[0], expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*shares the same shape constraints")
@pytest.mark.parametrize("options", [{}, {"scale": 0.2}, {"enable_gqa": True}])
def test_attention_over_channels_whose_number_is_not_known(options: dict[str, Any]) -> None:
    """As XCiT and Restormer do it: the positions of a map stand where channels stand elsewhere."""
    torch.manual_seed(3)
    shape = {0: "batch", 3: "positions"}
    session = exported(Attention(**options), tuple(torch.randn(2, 4, 6, 8) for _ in range(3)), (shape,) * 3)  # type: ignore[arg-type]
    query, key, value = (torch.randn(3, 4, 6, 50) for _ in range(3))
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), **options).numpy()
    np.testing.assert_allclose(session.run(None, {"a": query.numpy(), "b": key.numpy(), "c": value.numpy()})[0], expected, atol=2e-6)


@pytest.mark.filterwarnings("ignore:.*shares the same shape constraints")
def test_attention_at_another_length_than_traced() -> None:
    shape = {0: "batch", 1: "length"}
    session = exported(Attention(), tuple(torch.randn(2, 6, 8) for _ in range(3)), (shape,) * 3)  # type: ignore[arg-type]
    query, key, value = (torch.randn(3, 40, 8) for _ in range(3))
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double()).numpy()
    np.testing.assert_allclose(session.run(None, {"a": query.numpy(), "b": key.numpy(), "c": value.numpy()})[0], expected, atol=1e-6)


MAPS = {"large": (1, 512), "small": (1, 96)}


@pytest.mark.parametrize("top", MAPS)
@pytest.mark.parametrize("mean", [lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: x.relu().mean((2, 3)), lambda x: x[:, 0].mean((-1, -2), keepdim=True)])
def test_the_mean_of_a_large_map_is_as_precise_as_pytorchs(top: str, mean: Any) -> None:
    low, high = MAPS[top]
    contract = classification(Pixels(height=32, width=32), ("a",), image_axes(smallest_px=low, largest_px=high, largest_batch=4))
    program = torch.onnx.export(
        Function(mean).eval(),
        (torch.zeros(2, 3, 20, 28),),
        dynamo=True,
        verbose=False,
        opset_version=20,
        dynamic_shapes=(HW,),
        custom_translation_table=TRANSLATIONS,
        input_names=["a"],
    )
    model = onnx_ir.to_proto(program.model)
    assert precise_mean(model, contract) == (top == "large") and precise_mean(model, contract) == 0
    onnx.checker.check_model(model, full_check=True)
    session = open_session(model.SerializeToString(), SessionOptions(threads=1))
    for batch, height, width in ((1, 1, 1), (2, 7, 5), (1, 96, 96), (1, high, high)):
        x = np.random.default_rng(0).uniform(0, 1, (batch, 3, height, width)).astype(np.float32)
        exact = mean(torch.from_numpy(x).double()).numpy()
        np.testing.assert_allclose(session.run(None, {"a": x})[0], exact, atol=2e-7)


@pytest.mark.parametrize(("dtype", "divide"), [(torch.int64, 1), (torch.float32, 4)])
@pytest.mark.parametrize("width", [2, 5, 37])
def test_remainders_by_a_size(dtype: torch.dtype, divide: int, width: int) -> None:
    def remainder(x: torch.Tensor) -> torch.Tensor:
        return (x - 50).to(dtype) / divide % x.shape[3] if divide > 1 else (x - 50).to(dtype) % x.shape[3]

    x = torch.arange(4.0 * width).reshape(1, 1, 4, width)
    session = exported(Function(remainder), (torch.zeros(2, 3, 20, 28),), (HW,))
    np.testing.assert_array_equal(session.run(None, {"a": x.expand(1, 3, 4, width).numpy()})[0][:, :1], remainder(x).numpy())


REDUCTIONS = {
    "norm": lambda x: x.norm(dim=(2, 3)),
    "norm that keeps its axes": lambda x: x.flatten(1).norm(dim=1, keepdim=True),
    "norm of everything": lambda x: x.norm(),
    "normalised": lambda x: F.normalize(x.flatten(1)) * 100,
    "log-sum-exp": lambda x: x.logsumexp((2, 3)),
    "log-sum-exp that keeps its axes": lambda x: (x - 1e4).logsumexp(1, keepdim=True),
    "log-sum-exp of nothing": lambda x: torch.where(x > -9, -torch.inf, x).logsumexp(3),
}


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("sides", [(64, 128), (7, 5)])
def test_reductions_of_many_values_are_as_precise_as_pytorchs(name: str, sides: tuple[int, int]) -> None:
    program = torch.onnx.export(
        Function(REDUCTIONS[name]).eval(), (torch.zeros(2, 3, 20, 28),), dynamo=True, verbose=False, opset_version=20, dynamic_shapes=(HW,), input_names=["a"]
    )
    model = onnx_ir.to_proto(program.model)
    assert precise_reduction(model) == 1 and precise_reduction(model) == 0
    x = np.random.default_rng(0).standard_normal((4, 3, *sides)).astype(np.float32)
    got = open_session(model.SerializeToString(), SessionOptions(threads=1)).run(None, {"a": x})[0]
    exact = REDUCTIONS[name](torch.from_numpy(x).double()).numpy()
    finite = np.isfinite(exact)
    noise = np.abs(REDUCTIONS[name](torch.from_numpy(x)).numpy()[finite] - exact[finite]).max(initial=0)
    np.testing.assert_allclose(got, exact, atol=2 * noise + 1e-7, rtol=1e-7)
