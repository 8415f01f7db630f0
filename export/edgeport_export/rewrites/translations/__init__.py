"""aten operator -> the ONNX that stands for it, handed to the exporter as its custom translation table."""

from collections.abc import Callable
from typing import Any

from . import adaptive_pool, arithmetic, attention, average_pool, resize

TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    **adaptive_pool.TRANSLATIONS,
    **arithmetic.TRANSLATIONS,
    **attention.TRANSLATIONS,
    **average_pool.TRANSLATIONS,
    **resize.TRANSLATIONS,
}
