"""The search, with a timer that is made up: what each product takes as integers and in float is written down, so the right plan is known."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from edgeport_export.benchmark.runner import PairTimes
from edgeport_export.quantization.calibration import Calibration, calibrate, pixel_arrays
from edgeport_export.quantization.qdq import observed_values
from edgeport_export.quantization.search import profile, search
from edgeport_export.quantization.targets import TARGETS
from edgeport_export.quantization.variants import Names, Probes, QuantizableGraph, VariantBuilder
from edgeport_export.tracing.exporter import trace
from edgeport_runtime import Contract

FIRST, SECOND, HEAD = "conv1/Conv", "conv2/Conv", "head/Gemm"


class MadeUpTimer:
    """`gain`: milliseconds that each product saves as integers; float alone takes 10."""

    def __init__(self, builder: VariantBuilder, gain: dict[str, float]) -> None:
        self.builder = builder
        self.gain = gain
        self.calls = 0

    def compare(self, first: Path, second: Path, bar: float = 1.0) -> PairTimes:
        self.calls += 1
        return PairTimes.of(self._time(first), self._time(second))

    def names(self, path: Path) -> Names:
        return next(names for names, variant in self.builder._variants.items() if variant.path == path)

    def _time(self, path: Path) -> float:
        return 10.0 - sum(self.gain[name] for name in self.names(path))


@pytest.fixture(scope="module")
def graph(tiny: ModuleType, class_contract: Contract) -> QuantizableGraph:
    return QuantizableGraph.of(trace(tiny.trained_classifier(), class_contract).model, class_contract, TARGETS["x86-vnni"])


@pytest.fixture(scope="module")
def probes(graph: QuantizableGraph, tiny: ModuleType, class_contract: Contract) -> Probes:
    return Probes(graph, pixel_arrays(class_contract, tiny.brightness_examples(12, seed=0)))


@pytest.fixture(scope="module")
def calibration(graph: QuantizableGraph, tiny: ModuleType, class_contract: Contract) -> Calibration:
    return calibrate(graph.model, observed_values(graph.model, graph.target), class_contract, tiny.brightness_examples(12, seed=0))


@pytest.fixture(scope="module")
def builder(graph: QuantizableGraph, probes: Probes, calibration: Calibration) -> Iterator[VariantBuilder]:
    with VariantBuilder(graph, calibration.ranges("minmax"), probes, "minmax") as made:
        yield made


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        ({FIRST: 1.0, SECOND: 2.0, HEAD: 0.5}, {FIRST, SECOND, HEAD}),
        ({FIRST: -1.0, SECOND: 4.0, HEAD: 0.5}, {SECOND, HEAD}),
        ({FIRST: -1.0, SECOND: 4.0, HEAD: -0.5}, {SECOND}),
        ({FIRST: 0.01, SECOND: 4.0, HEAD: -0.01}, {FIRST, SECOND, HEAD}),  # under the margin: noise decides nothing
    ],
)
def test_what_is_slower_as_integers_stays_float(builder: VariantBuilder, gain: dict[str, float], expected: Names) -> None:
    timer = MadeUpTimer(builder, gain)
    found = search(builder, timer, seconds=60)
    assert found.integer == expected and timer.calls > 1
    assert set(found.reasons) == set(gain) - set(expected) and all(reason.startswith("time: ") for reason in found.reasons.values())
    findings = found.findings(builder.graph.macs)
    assert set(findings) == {FIRST, SECOND, HEAD} and all(each.sqnr_db is not None and each.sqnr_db > 20 for each in findings.values())


def test_if_none_pays_one_is_left_for_a_user_who_wants_int8_in_any_case(builder: VariantBuilder) -> None:
    timer = MadeUpTimer(builder, {FIRST: -3.0, SECOND: -1.0, HEAD: -0.5})
    found = search(builder, timer, seconds=60)
    assert found.integer == {HEAD} and set(found.reasons) == {FIRST, SECOND}  # the one that loses least


def test_one_product_alone_may_lose_less_than_what_was_left(builder: VariantBuilder) -> None:
    class Together(MadeUpTimer):
        def _time(self, path: Path) -> float:
            return 10.0 + {frozenset[str](): 0.0, frozenset([FIRST]): 0.1}.get(self.names(path), 5.0)

    assert search(builder, Together(builder, {}), seconds=60).integer == {FIRST}


class UnsureTimer(MadeUpTimer):
    """No number of turns tells two variants apart that differ by just these products."""

    def __init__(self, builder: VariantBuilder, gain: dict[str, float], unsure: set[str]) -> None:
        super().__init__(builder, gain)
        self.unsure = unsure

    def compare(self, first: Path, second: Path, bar: float = 1.0) -> PairTimes:
        found = super().compare(first, second, bar)
        return found._replace(low=0.5, high=2.0) if self.names(first) ^ self.names(second) == self.unsure else found


@pytest.mark.parametrize(
    ("gain", "unsure", "expected", "undecided"),
    [
        ({FIRST: -1.0, SECOND: 4.0, HEAD: 0.5}, {FIRST}, {FIRST, SECOND, HEAD}, {FIRST}),  # integers are believed to be faster
        ({FIRST: -0.1, SECOND: -0.1, HEAD: 0.1}, {FIRST, SECOND, HEAD}, {FIRST, SECOND, HEAD}, set()),  # the whole against fp32
        ({FIRST: -4.0, SECOND: -4.0, HEAD: 1.0}, {HEAD}, {HEAD}, {HEAD}),  # the kind goes; the last one is believed to pay
    ],
)
def test_what_no_number_of_turns_decides_runs_as_integers(
    builder: VariantBuilder, gain: dict[str, float], unsure: set[str], expected: Names, undecided: set[str]
) -> None:
    found = search(builder, UnsureTimer(builder, gain, unsure), seconds=60)
    assert found.integer == expected and found.undecided == undecided
    assert set(found.reasons) == set(gain) - expected


def test_a_product_that_went_with_its_kind_comes_back_undecided(builder: VariantBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [frozenset({FIRST, SECOND}), *(frozenset({name}) for name in (FIRST, SECOND, HEAD))]
    monkeypatch.setattr("edgeport_export.quantization.search._challenges", lambda _: iter(kinds))
    found = search(builder, UnsureTimer(builder, {FIRST: -3.0, SECOND: -1.0, HEAD: 4.9}, {FIRST}), seconds=60)
    assert found.integer == {FIRST, HEAD} and found.undecided == {FIRST} and set(found.reasons) == {SECOND}


def test_from_the_float_graph_only_what_surely_pays_becomes_integers(builder: VariantBuilder) -> None:
    """Together they lose; alone, one surely gains, and of another nobody knows."""

    class Together(UnsureTimer):
        def _time(self, path: Path) -> float:
            names = self.names(path)
            return 12.0 if len(names) == 3 else super()._time(path) + 3.0 * (len(names) == 2 and FIRST in names)

    found = search(builder, Together(builder, {FIRST: -3.0, SECOND: 2.0, HEAD: 1.0}, {HEAD}), seconds=60)
    assert SECOND in found.integer and FIRST not in found.integer


def test_without_time_nothing_is_measured_and_everything_stays(builder: VariantBuilder) -> None:
    found = search(builder, None, seconds=0)
    assert found.integer == {FIRST, SECOND, HEAD} and not found.speedups and not found.sqnr_db


def test_the_profile_names_products_as_the_float_graph_does(builder: VariantBuilder, graph: QuantizableGraph) -> None:
    spent_us = profile(builder.file(frozenset(graph.quantizable)), graph)
    assert {FIRST, SECOND, HEAD} <= set(spent_us) and all(spent_us[name] >= 0 for name in (FIRST, SECOND, HEAD))
    assert not list(builder.file(frozenset()).parent.glob("*.json"))  # the profiler's file is removed
