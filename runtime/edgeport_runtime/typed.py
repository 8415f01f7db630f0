"""Values from JSON against the annotations of a dataclass: text where a number belongs is found when it is read, not when it is used."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .axes import is_whole


def type_fault(value: Any, path: str = "") -> str | None:
    """The first field of a dataclass, or of one within it, that holds something else than its annotation says, in words; None if there is none."""
    for name, annotation in _annotations(value.__class__).items():
        where = f"{path}{name}"
        found = getattr(value, name)
        if not _fits(found, annotation):
            return f"{where} has a value of another kind, {str(found)[:60]!r}"
        for each in _dataclasses(found):
            fault = type_fault(each, f"{where}.")
            if fault is not None:
                return fault
    return None


@cache
def _annotations(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {each.name: hints[each.name] for each in fields(kind)}


def _dataclasses(value: Any) -> list[Any]:
    held = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else (value,)
    return [inner for each in held for inner in (_dataclasses(each) if isinstance(each, tuple) else [each] if is_dataclass(each) else [])]


def _fits(value: Any, annotation: Any) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and _all_fit(value, arguments)
    if origin is not None:  # Mapping
        return isinstance(value, Mapping) and all(_fits(key, arguments[0]) and _fits(each, arguments[1]) for key, each in value.items())
    if annotation is NoneType:
        return value is None
    if annotation in (int, float):
        return is_whole(value) or (annotation is float and isinstance(value, float))
    return isinstance(value, annotation)


def _all_fit(values: tuple[Any, ...], arguments: tuple[Any, ...]) -> bool:
    if arguments[-1] is Ellipsis:
        return all(_fits(each, arguments[0]) for each in values)
    return len(values) == len(arguments) and all(_fits(each, kind) for each, kind in zip(values, arguments, strict=True))
