"""The search, with a clock that is made up: what each product takes as integers and in float is written down, so the right plan is known."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from edgeport_export import ExportError, targets
from edgeport_export.calibration import Calibration, calibrate, fed
from edgeport_export.planning import Outcome, _quality, search
from edgeport_export.quantize import observed_values
from edgeport_export.targets import TARGETS, target
from edgeport_export.trace import trace
from edgeport_export.workshop import Names, Workshop
from edgeport_runtime import Contract

FIRST, SECOND, HEAD = "conv1/Conv", "conv2/Conv", "head/Gemm"


class MadeUpClock:
    """`gain`: milliseconds that each product saves as integers; float alone takes 10."""

    def __init__(self, shop: Workshop, gain: dict[str, float]) -> None:
        self.shop = shop
        self.gain = gain
        self.calls = 0

    def compare(self, first: Path, second: Path) -> tuple[float, float]:
        self.calls += 1
        return self._time(first), self._time(second)

    def _time(self, path: Path) -> float:
        names = next(names for names, file in self.shop._files.items() if file == path)
        return 10.0 - sum(self.gain[name] for name in names)


@pytest.fixture(scope="module")
def shop(tiny: ModuleType, class_contract: Contract) -> Iterator[tuple[Workshop, Calibration]]:
    examples = tiny.brightness_examples(12, seed=0)
    with Workshop(trace(tiny.trained_classifier(), class_contract).model, class_contract, TARGETS["x86-vnni"]) as made:
        made.probes = list(fed(class_contract, examples))
        yield made, calibrate(made.prepared, observed_values(made.prepared, made.target), class_contract, examples)


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        ({FIRST: 1.0, SECOND: 2.0, HEAD: 0.5}, {FIRST, SECOND, HEAD}),
        ({FIRST: -1.0, SECOND: 4.0, HEAD: 0.5}, {SECOND, HEAD}),
        ({FIRST: -1.0, SECOND: 4.0, HEAD: -0.5}, {SECOND}),
        ({FIRST: 0.01, SECOND: 4.0, HEAD: -0.01}, {FIRST, SECOND, HEAD}),  # under the margin: noise decides nothing
    ],
)
def test_what_is_slower_as_integers_stays_float(shop: tuple[Workshop, Calibration], gain: dict[str, float], expected: Names) -> None:
    clock = MadeUpClock(shop[0], gain)
    found = search(*shop, clock, lambda names: True, seconds=60)
    assert found.integer == expected and clock.calls > 1
    assert set(found.reasons) == set(gain) - set(expected) and all(reason.startswith("time: ") for reason in found.reasons.values())
    findings = found.findings(shop[0].multiplications)
    assert set(findings) == {FIRST, SECOND, HEAD} and all(each.sqnr_db is not None and each.sqnr_db > 20 for each in findings.values())


def test_where_none_pays_one_is_left_for_whoever_insists(shop: tuple[Workshop, Calibration]) -> None:
    clock = MadeUpClock(shop[0], {FIRST: -3.0, SECOND: -1.0, HEAD: -0.5})
    found = search(*shop, clock, lambda names: True, seconds=60)
    assert found.integer == {HEAD} and set(found.reasons) == {FIRST, SECOND}  # which loses least


def test_one_product_alone_may_lose_less_than_what_was_left(shop: tuple[Workshop, Calibration]) -> None:
    class Together(MadeUpClock):
        def _time(self, path: Path) -> float:
            names = next(names for names, file in self.shop._files.items() if file == path)
            return 10.0 + {frozenset[str](): 0.0, frozenset([FIRST]): 0.1}.get(names, 5.0)

    assert search(*shop, Together(shop[0], {}), lambda names: True, seconds=60).integer == {FIRST}


def test_the_worst_products_go_first_until_the_budget_is_kept(shop: tuple[Workshop, Calibration]) -> None:
    alone = {name: shop[0].sqnr_db([name]) for name in (FIRST, SECOND, HEAD)}
    worst = min(alone, key=lambda name: alone[name])
    found = search(*shop, None, lambda names: worst not in names, seconds=60)
    assert found.integer == set(alone) - {worst}
    assert found.reasons[worst].startswith(f"error: alone it brings the outputs to {alone[worst]:.1f} dB")
    assert search(*shop, None, lambda names: False, seconds=60).integer == frozenset()


@pytest.mark.parametrize("needed", range(16))
def test_no_more_products_go_than_it_takes(shop: tuple[Workshop, Calibration], needed: int) -> None:
    errors = {f"product{index}": float(30 + index) for index in range(15)}
    outcome = Outcome(integer=frozenset(errors), method="minmax", sqnr_db=dict(errors))
    asked: list[frozenset[str]] = []

    def keeps(names: frozenset[str]) -> bool:
        asked.append(names)
        return len(names) <= 15 - needed

    _quality(shop[0], outcome, keeps, lambda *_: None)
    assert outcome.integer == frozenset(list(errors)[needed:]) and set(outcome.reasons) == set(list(errors)[:needed])
    assert len(asked) <= 9


def test_the_kind_of_limits_with_the_smallest_error_is_taken(shop: tuple[Workshop, Calibration]) -> None:
    made, calibration = shop
    found = search(made, calibration, None, lambda names: True, seconds=60)
    assert made.limits == calibration.limits(found.method)
    errors = {}
    for method in ("minmax", "percentile", "entropy"):
        made.limits = calibration.limits(method)
        errors[method] = made.sqnr_db(made.possible)
    assert found.method == max(errors, key=lambda method: errors[method])


def test_without_time_nothing_is_measured_and_everything_stays(shop: tuple[Workshop, Calibration]) -> None:
    found = search(*shop, None, lambda names: True, seconds=0)
    assert found.integer == {FIRST, SECOND, HEAD} and not found.slower and not found.sqnr_db


def test_where_the_budget_leaves_nothing_whoever_insists_gets_the_fastest(shop: tuple[Workshop, Calibration]) -> None:
    clock = MadeUpClock(shop[0], {FIRST: -1.0, SECOND: 4.0, HEAD: 0.5})
    found = search(*shop, clock, lambda names: False, seconds=60)
    assert found.integer == frozenset() and found.fastest == {SECOND, HEAD}


@pytest.mark.parametrize(("exact", "name", "asks"), [(True, "x86-vnni", False), (False, "x86", True)])
def test_a_host_whose_products_saturate_is_no_vnni_host(exact: bool, name: str, asks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "int8_products_are_exact", lambda: exact)
    monkeypatch.setattr(targets.platform, "machine", lambda: "x86_64")
    assert target("").name == name
    assert target("x86-vnni").session.exact_int8 == asks  # the numbers that the variant will have on the target
    assert not target("x86").session.exact_int8 and not target("arm64").session.exact_int8


def test_targets_are_looked_up() -> None:
    assert target("arm64").formats == "S8 activations, S8 weights per channel" and "7-bit" in target("x86").formats
    assert target("").here
    with pytest.raises(ExportError, match="among x86-vnni, x86, arm64, got 'riscv'"):
        target("riscv")
