"""The walk towards float, over products whose errors are written down."""

import math

import pytest

from edgeport_export.quantization.plan_curve import Curve
from edgeport_export.quantization.plan_walk import taken, walked
from edgeport_export.quantization.search import SearchResult
from edgeport_export.quantization.variants import Names

COUNT = 15
ERRORS = {f"product{index:02}": float(30 + index) for index in range(COUNT)}
EVERYTHING = SearchResult(integer=frozenset(ERRORS), fastest=frozenset(ERRORS), sqnr_db=ERRORS, reasons={"other": "time: it is faster in float"})


def distance(names: Names) -> float:
    """Each product in float brings a decibel."""
    return 20.0 + COUNT - len(names)


def speed(names: Names) -> float:
    return 1.0 + len(names) / COUNT


def walk(needed: int, has_time: bool = True) -> tuple[Curve, list[Names]]:
    asked: list[Names] = []

    def keeps(names: Names) -> bool:
        asked.append(names)
        return len(names) <= COUNT - needed

    return walked(EVERYTHING, keeps, distance, speed, lambda: has_time), asked


@pytest.mark.parametrize("needed", range(COUNT + 1))
def test_no_more_products_go_than_it_takes(needed: int) -> None:
    curve, asked = walk(needed)
    assert curve.order == tuple(ERRORS) and len(asked) <= 9
    fastest = curve.pick("fastest")
    assert (None if fastest is None else fastest.in_float) == (needed if needed < COUNT else None)
    found = taken(EVERYTHING, curve, fastest, "fastest")
    assert found.integer == frozenset(list(ERRORS)[needed:]) and found.fastest == frozenset(ERRORS)
    assert set(found.reasons) == {"other", *list(ERRORS)[:needed]}
    first = found.reasons.get("product00", "")
    assert not needed or first == "error: alone it brings the outputs to 30.0 dB of fp32's, and the quality budget was not kept"


def test_plans_beyond_the_budget_show_what_a_decibel_costs() -> None:
    curve, asked = walk(needed=0)
    assert [(each.in_float, each.speedup, each.sqnr_db, each.in_budget) for each in curve.points] == [
        (0, 2.0, 20.0, True),
        (1, 1.933, 21.0, True),
        (3, 1.8, 23.0, True),
        (7, 1.533, 27.0, True),
    ]
    assert len(asked) == 1  # nearer than one that keeps the budget: nobody is asked
    closest = taken(EVERYTHING, curve, curve.pick("closest"), "closest")
    assert len(closest.integer) == 8 and closest.reasons["product06"].endswith("and the closest plan was asked for")
    assert [each.in_float for each in walk(needed=0, has_time=False)[0].points] == [0]


def test_a_plan_that_is_no_nearer_does_not_count_as_keeping_the_budget() -> None:
    curve = walked(EVERYTHING, lambda names: True, lambda names: float(len(names)), speed)
    assert [each.in_budget for each in curve.points] == [True, False, False, False]


def test_the_walk_ends_where_int8_is_no_faster() -> None:
    curve = walked(EVERYTHING, lambda names: True, distance, lambda names: 1.0 + (len(names) - 13) / 10)
    assert [(each.in_float, each.speedup) for each in curve.points] == [(0, 1.2), (1, 1.1), (3, 0.9)]


def test_without_a_machine_to_time_on_there_are_no_times() -> None:
    curve = walked(EVERYTHING, lambda names: len(names) < COUNT, distance, lambda names: None)
    assert {each.speedup for each in curve.points} == {None} and [each.in_float for each in curve.points] == [0, 1, 3, 7]


def test_every_plan_inside_the_budget_is_timed_and_none_slower_than_fp32_is_the_closest() -> None:
    """Doubling and halving tries 7, 5 and 4 of twelve; the last ones are slower than fp32."""
    errors = {f"product{index:02}": float(index) for index in range(12)}
    everything = SearchResult(integer=frozenset(errors), fastest=frozenset(errors), sqnr_db=errors)
    curve = walked(everything, lambda names: len(names) <= 8, lambda names: 40.0 - len(names), lambda names: 0.25 + len(names) / 8)
    assert {each.in_float: each.speedup for each in curve.points if each.in_budget} == {4: 1.25, 5: 1.125, 7: 0.875, 9: 0.625}
    closest = curve.pick("closest")
    assert closest is not None and closest.in_float == 5


@pytest.mark.parametrize(("errors_db", "expected"), [(math.inf, 999.0), (-math.inf, -999.0)])
def test_products_on_which_no_output_depends_leave_a_finite_curve(errors_db: float, expected: float) -> None:
    """As in a residual network that was not trained yet: its branches are multiplied by zero."""
    curve = walked(EVERYTHING, lambda _: True, lambda _: errors_db, speed, lambda: True)
    assert {each.sqnr_db for each in curve.points} == {expected}
