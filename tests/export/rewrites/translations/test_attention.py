"""Attention against PyTorch in float64."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

Exported = Callable[..., Any]


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **self.options)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"is_causal": True}])
def test_attention_of_any_rank(exported: Exported, lead: tuple[int, ...], options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn((*lead, length, channels), generator=generator) for length, channels in ((5, 8), (7, 8), (7, 4)))
    session = exported(Attention(**options), query, key, value)
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), **options).numpy()
    np.testing.assert_allclose(session.run(None, {"a": query.numpy(), "b": key.numpy(), "c": value.numpy()})[0], expected, atol=1e-6)


@pytest.mark.parametrize("lead", [(2,), (2, 3)])
@pytest.mark.parametrize("kind", ["boolean", "added", "forbidding"])
def test_attention_with_a_mask(exported: Exported, lead: tuple[int, ...], kind: str) -> None:
    """The third of five queries may look at nothing, if the mask can forbid that."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn((*lead, length, 8), generator=generator) for length in (5, 7, 7))
    numbers = torch.rand((5, 7), generator=generator)
    allowed = (numbers > 0.3) & (torch.arange(5) != 2)[:, None]
    mask = {"boolean": allowed, "added": numbers, "forbidding": torch.where(allowed, numbers, -math.inf)}[kind]
    session = exported(Attention(), query, key, value, mask)
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), attn_mask=mask if kind == "boolean" else mask.double())
    assert (exact[..., 2, :] == 0).all() == (kind != "added")
    got = session.run(None, {"a": query.numpy(), "b": key.numpy(), "c": value.numpy(), "d": mask.numpy()})[0]
    np.testing.assert_allclose(got, exact.numpy(), atol=1e-6)


@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize(("heads", "shared"), [(6, 2), (4, 1), (3, 3)])
def test_attention_whose_heads_share_keys_and_values(exported: Exported, lead: tuple[int, ...], heads: int, shared: int) -> None:
    generator = torch.Generator().manual_seed(2)
    query, key, value = (torch.randn((*lead, *size, 8), generator=generator) for size in ((heads, 5), (shared, 7), (shared, 7)))
    session = exported(Attention(enable_gqa=True), query, key, value)
    spread = [each.double().repeat_interleave(heads // shared, dim=-3) for each in (key, value)]
    expected = F.scaled_dot_product_attention(query.double(), *spread).numpy()
    np.testing.assert_allclose(session.run(None, {"a": query.numpy(), "b": key.numpy(), "c": value.numpy()})[0], expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*shares the same shape constraints")
@pytest.mark.parametrize("options", [{}, {"scale": 0.2}, {"enable_gqa": True}])
def test_attention_over_channels_whose_number_is_not_known(exported: Exported, options: dict[str, Any]) -> None:
    """As XCiT and Restormer do it: the positions of a map stand where channels stand elsewhere."""
    torch.manual_seed(3)
    shape = {0: "batch", 3: "positions"}
    session = exported(Attention(**options), *(torch.randn(2, 4, 6, 8) for _ in range(3)), axes=(shape,) * 3)
    query, key, value = (torch.randn(3, 4, 6, 50) for _ in range(3))
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), **options).numpy()
    np.testing.assert_allclose(session.run(None, {"a": query.numpy(), "b": key.numpy(), "c": value.numpy()})[0], expected, atol=2e-6)


@pytest.mark.filterwarnings("ignore:.*shares the same shape constraints")
def test_attention_at_another_length_than_traced(exported: Exported) -> None:
    shape = {0: "batch", 1: "length"}
    session = exported(Attention(), *(torch.randn(2, 6, 8) for _ in range(3)), axes=(shape,) * 3)
    query, key, value = (torch.randn(3, 40, 8) for _ in range(3))
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double()).numpy()
    np.testing.assert_allclose(session.run(None, {"a": query.numpy(), "b": key.numpy(), "c": value.numpy()})[0], expected, atol=1e-6)
