import pytest

from edgeport_export.quantization.plan_curve import Curve, CurvePoint, curve_from_dict


def point(in_float: int, speedup: float | None, sqnr_db: float, in_budget: bool = True) -> CurvePoint:
    return CurvePoint(in_float=in_float, speedup=speedup, sqnr_db=sqnr_db, in_budget=in_budget)


def curve(*points: CurvePoint) -> Curve:
    return Curve(order=tuple("abcdefgh"), points=points)


# times are 1/4, 1/3, 1/2 and 1/1.25 of fp32's; from the first to the last lie 0.55 of fp32's time and 10 dB
KNEE = (point(0, 4.0, 20.0), point(1, 3.0, 27.0), point(3, 2.0, 28.0), point(5, 1.25, 30.0))


@pytest.mark.parametrize(
    ("points", "fastest", "balanced", "closest"),
    [
        (KNEE, 0, 1, 5),  # above the line: 0.7 - 0.15, 0.8 - 0.45, by hand
        ((point(0, 4.0, 20.0), point(1, 3.9, 20.5), point(3, 2.5, 29.0), point(5, 1.9, 30.0)), 0, 3, 5),  # 0.05 - 0.02, 0.9 - 0.54
        ((point(0, 4.0, 20.0, in_budget=False), *KNEE[1:]), 1, 1, 5),  # 1/3 - 0, then 0.33 - 0.36
        ((*KNEE[:3], point(5, 1.04, 60.0)), 0, 1, 3),  # hardly faster than fp32
        ((*KNEE[:3], point(5, 1.25, 60.0, in_budget=False)), 0, 1, 3),
        ((point(0, 2.0, 30.0),), 0, 0, 0),
        ((point(0, 1.0, 30.0),), 0, 0, 0),  # the only one, however slow
        ((point(0, 2.0, 30.0), point(1, 1.5, 25.0)), 0, 0, 0),  # a plan with more in float that is no nearer
        ((point(0, 2.0, 30.0), point(1, 2.5, 35.0)), 0, 1, 1),  # nearer and faster
        ((*KNEE[:3], point(5, None, 60.0)), 0, 1, 3),  # one that was not timed beside others that were
        ((point(0, None, 20.0), point(1, None, 25.0)), 0, 0, 1),  # no time was measured
    ],
)
def test_the_pick_is_the_one_that_hand_computation_gives(points: tuple[CurvePoint, ...], fastest: int, balanced: int, closest: int) -> None:
    found = {how: curve(*points).pick(how) for how in ("fastest", "balanced", "closest")}
    assert {how: each and each.in_float for how, each in found.items()} == {"fastest": fastest, "balanced": balanced, "closest": closest}


@pytest.mark.parametrize("points", [(), (point(0, 2.0, 10.0, in_budget=False),), (point(8, 1.0, 99.0),)])
def test_outside_the_budget_or_without_integers_nothing_is_picked(points: tuple[CurvePoint, ...]) -> None:
    assert all(curve(*points).pick(how) is None for how in ("fastest", "balanced", "closest"))


def test_products_go_back_to_float_in_order_and_json_keeps_it() -> None:
    made = curve(*KNEE)
    assert made.integer(KNEE[2]) == frozenset("defgh")
    data = {"order": list(made.order), "points": [vars(each) for each in made.points]}
    assert curve_from_dict(data) == made
    with pytest.raises(TypeError, match="unknown"):
        curve_from_dict({"order": ["a"], "points": [{"unknown": 1}]})
