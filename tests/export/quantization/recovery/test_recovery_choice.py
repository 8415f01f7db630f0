import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from edgeport_export.errors import ExportError
from edgeport_export.progress import no_progress
from edgeport_export.quantization.calibration import calibrate, pixel_arrays
from edgeport_export.quantization.plan import Plan, RecoveryStep, WeightRecovery
from edgeport_export.quantization.qdq import observed_values
from edgeport_export.quantization.recovery import recovery_choice
from edgeport_export.quantization.recovery.recovered_weights import recovered_sha256
from edgeport_export.quantization.recovery.recovery_choice import Chosen, RecoveryChoice, replayed_builder
from edgeport_export.quantization.targets import TARGETS
from edgeport_export.quantization.variants import Probes, QuantizableGraph, VariantBuilder
from edgeport_export.tracing.exporter import trace
from edgeport_runtime import Contract
from edgeport_runtime.manifest import Selection


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture(scope="module")
def nearest(tiny: ModuleType, class_contract: Contract) -> Iterator[VariantBuilder]:
    graph = QuantizableGraph.of(trace(tiny.trained_classifier(), class_contract).model, class_contract, TARGETS["x86"])
    calibration = calibrate(graph.model, observed_values(graph.model, graph.target), class_contract, tiny.brightness_examples(24, seed=0))
    probes = Probes(graph, pixel_arrays(class_contract, tiny.brightness_examples(12, seed=1)))
    with VariantBuilder(graph, calibration.ranges("minmax"), probes, "minmax") as made:
        yield made


def choice(stack: ExitStack, nearest: VariantBuilder, tiny: ModuleType, effort: str = "quick", count: int = 24, seconds: float = 60.0) -> RecoveryChoice:
    return RecoveryChoice(stack, nearest, tiny.brightness_examples(count, seed=0), effort, seconds, no_progress)


def test_it_is_taken_where_it_comes_nearer_on_other_images(stack: ExitStack, nearest: VariantBuilder, tiny: ModuleType) -> None:
    everything = frozenset(nearest.graph.quantizable)
    made = choice(stack, nearest, tiny)
    chosen = made.chosen(everything)
    builder, facts = chosen.builder, chosen.facts
    assert facts is not None and builder is not nearest and (facts.effort, facts.images) == ("quick", 24)
    before, after = nearest.sqnr_db(everything), builder.sqnr_db(everything)
    assert after > before + 0.5 and (facts.nearest_db, facts.sqnr_db) == (pytest.approx(before, abs=0.01), pytest.approx(after, abs=0.01))
    assert chosen.step == RecoveryStep(name="weights rounded for each other", before_db=facts.nearest_db, after_db=facts.sqnr_db, taken=True)
    fewer = frozenset(list(everything)[:2])
    assert made.builder(fewer) is not builder
    assert made.builder(everything) is builder and set(made.known) == {everything, fewer}  # not made again


@pytest.mark.parametrize(("effort", "count", "integer"), [("off", 24, True), ("quick", 0, True), ("quick", 24, False)])
def test_without_images_effort_or_products_there_is_none(
    effort: str, count: int, integer: bool, stack: ExitStack, nearest: VariantBuilder, tiny: ModuleType
) -> None:
    made = choice(stack, nearest, tiny, effort, count)
    assert made.chosen(frozenset(nearest.graph.quantizable) if integer else frozenset()) == Chosen(builder=nearest)


def test_it_stays_out_where_it_is_no_better(stack: ExitStack, nearest: VariantBuilder, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_choice, "LEAST_GAIN_DB", 200.0)
    made = choice(stack, nearest, tiny)
    chosen = made.chosen(frozenset(nearest.graph.quantizable))
    assert chosen.builder is nearest and chosen.facts is None
    assert chosen.step is not None and not chosen.step.taken and chosen.step.after_db > chosen.step.before_db


def test_when_time_is_up_the_last_products_keep_their_weights(
    stack: ExitStack, nearest: VariantBuilder, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything, clock = frozenset(nearest.graph.quantizable), itertools.count()
    monkeypatch.setattr(recovery_choice.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(recovery_choice, "LEAST_GAIN_DB", -99.0)
    chosen = choice(stack, nearest, tiny, seconds=1.5).chosen(everything)
    builder, facts = chosen.builder, chosen.facts
    assert facts is not None and facts.products == len(builder.recovered) == 1  # asked at 1 and at 2 seconds
    again = replayed_builder(stack, nearest.graph, planned(nearest, facts), tiny.brightness_examples(24, seed=0), no_progress)
    assert recovered_sha256(again.recovered) == facts.weights_sha256
    facts = choice(stack, nearest, tiny, "thorough", seconds=0.0).chosen(everything).facts
    assert facts is not None and facts.products == len(everything)


def planned(builder: VariantBuilder, facts: WeightRecovery | None) -> Plan:
    graph, selection = builder.graph, Selection(precision="int8", reason="")
    known: dict[str, Any] = {"target": graph.target.name, "formats": graph.target.formats, "method": builder.method, "graph_sha256": graph.sha256}
    known |= {"calibration_images": 24, "calibration_sha256": "", "batch": 8, "sqnr_db": 30.0, "kept_float": {}, "integer_share": 1.0}
    return Plan(**known, integer=graph.quantizable, ranges=builder.ranges, recovery=facts, speedup=2.0, selection=selection)


def test_a_plan_is_replayed_with_its_images_alone(stack: ExitStack, nearest: VariantBuilder, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, images = nearest.graph, tiny.brightness_examples(24, seed=0)
    chosen = choice(stack, nearest, tiny).chosen(frozenset(graph.quantizable))
    builder, facts = chosen.builder, chosen.facts
    assert facts is not None
    plan = planned(nearest, facts)
    again = replayed_builder(stack, graph, plan, images, no_progress)
    assert recovered_sha256(again.recovered) == recovered_sha256(builder.recovered) == facts.weights_sha256
    assert not replayed_builder(stack, graph, planned(nearest, None), [], no_progress).recovered
    for others, words in (
        ([], "were rounded with 24 images, and they are not given: name the same calibration data"),
        (images[:23], "they are not those given"),
        (images[::-1], "they are not those given"),
    ):
        with pytest.raises(ExportError, match=words):
            replayed_builder(stack, graph, plan, others, no_progress)
    with pytest.raises(ExportError, match="round otherwise on this machine"):
        replayed_builder(stack, graph, replace(plan, recovery=replace(facts, weights_sha256="0" * 64)), images, no_progress)
    with pytest.raises(ExportError, match="the effort 'endless', which this edgeport does not know"):
        replayed_builder(stack, graph, replace(plan, recovery=replace(facts, effort="endless")), images, no_progress)
