"""Replacements that make a graph right at every size, and fast. One file each; none of them knows any particular model."""

from collections.abc import Callable
from typing import Any

from . import adaptive_pool, arithmetic, attention, average_pool, resize

# aten operator -> the ONNX that stands for it, handed to the exporter as its custom translation table
TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    **adaptive_pool.TRANSLATIONS,
    **arithmetic.TRANSLATIONS,
    **attention.TRANSLATIONS,
    **average_pool.TRANSLATIONS,
    **resize.TRANSLATIONS,
}
