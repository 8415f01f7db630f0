"""Average pooling against PyTorch in float64, at sizes that the graph was not traced at."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

Exported = Callable[..., Any]
HW = {0: "batch", 2: "height", 3: "width"}
EXAMPLE = torch.zeros(2, 3, 20, 28)

POOLS = {
    "average over another divisor": lambda x: F.avg_pool2d(x, (2, 3), padding=(0, 1), count_include_pad=False, divisor_override=5),
    "average of overlapping windows over another divisor": lambda x: F.avg_pool2d(x, 4, stride=(3, 2), padding=2, divisor_override=-7),
    "average over another divisor without a batch": lambda x: F.avg_pool2d(x[0], 3, divisor_override=2),
    "average over the window": lambda x: F.avg_pool2d(x, 3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
}


@pytest.fixture(scope="module", params=POOLS)
def pool(request: pytest.FixtureRequest, exported: Exported) -> tuple[str, Any]:
    return request.param, exported(POOLS[request.param], EXAMPLE, axes=[HW])


@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 3), height=st.integers(6, 60), width=st.integers(6, 60))
def test_averages_at_random_sizes(pool: tuple[str, Any], batch: int, height: int, width: int) -> None:
    name, session = pool
    x = np.random.default_rng(height * 71 + width).standard_normal((batch, 3, height, width)).astype(np.float32)
    expected = POOLS[name](torch.from_numpy(x).double())
    for value, exact in zip(session.run(None, {"a": x}), expected if isinstance(expected, tuple) else (expected,), strict=True):
        np.testing.assert_allclose(value, exact.numpy(), atol=3e-6, rtol=1e-6)
