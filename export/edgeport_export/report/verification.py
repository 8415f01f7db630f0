"""What `edgeport verify --json` printed about a bundle, as a report tells it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]
KINDS: dict[str, tuple[type, ...]] = {  # of the entries that are read; each may be missing, as a part of a verification has not all of them
    "passed": (bool,),
    "same_weights": (bool, type(None)),
    "recipe": (list,),
    "stored_answers": (bool,),
    "golden": (Mapping,),
    "reproduced": (Mapping,),
    "lossy": (list,),
    "parity": (Mapping,),
    "stages": (Mapping,),
}


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One stage between an image file and the answer, see `diagnosis.stages.Stage`; None for a distance that is no number."""

    name: str
    largest: float | None
    rms: float | None
    changed: int | None
    note: str


def verification_faults(found: Json) -> list[str]:
    """Entries that are not as `verify` prints them. A page must not leave out what failed because somebody broke the file."""
    faults = [f"{key!r} is {_shown(found[key])}" for key, kinds in KINDS.items() if key in found and not isinstance(found[key], kinds)]
    if faults:
        return faults
    for key in ("golden", "reproduced"):
        faults += [f"{key!r} of {name} is {_shown(value)}" for name, value in found.get(key, {}).items() if not isinstance(value, bool | type(None))]
    faults += [f"an entry of 'lossy' is {_shown(each)}" for each in found.get("lossy", []) if not _has(each, passed=bool)]
    if "parity" in found and not _has(found["parity"], passed=bool):
        faults.append("'parity' does not say whether it passed")
    if "stages" in found:
        listed = found["stages"].get("stages")
        good = isinstance(listed, list) and listed and all(_is_stage(each) for each in listed)
        faults += [] if good else ["'stages' does not list them, each with its name and figures"]
        faults += [] if isinstance(found["stages"].get("images"), int) else ["'stages' does not tell the number of images"]
    return faults


def stage_rows(found: Json) -> list[StageRow]:
    """In order, the last from one end to the other; none if they were not asked for."""
    return [
        StageRow(name=each["name"], largest=each["largest"], rms=each["rms"], changed=each.get("changed"), note=str(each.get("note", "")))
        for each in found.get("stages", {}).get("stages", [])
    ]


def stage_faults(found: Json) -> list[str]:
    """Where the contract's preprocessing is not the training's."""
    recipe = found.get("stages", {}).get("recipe")
    listed = recipe.get("differences") if isinstance(recipe, Mapping) else None
    return list(map(str, listed)) if isinstance(listed, list) else []


def verified_rows(found: Json) -> list[tuple[str, bool]]:
    """What `edgeport verify` looked at, and whether it holds; what it could not look at is left out."""
    looked: dict[str, Any] = {
        "it was made of these weights": found.get("same_weights"),
        "its contract is what the network promises": not found["recipe"] if "recipe" in found else None,
        "fp32 agrees with PyTorch at other inputs than the export's": found.get("parity", {}).get("passed"),
        "the stored answers are PyTorch's": found.get("stored_answers"),
        **{f"{name} keeps its golden cases": each for name, each in found.get("golden", {}).items()},
        **{f"{name} comes out the same, byte for byte": each for name, each in found.get("reproduced", {}).items()},
        **{f"{str(each.get('first')).rpartition('/')[2]} and {each.get('second')} agree": each["passed"] for each in found.get("lossy", [])},
    }
    return [(what, holds) for what, holds in looked.items() if isinstance(holds, bool)]


def _has(data: Any, **kinds: type) -> bool:
    return isinstance(data, Mapping) and all(isinstance(data.get(key), kind) for key, kind in kinds.items())


def _is_stage(data: Any) -> bool:
    return _has(data, name=str) and all(key in data and _is_figure(data[key]) for key in ("largest", "rms")) and _is_count(data.get("changed"))


def _is_figure(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0)


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
