"""Functions and sizes against PyTorch in float64, at sizes that the graph was not traced at."""

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

FUNCTIONS = {
    "log of a sigmoid": lambda x: F.logsigmoid(40 * x),
    "padded up to whole blocks": lambda x: F.pad(x, (0, -(-x.shape[3] // 8) * 8 - x.shape[3], 0, -1 * x.shape[2] // 5 * -5 - x.shape[2])),
    "the last third": lambda x: x[..., -x.shape[3] // 3 :],
}


@pytest.fixture(scope="module", params=FUNCTIONS)
def function(request: pytest.FixtureRequest, exported: Exported) -> tuple[str, Any]:
    return request.param, exported(FUNCTIONS[request.param], EXAMPLE, axes=[HW])


@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 3), height=st.integers(6, 60), width=st.integers(6, 60))
def test_functions_and_sizes_at_random_sizes(function: tuple[str, Any], batch: int, height: int, width: int) -> None:
    name, session = function
    x = np.random.default_rng(height * 71 + width).standard_normal((batch, 3, height, width)).astype(np.float32)
    expected = FUNCTIONS[name](torch.from_numpy(x).double())
    for value, exact in zip(session.run(None, {"a": x}), expected if isinstance(expected, tuple) else (expected,), strict=True):
        np.testing.assert_allclose(value, exact.numpy(), atol=3e-6, rtol=1e-6)


@pytest.mark.parametrize(("dtype", "divide"), [(torch.int64, 1), (torch.float32, 4)])
@pytest.mark.parametrize("width", [2, 5, 37])
def test_remainders_by_a_size(exported: Exported, dtype: torch.dtype, divide: int, width: int) -> None:
    def remainder(x: torch.Tensor) -> torch.Tensor:
        return (x - 50).to(dtype) / divide % x.shape[3] if divide > 1 else (x - 50).to(dtype) % x.shape[3]

    x = torch.arange(4.0 * width).reshape(1, 1, 4, width)
    session = exported(remainder, EXAMPLE, axes=[HW])
    np.testing.assert_array_equal(session.run(None, {"a": x.expand(1, 3, 4, width).numpy()})[0][:, :1], remainder(x).numpy())
