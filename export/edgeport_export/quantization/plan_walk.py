"""From the fastest int8 variant towards the float network: products go back to float, those with the largest errors first.

1. As few as possible go until the quality budget is kept. Their number is found by doubling it and halving the last step.
2. From there, more go: three plans beyond are measured, so that the user sees what a decibel costs, and may pick one of them.

Every plan that was tried is a point of a `Curve`.
"""

from collections.abc import Callable
from dataclasses import replace

from edgeport_export.progress import ProgressCallback, no_progress

from .output_error import finite_db
from .plan_curve import LEAST_SPEEDUP, Curve, CurvePoint
from .search import SearchResult, rounded
from .variants import Names

BEYOND = 3  # plans that are measured though the budget asks for no more


def walked(
    result: SearchResult,
    keeps_budget: Callable[[Names], bool],
    sqnr_db: Callable[[Names], float],
    speedup: Callable[[Names], float | None],
    has_time: Callable[[], bool] = lambda: True,
    progress: ProgressCallback = no_progress,
) -> Curve:
    """The plans between `result` and the float network.

    `keeps_budget`: whether a variant is good enough. `sqnr_db`: signal over error of its outputs. `speedup`: fp32's time over its time; None if that cannot be
    measured. `has_time`: whether there is any left for rule 2.
    """
    worst = tuple(sorted(result.integer, key=lambda name: (result.sqnr_db.get(name, float("inf")), name)))
    kept: dict[int, bool] = {}

    def keeps(without: int) -> bool:
        progress("evaluating int8", without, len(worst))
        if without < len(worst) and without not in kept:
            kept[without] = keeps_budget(frozenset(worst[without:]))
        return kept.get(without, True)

    least = _least(keeps, len(worst))

    def point(without: int, *, in_budget: bool, timed: bool) -> CurvePoint:
        names = frozenset(worst[without:])
        error = finite_db(sqnr_db(names))  # before time is up
        return CurvePoint(in_float=without, speedup=rounded(speedup(names), 3) if timed else None, sqnr_db=error, in_budget=in_budget)

    points = [point(without, in_budget=found, timed=found or without == 0) for without, found in sorted(kept.items())]
    points += _beyond(next((each for each in points if each.in_float == least), None), set(kept), len(worst), point, has_time)
    return Curve(order=worst, points=tuple(sorted(points, key=lambda each: each.in_float)))


def _least(keeps: Callable[[int], bool], most: int) -> int:
    """Rule 1."""
    fails, kept = -1, 0
    while not keeps(kept):
        fails, kept = kept, min(most, 2 * kept + 1)
    while kept - fails > 1:
        middle = (fails + kept) // 2
        fails, kept = (fails, middle) if keeps(middle) else (middle, kept)
    return kept


def _beyond(last: CurvePoint | None, known: set[int], most: int, point: Callable[..., CurvePoint], has_time: Callable[[], bool]) -> list[CurvePoint]:
    """Rule 2, past those that are `known`. A plan that is no nearer than the last one that kept the budget does not count as keeping it.

    The walk ends where nobody would want int8.
    """
    found: list[CurvePoint] = []
    if last is None:
        return found
    without = last.in_float
    for _ in range(BEYOND):
        without = 2 * without + 1
        if without in known:
            continue
        if without >= most or not has_time():
            break
        made = point(without, in_budget=True, timed=True)
        found.append(replace(made, in_budget=made.sqnr_db >= last.sqnr_db))
        if made.speedup is not None and made.speedup < LEAST_SPEEDUP:
            break
    return found


def taken(result: SearchResult, curve: Curve, point: CurvePoint | None, pick: str) -> SearchResult:
    """The search's result with one plan of the curve; None leaves no product, because the budget leaves none."""
    in_float = len(curve.order) if point is None else point.in_float
    integer, reasons = frozenset(curve.order[in_float:]), dict(result.reasons)
    inside = next((each.in_float for each in curve.points if each.in_budget), len(curve.order))
    for index, name in enumerate(curve.order[:in_float]):
        error = result.sqnr_db.get(name)
        figure = f": alone it brings the outputs to {error:.1f} dB of fp32's" if error is not None else ""
        why = "the quality budget was not kept" if index < inside else f"the {pick} plan was asked for"
        reasons[name] = f"error{figure}, and {why}"
    return replace(result, integer=integer, reasons={name: reason for name, reason in reasons.items() if name not in integer})
