"""The plans that a search tried, as error against time, and one of them chosen by what matters to the user.

Products go back to float one after another, the one with the largest error first. Each plan of that row is nearer to fp32 than the one before, and mostly
slower. So there is no best one: how much time a decibel is worth is for the user to say.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PICKS = ("fastest", "balanced", "closest")
LEAST_SPEEDUP = 1.05  # over fp32; a slower plan is chosen by nobody who wants int8
Names = frozenset[str]


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One plan. `in_float`: how many products of the curve's order run in float in it. `speedup`: fp32's time over its time; None if it was not measured.
    `sqnr_db`: signal over error of its outputs. `in_budget`: whether it keeps the quality budget."""

    in_float: int
    speedup: float | None
    sqnr_db: float
    in_budget: bool


@dataclass(frozen=True, kw_only=True)
class Curve:
    """`order`: the products of the fastest plan, those with the largest errors first. `points`: by `in_float`."""

    order: tuple[str, ...]
    points: tuple[CurvePoint, ...]

    def integer(self, point: CurvePoint) -> Names:
        """The products that run as integers in a plan of the curve."""
        return frozenset(self.order[point.in_float :])

    def pick(self, how: str) -> CurvePoint | None:
        """`fastest`: inside the budget. `closest`: to fp32, of those inside the budget that are LEAST_SPEEDUP times as fast as fp32. `balanced`: of
        the plans between these two the one that lies furthest above the straight line from one to the other.

        None if no plan is inside the budget.
        """
        inside = [each for each in self.points if each.in_budget and each.in_float < len(self.order)]
        if not inside:
            return None
        fastest = inside[0]
        timed = any(each.speedup is not None for each in inside)  # else this machine could not time any
        between = [each for each in inside if each is fastest or not timed or (each.speedup or 0.0) >= LEAST_SPEEDUP]
        closest = max(between, key=lambda each: each.sqnr_db)
        return {"fastest": fastest, "closest": closest, "balanced": _knee(between, fastest, closest)}[how]


def _knee(points: list[CurvePoint], fastest: CurvePoint, closest: CurvePoint) -> CurvePoint:
    """The point that gains most of the decibels for least of the time (the knee of Satopää et al. 2011, "Finding a kneedle in a haystack").

    Without times, or without a difference, the fastest.
    """
    if fastest.speedup is None or closest.speedup is None:
        return fastest
    nearer, slower = closest.sqnr_db - fastest.sqnr_db, 1 / closest.speedup - 1 / fastest.speedup
    if nearer <= 0 or slower <= 0:
        return closest if nearer > 0 else fastest  # nearer for nothing

    def above(point: CurvePoint) -> float:
        assert fastest.speedup is not None
        if point.speedup is None:
            return float("-inf")
        return (point.sqnr_db - fastest.sqnr_db) / nearer - (1 / point.speedup - 1 / fastest.speedup) / slower

    return max(points, key=above)


def curve_from_dict(data: Mapping[str, Any]) -> Curve:
    """Of JSON. Raises TypeError, KeyError or ValueError if it is none."""
    return Curve(order=tuple(map(str, data["order"])), points=tuple(CurvePoint(**each) for each in data["points"]))
