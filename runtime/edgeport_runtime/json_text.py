"""JSON as this package writes it, and text that a terminal may show."""

import json
import math
from collections.abc import Mapping
from typing import Any


def strict_json(data: Any, *, indent: int | None = None) -> str:
    """JSON that every parser reads: numbers that are not finite become null."""
    return json.dumps(_finite(data), sort_keys=True, indent=indent, allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def printable(text: str) -> str:
    """With escapes for what would steer a terminal: names and reasons of a bundle may be a stranger's."""
    return "".join(each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape", errors="replace").decode() for each in text)


def canonical_json(data: Any) -> str:
    """JSON with sorted keys and no spaces, the form that is hashed and compared."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
