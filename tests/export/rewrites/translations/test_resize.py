"""Resizing against PyTorch in float64, at sizes that the graph was not traced at."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

Exported = Callable[..., Any]
HW = {0: "batch", 2: "height", 3: "width"}
EXAMPLE = torch.zeros(2, 3, 20, 28)

RESIZES = {
    "trilinear": lambda x: F.interpolate(x[:, None], size=(4, 9, 8), mode="trilinear"),
    "antialiased bilinear": lambda x: F.interpolate(x, size=(9, 11), mode="bilinear", antialias=True),
    "antialiased bilinear by a factor": lambda x: F.interpolate(x, scale_factor=0.7, mode="bilinear", antialias=True),
    "antialiased bicubic by factors": lambda x: F.interpolate(x, scale_factor=(0.4, 1.3), mode="bicubic", antialias=True),
    "antialiased with aligned corners": lambda x: F.interpolate(x, size=(9, 11), mode="bilinear", antialias=True, align_corners=True),
    "antialiased bicubic with aligned corners": lambda x: F.interpolate(x, size=(5, 40), mode="bicubic", antialias=True, align_corners=True),
    "antialiased by a factor that is worked out again": lambda x: F.interpolate(
        x, scale_factor=0.7, mode="bilinear", antialias=True, recompute_scale_factor=True
    ),
}


@pytest.fixture(scope="module", params=RESIZES)
def resized(request: pytest.FixtureRequest, exported: Exported) -> tuple[str, Any]:
    return request.param, exported(RESIZES[request.param], EXAMPLE, axes=[HW])


@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 3), height=st.integers(6, 60), width=st.integers(6, 60))
def test_resizing_at_random_sizes(resized: tuple[str, Any], batch: int, height: int, width: int) -> None:
    name, session = resized
    x = np.random.default_rng(height * 71 + width).standard_normal((batch, 3, height, width)).astype(np.float32)
    expected = RESIZES[name](torch.from_numpy(x).double())
    for value, exact in zip(session.run(None, {"a": x}), expected if isinstance(expected, tuple) else (expected,), strict=True):
        # by a factor PyTorch's own float32 is up to 1.2e-5 from its float64 at 60 positions
        atol = 3e-5 if "factor" in name or "corners" in name or name == "trilinear" else 3e-6
        np.testing.assert_allclose(value, exact.numpy(), atol=atol, rtol=1e-6)


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


@pytest.fixture(scope="module", params=NEAREST)
def nearest(request: pytest.FixtureRequest, exported: Exported) -> tuple[str, Any]:
    return request.param, exported(NEAREST[request.param], EXAMPLE, axes=[HW])


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 3), height=st.integers(3, 90), width=st.integers(3, 90))
@example(batch=1, height=28, width=28)  # 28 -> 8 is a tie in every second position
def test_the_nearest_position_is_pytorchs_own(nearest: tuple[str, Any], batch: int, height: int, width: int) -> None:
    name, session = nearest
    x = np.random.default_rng(height * 71 + width).standard_normal((batch, 3, height, width)).astype(np.float32)
    np.testing.assert_array_equal(session.run(None, {"a": x})[0], NEAREST[name](torch.from_numpy(x)).numpy())


INTERPOLATED = {
    "bilinear": lambda x: F.interpolate(x, scale_factor=1.4, mode="bilinear"),
    "bilinear, smaller": lambda x: F.interpolate(x, scale_factor=(0.7, 2.3), mode="bilinear"),
    "bilinear with aligned corners": lambda x: F.interpolate(x, scale_factor=1.4, mode="bilinear", align_corners=True),
    "bicubic": lambda x: F.interpolate(x, scale_factor=1.4, mode="bicubic"),
    "bicubic, smaller": lambda x: F.interpolate(x, scale_factor=(2.3, 0.7), mode="bicubic"),
    "bicubic with aligned corners": lambda x: F.interpolate(x, scale_factor=0.7, mode="bicubic", align_corners=True),
    "by an exact factor": lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"),
    "along a line": lambda x: F.interpolate(x.amax(2), scale_factor=1.4, mode="linear"),
    "along a line to a size": lambda x: F.interpolate(x.amax(2), size=33, mode="linear"),
}


@pytest.fixture(scope="module", params=INTERPOLATED)
def interpolated(request: pytest.FixtureRequest, exported: Exported) -> tuple[str, Any]:
    return request.param, exported(INTERPOLATED[request.param], EXAMPLE, axes=[HW])


@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 3), height=st.integers(3, 130), width=st.integers(3, 130))
@example(batch=1, height=45, width=90)  # 1.4 * 45 is 63 in float32, and 0.7 * 90 as well; in float64 both are a little less
@example(batch=2, height=90, width=100)
def test_interpolation_by_a_factor_has_pytorchs_size_and_values(interpolated: tuple[str, Any], batch: int, height: int, width: int) -> None:
    name, session = interpolated
    x = np.random.default_rng(height * 71 + width).standard_normal((batch, 3, height, width)).astype(np.float32)
    exact, single, got = (
        INTERPOLATED[name](torch.from_numpy(x).double()).numpy(),
        INTERPOLATED[name](torch.from_numpy(x)).numpy(),
        session.run(None, {"a": x})[0],
    )
    assert got.shape == exact.shape
    assert np.abs(got - exact).max() <= 3 * np.abs(single - exact).max() + 1e-6  # PyTorch's own float32 is up to 4e-5 off at 130 positions


@pytest.mark.parametrize(("mode", "resample"), [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)])
def test_antialiased_resizing_equals_pillow_at_the_borders_too(exported: Exported, mode: str, resample: Image.Resampling) -> None:
    session = exported(lambda x: F.interpolate(x, size=(17, 60), mode=mode, antialias=True), EXAMPLE, axes=[HW])
    x = np.random.default_rng(0).uniform(0, 255, (50, 41)).astype(np.float32)
    expected = np.asarray(Image.fromarray(x).resize((60, 17), resample))
    np.testing.assert_allclose(session.run(None, {"a": np.repeat(x[None, None], 3, axis=1)})[0][0, 0], expected, atol=1e-3)
