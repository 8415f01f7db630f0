"""Adaptive pooling against PyTorch in float64, at sizes that the graph was not traced at."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

Exported = Callable[..., Any]
HW = {0: "batch", 2: "height", 3: "width"}
EXAMPLE = torch.zeros(2, 3, 20, 28)


@pytest.fixture(scope="module", params=[(6, 6), (5, 2), (1, 1), (7, 1)], ids=str)
def pool(request: pytest.FixtureRequest, exported: Exported) -> tuple[tuple[int, int], Any]:
    return request.param, exported(nn.AdaptiveAvgPool2d(request.param), EXAMPLE, axes=[HW])


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 3), height=st.integers(1, 70), width=st.integers(1, 70))
def test_averages_at_random_sizes(pool: tuple[tuple[int, int], Any], batch: int, height: int, width: int) -> None:
    size, session = pool
    x = np.random.default_rng(height * 71 + width).standard_normal((batch, 3, height, width)).astype(np.float32)
    expected = F.adaptive_avg_pool2d(torch.from_numpy(x).double(), size).numpy()
    np.testing.assert_allclose(session.run(None, {"a": x})[0], expected, atol=2e-6)


@pytest.mark.parametrize("size", [(2, 3, 1), (1, 1, 1), (4, 4, 4)])
def test_averages_of_volumes(exported: Exported, size: tuple[int, int, int]) -> None:
    session = exported(nn.AdaptiveAvgPool3d(size), torch.zeros(2, 3, 8, 12, 16), axes=[{0: "batch", 2: "depth", 3: "height", 4: "width"}])
    for batch, *sides in ((1, 8, 12, 16), (3, 5, 4, 7), (2, 1, 1, 1), (1, 9, 30, 2)):
        x = np.random.default_rng(sides[0]).standard_normal((batch, 3, *sides)).astype(np.float32)
        expected = F.adaptive_avg_pool3d(torch.from_numpy(x).double(), size).numpy()
        np.testing.assert_allclose(session.run(None, {"a": x})[0], expected, atol=2e-6)


POOLS = {
    "max 5x2": lambda x: F.adaptive_max_pool2d(x, (5, 2)),
    "max 1x1": lambda x: F.adaptive_max_pool2d(x, 1),
    "max with positions": lambda x: F.adaptive_max_pool2d(x, (3, 2), return_indices=True),
    "average with a free side": lambda x: F.adaptive_avg_pool2d(x, (None, 3)),
    "area to a size": lambda x: F.interpolate(x, size=(7, 5), mode="area"),
    "area by a factor": lambda x: F.interpolate(x, scale_factor=0.5, mode="area"),
    "area to a share of the input": lambda x: F.interpolate(x, size=(x.shape[2] // 3, x.shape[3] // 2), mode="area"),
}


@pytest.fixture(scope="module", params=POOLS)
def pooled(request: pytest.FixtureRequest, exported: Exported) -> tuple[str, Any]:
    return request.param, exported(POOLS[request.param], EXAMPLE, axes=[HW])


@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 3), height=st.integers(6, 60), width=st.integers(6, 60))
def test_maxima_and_areas_at_random_sizes(pooled: tuple[str, Any], batch: int, height: int, width: int) -> None:
    name, session = pooled
    x = np.random.default_rng(height * 71 + width).standard_normal((batch, 3, height, width)).astype(np.float32)
    expected = POOLS[name](torch.from_numpy(x).double())
    for value, exact in zip(session.run(None, {"a": x}), expected if isinstance(expected, tuple) else (expected,), strict=True):
        np.testing.assert_allclose(value, exact.numpy(), atol=3e-6, rtol=1e-6)


def test_averages_without_a_batch_and_with_a_fixed_size(exported: Exported) -> None:
    x = torch.randn(3, 9, 11)
    session = exported(nn.AdaptiveAvgPool2d((4, 5)), x)
    np.testing.assert_allclose(session.run(None, {"a": x.numpy()})[0], F.adaptive_avg_pool2d(x.double(), (4, 5)).numpy(), atol=1e-6)


def test_positions_that_nobody_reads_are_not_computed(exported_graph: Exported) -> None:
    def operators(function: Callable[..., Any]) -> set[str]:
        return {node.op_type for node in exported_graph(function, torch.zeros(1, 1, 9, 9)).graph.node}

    assert "ArgMax" in operators(lambda x: F.adaptive_max_pool2d(x, (3, 2), return_indices=True))
    assert "ArgMax" not in operators(lambda x: F.adaptive_max_pool2d(x, (3, 2)))
