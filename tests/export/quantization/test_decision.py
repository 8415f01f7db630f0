"""The decision about int8 and its reason, held against figures worked out by hand."""

from dataclasses import replace

import pytest

from edgeport_export.benchmark.runner import LatencyStats
from edgeport_export.errors import ExportError
from edgeport_export.quantization.budget import Budget
from edgeport_export.quantization.decision import Figures, decide
from edgeport_export.quantization.int8_variant import MeasuredVariant
from edgeport_export.quantization.label_changes import LabelChanges
from edgeport_export.quantization.plan import Finding, Plan, SearchedPlan
from edgeport_export.validation.quality import QualityReport
from edgeport_runtime import Quality
from edgeport_runtime.manifest import Selection

Latencies = dict[int, dict[str, LatencyStats]]
PLAN = SearchedPlan(
    target="x86-vnni",
    formats="U8 activations, S8 weights per channel",
    method="minmax",
    integer=("a/Conv", "b/Gemm"),
    kept_float={"c/Conv": "time: it is faster in float, 1 against 2 ms for the whole variant"},
    integer_share=0.75,
    ranges={"x": (-1.0, 1.0)},
    graph_sha256="0" * 64,
    calibration_images=8,
    calibration_sha256="1" * 64,
    sqnr_db=41.26,
    batch=8,
    findings={"a/Conv": Finding(macs=2), "b/Gemm": Finding(macs=1), "c/Conv": Finding(macs=1)},
)


def stats(ms: float) -> LatencyStats:
    return LatencyStats(median_ms=ms, rounds_ms=(ms,), load_ms=1.0, peak_bytes=2**20)


LATENCIES = {
    8: {
        "fp32": LatencyStats(median_ms=4.0, rounds_ms=(4.0,), load_ms=30.4, peak_bytes=200 * 2**20),
        "int8": LatencyStats(median_ms=2.0, rounds_ms=(2.0,), load_ms=12.0, peak_bytes=150 * 2**20),
    },
    1: {"fp32": stats(0.9), "int8": stats(0.6)},
}


def figures(
    plan: SearchedPlan = PLAN,
    latencies: Latencies = LATENCIES,
    quality: QualityReport | None = None,
    budget: Budget | None = None,
) -> Figures:
    return Figures(plan=plan, latencies=latencies, quality=quality, budget=budget or Budget())


def alone(fp32_ms: float, int8_ms: float) -> Latencies:
    return {**LATENCIES, 1: {"fp32": stats(fp32_ms), "int8": stats(int8_ms)}}


def in_batches(speedup: float) -> Latencies:
    return {**LATENCIES, 8: {**LATENCIES[8], "fp32": replace(LATENCIES[8]["fp32"], rounds_ms=(2.0 * speedup,))}}


def test_int8_that_is_slower_on_one_image_alone_is_taken_for_batches() -> None:
    found = figures(latencies=alone(0.6, 0.613)).selection()
    assert (found.precision, found.batch_precision, found.from_batch) == ("fp32", "int8", 8) and "int8" in found.precisions
    words = "int8 is 2.00 times as fast as fp32 at batch 8, but 0.98 times at batch 1, so batches of 8 and more take it; its outputs are 41.3 dB from fp32's"
    assert found.reason == words
    within = figures(latencies=alone(0.6, 0.611)).selection()  # 2 % may be noise
    assert within == Selection(precision="int8", reason=within.reason) and within.reason.startswith("int8 is 2.00 times as fast as fp32 at batch 8, 0.98")
    far = figures(replace(PLAN, sqnr_db=20.0), alone(0.6, 0.64)).selection()  # if it loses too much, it is not taken in batches either
    assert far == Selection(precision="fp32", reason="int8 is not taken: its outputs are 20.0 dB from fp32's, and at least 30 dB are asked for")


@pytest.mark.parametrize(
    ("fp32_ms", "int8_ms", "sqnr_db", "precision", "split_from"),
    [
        (4.0, 1.6, 41.26, "int8", 8),  # 2.0 / 1.6 = 1.25 times as fast
        (2.0, 2.0, 41.26, "int8", None),  # a gain of fp32 says nothing of int8
        (2.0, 2.0, 20.0, "fp32", 8),  # if int8 loses too much, batches take fp32
        (3.95, 1.97, 41.26, "int8", None),  # 1.5 % may be noise
    ],
)
def test_batches_are_split_among_the_threads_if_that_was_measured_faster(
    fp32_ms: float, int8_ms: float, sqnr_db: float, precision: str, split_from: int | None
) -> None:
    split = {f"{name} split batch": stats(ms) for name, ms in (("fp32", fp32_ms), ("int8", int8_ms))}
    found = figures(replace(PLAN, sqnr_db=sqnr_db), {**LATENCIES, 8: {**LATENCIES[8], **split}}).selection()
    assert found == Selection(precision=precision, reason=found.reason, split_batch_from=split_from)


def test_a_machine_that_drifts_between_rounds_hides_no_gain() -> None:
    drift = (1.0, 1.6, 1.1, 1.4, 1.2)
    whole = replace(stats(2.4), rounds_ms=tuple(2.0 * each for each in drift))
    split = replace(stats(2.4), rounds_ms=tuple(1.9 * each for each in (*drift[:4], 3.0)))  # one round of its own bad luck
    assert figures(latencies={8: {**LATENCIES[8], "int8": whole, "int8 split batch": split}}).selection().split_batch_from == 8


def test_outputs_that_the_metric_does_not_see_are_held_to_the_floor() -> None:
    far, several = replace(PLAN, sqnr_db=-0.5), replace(judged(0.0), unseen=1)
    budget = Budget(max_drop=2.0)  # which 50 images can tell
    assert figures(far, quality=judged(0.0), budget=budget).pays() and not figures(far, quality=several, budget=budget).pays()
    words = figures(far, quality=several, budget=budget).reason()
    assert words == "int8 is not taken: its outputs are -0.5 dB from fp32's, and at least 30 dB are asked for"
    assert figures(far, quality=replace(judged(0.0, "my:own"), unseen=1), budget=budget).pays()  # which is given every output


def changes(clear: int) -> LabelChanges:
    return LabelChanges(images=120, clear=100, clear_changed=clear, close_changed=5)


def test_the_reason_tells_the_labels_and_the_distance() -> None:
    words = "it changes 0 of 100 clear labels (at most 3.7% at 95%) and 5 of 20 close ones; its outputs are 14.0 dB from fp32's"
    assert figures(replace(PLAN, sqnr_db=14.0, sqnr_error_db=0.4, changes=changes(0))).reason().endswith(words)


def judged(drop: float, metric: str = "accuracy") -> QualityReport:
    values = {"torch": Quality(metric=metric, value=0.9, count=50), "int8": Quality(metric=metric, value=0.9 - drop, count=50)}
    return QualityReport(qualities=values, changed={"int8": 1}, non_tie_changes={"int8": 1})


@pytest.mark.parametrize(
    ("quality", "words"),
    [
        (judged(0.002), "it loses 0.20 points of accuracy on 50 held-out images"),
        (judged(-0.02), "it gains 2.00 points of accuracy on 50 held-out images"),
        (judged(0.0), "it loses 0.00 points of accuracy on 50 held-out images"),
        (judged(0.25, "psnr_db"), "it loses 0.25 dB of PSNR on 50 held-out images"),
        (judged(0.25, "my:own"), "it loses 0.25 of my:own on 50 held-out images"),
        (None, "its outputs are 41.3 dB from fp32's"),
    ],
)
def test_the_reason_for_int8_is_one_sentence_of_speed_and_loss(quality: QualityReport | None, words: str) -> None:
    reason = figures(quality=quality).reason()
    assert reason == f"int8 is 2.00 times as fast as fp32 at batch 8, 1.50 times at batch 1; {words}"


def test_a_reason_is_never_longer_than_199_characters() -> None:
    long = figures(quality=judged(0.25, "a metric " * 20)).reason()
    assert 190 < len(long) <= 199 and long.endswith("…")


@pytest.mark.parametrize(
    ("plan", "speedup", "quality", "budget", "reason"),
    [
        (PLAN, 2.0, judged(0.0049), Budget(), None),
        (PLAN, 2.0, judged(0.0051), Budget(), "it loses 0.51 points of accuracy on 50 held-out images, and 0.5 are allowed"),
        (PLAN, 2.0, judged(0.6, "psnr_db"), Budget(), "it loses 0.60 dB of PSNR on 50 held-out images, and 0.5 are allowed"),
        (PLAN, 2.0, judged(0.6, "my:own"), Budget(), "it loses 0.60 of my:own on 50 held-out images, and 0.5 are allowed"),
        (PLAN, 1.05, judged(0.0), Budget(), None),
        (PLAN, 1.049, judged(0.0), Budget(), "it is 1.05 times as fast as fp32 at batch 8, and 1.05 is the least that is worth it"),
        (PLAN, 0.8, judged(0.0), Budget(), "it is 0.80 times as fast as fp32 at batch 8, and 1.05 is the least that is worth it"),
        (PLAN, None, judged(0.0), Budget(), "its speed could not be measured, because this machine is no x86-vnni"),
        (replace(PLAN, calibration_images=7), 2.0, judged(0.0), Budget(), "it was calibrated with 7 images, and at least 8 are needed"),
        # 50 images cannot tell half a point, so the floor counts
        (replace(PLAN, sqnr_db=29.9), 2.0, judged(0.0), Budget(), "its outputs are 29.9 dB from fp32's, and at least 30 dB are asked for"),
        (replace(PLAN, sqnr_db=29.9), 2.0, judged(0.0), Budget(max_drop=2.0), None),
        (replace(PLAN, sqnr_db=29.9), 2.0, judged(0.0, "psnr_db"), Budget(), None),
        (replace(PLAN, sqnr_elsewhere={"8x8": 26.5}), 2.0, None, Budget(), None),
        (
            replace(PLAN, sqnr_db=29.9, sqnr_error_db=0.42),
            2.0,
            None,
            Budget(),
            "its outputs are 29.9 dB from fp32's (± 0.8 with other images), and at least 30 dB are asked for",
        ),
        (PLAN, 2.0, None, Budget(sqnr_floor_db=41.0), None),
        (PLAN, 2.0, None, Budget(sqnr_floor_db=42.0), "its outputs are 41.3 dB from fp32's, and at least 42 dB are asked for"),
        # without truth a classifier's clear labels decide, and not the floor
        (replace(PLAN, sqnr_db=5.0, changes=changes(0)), 2.0, None, Budget(), None),
        (replace(PLAN, changes=changes(1)), 2.0, None, Budget(max_changed=1.0), None),
        (replace(PLAN, changes=changes(2)), 2.0, None, Budget(max_changed=2.0), None),
        (
            replace(PLAN, changes=changes(2)),
            2.0,
            None,
            Budget(max_changed=1.9),
            "it changes 2 of 100 clear labels (at most 7.0% at 95%) and 5 of 20 close ones, and 1.9% may change",
        ),
        (replace(PLAN, changes=changes(2)), 2.0, judged(0.0, "psnr_db"), Budget(), None),
        (replace(PLAN, sqnr_db=float("nan")), 2.0, None, Budget(), "its outputs are nan dB from fp32's, and at least 30 dB are asked for"),
        (PLAN, 2.0, judged(float("nan")), Budget(), "it loses nan points of accuracy on 50 held-out images, and 0.5 are allowed"),
    ],
)
def test_it_is_taken_only_if_it_pays_and_the_reason_is_told(
    plan: SearchedPlan, speedup: float | None, quality: QualityReport | None, budget: Budget, reason: str | None
) -> None:
    found = figures(plan, in_batches(speedup) if speedup is not None else {}, quality=quality, budget=budget)
    assert found.pays() == (reason is None) and found.speedup == speedup
    assert found.reason() == f"int8 is not taken: {reason}" if reason is not None else found.reason().startswith("int8 is ")


def test_a_searched_plan_gets_its_decision() -> None:
    plan = decide(MeasuredVariant(model=b"", plan=PLAN, latencies=LATENCIES, audit={}), judged(0.0), Budget())
    assert plan == Plan(**vars(PLAN), speedup=2.0, selection=figures(quality=judged(0.0)).selection())


@pytest.mark.parametrize(
    ("selected", "quality", "budget", "reason"),
    [
        ("int8", judged(0.002), Budget(), None),
        ("int8", judged(0.007), Budget(), r"int8 loses 0\.7, 0\.5 allowed"),
        ("int8", None, Budget(sqnr_floor_db=90.0), r"41\.26 dB from fp32, 90 asked for"),
        ("fp32", judged(0.5), Budget(), None),  # it is not taken, so it may lose anything
    ],
)
def test_a_replayed_plan_keeps_its_decision_and_must_keep_the_budget(selected: str, quality: QualityReport | None, budget: Budget, reason: str | None) -> None:
    plan = Plan(**vars(PLAN), speedup=0.3, selection=Selection(precision=selected, reason="it was decided before"))
    variant = MeasuredVariant(model=b"", plan=plan, latencies=LATENCIES, audit={})
    if reason is None:
        assert decide(variant, quality, budget) is plan
    else:
        with pytest.raises(ExportError, match=f"the replayed plan does not keep the quality budget: {reason}"):
            decide(variant, quality, budget)
