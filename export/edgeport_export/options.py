"""What a caller asks of an export beside the network, its contract and its data."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from edgeport_runtime import Contract
from edgeport_runtime.axes import is_whole

from .errors import ExportError
from .quantization.budget import Budget
from .quantization.int8_settings import Int8Settings
from .quantization.plan import Plan
from .quantization.plan_curve import PICKS
from .quantization.recovery.recovery_choice import OFF
from .quantization.recovery.weight_recovery import EFFORTS
from .quantization.targets import Target, find_target
from .rewrites.graph import GraphEditor, PassResult
from .tracing.exporter import Extensions
from .validation.quality import Metric

PRECISIONS = ("fp32", "int8", "fp16")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to make, and what int8 may cost.

    `precisions`: "fp32" always, "int8" if there is calibration data, "fp16" for CUDA. `always_keep_int8`: even if it does not beat fp32.
    `calibration_images`: at most that many are used. `max_drop`: points of accuracy, mAP or mean IoU, dB of PSNR or units of `metric` that int8 may lose.
    `metric`: a function of your own (outputs, truths) -> number, larger is better, or its name as my.module:function.
    `max_changed`: percent of the clear labels that int8 may change if a classifier's images have no truth (see `LabelChanges`).
    `sqnr_floor_db`: how near int8 must stay to fp32 if neither can tell.
    `target`: the kind of CPU that int8 is made for, or its name; None takes the plan's, or this machine's. `benchmark_batch`: batch size at which speed is
    measured. `plan`: an int8 plan to replay instead of searching for one. `search_seconds`: time for that search.
    `recover`: how hard int8 tries to give back what rounding costs: "quick", "thorough" (minutes) or "off". It costs nothing at run time.
    `pick`: which of the plans that the search tried is taken: "fastest" (what None takes), "closest" to fp32, or "balanced". With `plan`, another plan of
    its curve is taken without a search.
    `translations`, `passes`: additions of your own, see `Extensions`; the parity sweep tests their result, and the manifest names them.
    """

    precisions: tuple[str, ...] = ("fp32", "int8")
    always_keep_int8: bool = False
    calibration_images: int = 128
    max_drop: float = 0.5
    max_changed: float = 1.0
    metric: str | Metric | None = None
    sqnr_floor_db: float = 30.0
    target: str | Target | None = None
    benchmark_batch: int = 8
    plan: Plan | None = None
    search_seconds: float = 120.0
    recover: str = "quick"
    pick: str | None = None
    translations: Mapping[Any, Callable[..., Any]] = field(default_factory=dict)
    passes: Sequence[Callable[[GraphEditor, Contract], PassResult]] = ()

    def __post_init__(self) -> None:
        precisions = self.precisions if isinstance(self.precisions, tuple | list) else ()
        if "fp32" not in precisions or not all(each in PRECISIONS for each in precisions):
            raise ExportError(f"precisions must include fp32 and be among {', '.join(PRECISIONS)}, got {self.precisions!r}")
        self._require_numbers()
        if not isinstance(self.always_keep_int8, bool):
            raise ExportError(f"always_keep_int8 must be True or False, got {self.always_keep_int8!r}")
        for name, known in {"recover": (OFF, *EFFORTS), "pick": (None, *PICKS)}.items():
            if getattr(self, name) not in known:
                raise ExportError(f"{name} must be one of {', '.join(filter(None, known))}, got {getattr(self, name)!r}")
        if not isinstance(self.metric, str | None) and not callable(self.metric):
            raise ExportError(f"metric must be a function, its name as my.module:function, or None, got {self.metric!r}")
        if not isinstance(self.target, str | Target | None):
            raise ExportError(f"target must be a Target, the name of one, or None, got {self.target!r}")
        if not isinstance(self.translations, Mapping) or not all(map(callable, self.translations.values())):
            raise ExportError(f"translations must be a mapping from aten operators to functions, got {self.translations!r}")
        if isinstance(self.passes, str) or not isinstance(self.passes, Sequence) or not all(map(callable, self.passes)):
            raise ExportError(f"passes must be a list of functions, got {self.passes!r}")
        self._require_plan()
        find_target(self.target)

    def _require_plan(self) -> None:
        if self.plan is not None and not isinstance(self.plan, Plan):
            raise ExportError(f"plan must be a Plan, as edgeport_export.read_plan(path) gives it, got {type(self.plan).__name__}")
        for name in ("plan", "pick"):
            if getattr(self, name) is not None and "int8" not in self.precisions:
                raise ExportError(f"a {name} was given, but int8 is not among the precisions")

    def _require_numbers(self) -> None:
        for name, least in (("max_drop", 0.0), ("max_changed", 0.0), ("search_seconds", 0.0), ("sqnr_floor_db", -math.inf)):
            given = _number(getattr(self, name))
            if not least <= given or (name == "sqnr_floor_db" and math.isinf(given)):
                raise ExportError(f"{name} must be a number{f' of at least {least:g}' if math.isfinite(least) else ' of dB'}, got {getattr(self, name)!r}")
        for name in ("calibration_images", "benchmark_batch"):
            given = getattr(self, name)
            if not is_whole(given) or given < 1:
                raise ExportError(f"{name} must be a whole number of at least 1, got {given!r}")
            object.__setattr__(self, name, int(given))  # numpy's integers are no JSON

    @property
    def budget(self) -> Budget:
        """What int8 may cost."""
        return Budget(max_drop=self.max_drop, max_changed=self.max_changed, sqnr_floor_db=self.sqnr_floor_db, seconds=self.search_seconds)

    @property
    def extensions(self) -> Extensions:
        """The additions of the user's own."""
        return Extensions(translations=self.translations, passes=tuple(self.passes))

    @property
    def requires_int8(self) -> bool:
        """Whether the caller wants an int8 variant in any case."""
        return self.always_keep_int8 or self.plan is not None

    def batch(self, contract: Contract) -> int:
        """The batch size at which speed is measured."""
        return min(self.benchmark_batch, contract.largest_batch)

    def int8(self, contract: Contract) -> Int8Settings:
        """What is asked of the int8 variant. The target is the one asked for, else the plan's, else this machine's."""
        target = find_target(self.target or (self.plan.target if self.plan is not None else None))
        return Int8Settings(target=target, budget=self.budget, batch=self.batch(contract), plan=self.plan, recover=self.recover, pick=self.pick)


def _number(given: Any) -> float:
    """NaN, which is in no range, for anything that is no number."""
    try:
        return float(given) if isinstance(given, Real) and not isinstance(given, bool) else math.nan
    except OverflowError:  # an integer of hundreds of digits
        return math.nan
