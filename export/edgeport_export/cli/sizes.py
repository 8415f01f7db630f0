"""Sizes as they are written on a command line."""

from edgeport_runtime import InputError


def read_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of HEIGHTxWIDTH; None of None. Raises InputError."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isascii() and side.isdigit() and int(side) for side in sides):
        raise InputError(f"expected a size as HEIGHTxWIDTH in pixels, such as 224x224, got {text!r}")
    return int(sides[0]), int(sides[1])
