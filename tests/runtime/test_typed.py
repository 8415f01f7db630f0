"""Values of JSON against annotations; the manifest's own classes are among the cases."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from edgeport_runtime import Bundle
from edgeport_runtime.manifest import File, Tolerance
from edgeport_runtime.typed import type_fault


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str = "n"
    share: float = 0.5
    flag: bool = False
    kind: Literal["a", "b"] = "a"
    maybe: int | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    many: tuple[int | str, ...] = ()
    inner: Inner | None = None
    inners: tuple[Inner, ...] = ()
    named: Mapping[str, tuple[Inner, ...]] | None = None
    anything: Any = None


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({}, None),
        ({"share": 1, "maybe": 3, "many": (1, "x"), "inner": Inner(size=1), "inners": (Inner(size=2),), "named": {"x": (Inner(size=3),)}}, None),
        ({"anything": object()}, None),
        ({"name": 5}, "name"),
        ({"share": "0.5"}, "share"),
        ({"share": True}, "share"),
        ({"flag": 1}, "flag"),
        ({"kind": "c"}, "kind"),
        ({"kind": ["a"]}, "kind"),
        ({"maybe": 1.0}, "maybe"),
        ({"maybe": True}, "maybe"),
        ({"pair": (0.0,)}, "pair"),
        ({"pair": [0.0, 1.0]}, "pair"),
        ({"many": (1, 2.5)}, "many"),
        ({"inner": {"size": 1}}, "inner"),
        ({"inner": Inner(size="1")}, "inner.size"),  # type: ignore[arg-type]
        ({"inners": (Inner(size=1), Inner(size=None))}, "inners.size"),  # type: ignore[arg-type]
        ({"named": {1: ()}}, "named"),
        ({"named": {"x": (Inner(size=[]),)}}, "named.size"),  # type: ignore[arg-type]
    ],
)
def test_the_first_value_of_another_kind_is_named(change: dict[str, Any], place: str | None) -> None:
    found = type_fault(replace(Outer(), **change))
    assert found is None if place is None else (found or "").startswith(f"{place} has a value of another kind")


def test_a_manifest_is_checked_to_its_last_field(classifier: Path) -> None:
    manifest = Bundle(classifier).manifest
    assert type_fault(manifest) is None
    case = replace(manifest.golden[0], host={"fp32": (File(file=5, sha256="x"),)})  # type: ignore[arg-type]
    assert type_fault(replace(manifest, golden=(case,))) == "golden.host.file has a value of another kind, '5'"
    case = replace(manifest.golden[0], tolerance={"fp32": (Tolerance(max_abs=None),)})  # type: ignore[arg-type]
    assert type_fault(replace(manifest, golden=(case,))) == "golden.tolerance.max_abs has a value of another kind, 'None'"
