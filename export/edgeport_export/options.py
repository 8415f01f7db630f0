"""What somebody asks of an export beside the network, its contract and its data."""

import math
from dataclasses import dataclass
from numbers import Integral, Real

from .errors import ExportError
from .plan import Plan
from .quantization import Budget
from .targets import Target, target

PRECISIONS = ("fp32", "int8", "fp16")


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
        if not set(self.precisions) <= set(PRECISIONS) or "fp32" not in self.precisions:
            raise ExportError(f"precisions must include fp32 and be among {', '.join(PRECISIONS)}, got {self.precisions!r}")
        for name, least in (("max_drop", 0.0), ("planning_seconds", 0.0), ("sqnr_floor_db", -math.inf)):
            given = getattr(self, name)
            if not isinstance(given, Real) or not least <= float(given) or (name == "sqnr_floor_db" and math.isinf(given)):
                raise ExportError(f"{name} must be a number{f' of at least {least:g}' if math.isfinite(least) else ' of dB'}, got {given!r}")
        for name in ("calibration_images", "race_batch"):
            given = getattr(self, name)
            if not isinstance(given, Integral) or int(given) < 1:
                raise ExportError(f"{name} must be a whole number of at least 1, got {given!r}")
        if not isinstance(self.metric, str):
            raise ExportError(f"metric must name a function as my.module:function, got {self.metric!r}")
        if self.plan is not None and not isinstance(self.plan, Plan):
            raise ExportError(f"plan must be a Plan, as edgeport_export.plan.read_plan(path) gives it, got {type(self.plan).__name__}")
        if self.plan is not None and "int8" not in self.precisions:
            raise ExportError("a plan was given, but int8 is not among the precisions")
        target(self.target)

    @property
    def cpu(self) -> Target:
        """The target by name; where none is named, that of the plan, or this machine's."""
        return target(self.target or (self.plan.target if self.plan is not None else ""))

    @property
    def budget(self) -> Budget:
        return Budget(max_drop=self.max_drop, sqnr_floor_db=self.sqnr_floor_db, seconds=self.planning_seconds)
