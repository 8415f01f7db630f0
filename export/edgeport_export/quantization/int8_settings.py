"""What is asked of an int8 variant, and how its time is measured."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from edgeport_export.benchmark.runner import LatencyStats, PairTimer, benchmark
from edgeport_runtime.threads import usable_threads

from .budget import Budget
from .plan import Plan
from .targets import Target


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How time is measured. Tests replace it by figures that are known."""

    benchmark: Callable[..., Mapping[str, LatencyStats]] = benchmark
    pair_timer: Callable[..., AbstractContextManager[Any]] = PairTimer
    threads: Callable[[], int] = usable_threads


@dataclass(frozen=True, kw_only=True)
class Int8Settings:
    """What is asked of an int8 variant. `batch`: the batch size at which speed is measured. `plan`: replayed instead of a search.

    `recover`: the effort of bringing the variant nearer to fp32, a key of EFFORTS, or OFF. `pick`: one of PICKS; None replays the plan, or searches for
    the fastest one. With a plan, another plan of its curve is picked.
    """

    target: Target
    budget: Budget
    batch: int
    plan: Plan | None = None
    recover: str = "quick"
    pick: str | None = None
