"""What somebody asks of an export beside the network, its contract and its data."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from edgeport_runtime.contract import is_whole

from .errors import ExportError
from .plan import Plan
from .quantization import Budget
from .targets import Target, target

PRECISIONS = ("fp32", "int8", "fp16")
TEXTS = {"metric": "the name of a function as my.module:function", "target": "the name of a kind of CPU, or empty"}


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to make, and what int8 may cost.

    `precisions`: "fp32" always, "int8" where there is calibration data, "fp16" for CUDA. `insist`: keep int8 where it does not beat fp32, too.
    `calibration_images`: at most that many are used. `max_drop`: points of accuracy, dB of PSNR or units of `metric` that int8 may lose.
    `metric`: my.module:function of your own, larger is better. `sqnr_floor_db`: how near int8 must stay to fp32 where no metric applies.
    `target`: the kind of CPU that int8 is made for; empty: the plan's, or this machine's. `race_batch`: batch size at which speed is measured.
    `plan`: an int8 plan to replay instead of searching for one. `planning_seconds`: that the search may take.
    """

    precisions: tuple[str, ...] = ("fp32", "int8")
    insist: bool = False
    calibration_images: int = 128
    max_drop: float = 0.5
    metric: str = ""
    sqnr_floor_db: float = 30.0
    target: str = ""
    race_batch: int = 8
    plan: Plan | None = None
    planning_seconds: float = 120.0

    def __post_init__(self) -> None:
        precisions = self.precisions if isinstance(self.precisions, tuple | list) else ()
        if "fp32" not in precisions or not all(each in PRECISIONS for each in precisions):
            raise ExportError(f"precisions must include fp32 and be among {', '.join(PRECISIONS)}, got {self.precisions!r}")
        self._require_numbers()
        if not isinstance(self.insist, bool):
            raise ExportError(f"insist must be True or False, got {self.insist!r}")
        for name in ("metric", "target"):
            if not isinstance(getattr(self, name), str):
                raise ExportError(f"{name} must be {TEXTS[name]}, got {getattr(self, name)!r}")
        if self.plan is not None and not isinstance(self.plan, Plan):
            raise ExportError(f"plan must be a Plan, as edgeport_export.plan.read_plan(path) gives it, got {type(self.plan).__name__}")
        if self.plan is not None and "int8" not in self.precisions:
            raise ExportError("a plan was given, but int8 is not among the precisions")
        target(self.target)

    def _require_numbers(self) -> None:
        for name, least in (("max_drop", 0.0), ("planning_seconds", 0.0), ("sqnr_floor_db", -math.inf)):
            given = _number(getattr(self, name))
            if not least <= given or (name == "sqnr_floor_db" and math.isinf(given)):
                raise ExportError(f"{name} must be a number{f' of at least {least:g}' if math.isfinite(least) else ' of dB'}, got {getattr(self, name)!r}")
        for name in ("calibration_images", "race_batch"):
            given = getattr(self, name)
            if not is_whole(given) or given < 1:
                raise ExportError(f"{name} must be a whole number of at least 1, got {given!r}")
            object.__setattr__(self, name, int(given))  # numpy's integers are no JSON

    @property
    def cpu(self) -> Target:
        """The target by name; where none is named, that of the plan, or this machine's."""
        return target(self.target or (self.plan.target if self.plan is not None else ""))

    @property
    def budget(self) -> Budget:
        return Budget(max_drop=self.max_drop, sqnr_floor_db=self.sqnr_floor_db, seconds=self.planning_seconds)


def _number(given: Any) -> float:
    """NaN, which is in no range, for what is no number."""
    try:
        return float(given) if isinstance(given, Real) and not isinstance(given, bool) else math.nan
    except OverflowError:  # an integer of hundreds of digits
        return math.nan
