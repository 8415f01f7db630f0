"""The decision about int8 and its explanation, held against figures worked out by hand."""

from dataclasses import replace

import pytest

from edgeport_export.benchmark.runner import LatencyStats
from edgeport_export.errors import ExportError
from edgeport_export.quantization.budget import Budget
from edgeport_export.quantization.decision import Figures, decide
from edgeport_export.quantization.int8_variant import MeasuredVariant
from edgeport_export.quantization.plan import Finding, Plan, SearchedPlan
from edgeport_export.validation.quality import QualityReport, too_few_examples
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
LATENCIES = {
    8: {
        "fp32": LatencyStats(median_ms=4.0, rounds_ms=(4.0,), load_ms=30.4, peak_bytes=200 * 2**20),
        "int8": LatencyStats(median_ms=2.0, rounds_ms=(2.0,), load_ms=12.0, peak_bytes=150 * 2**20),
    },
    1: {"fp32": LatencyStats(median_ms=0.9, rounds_ms=(0.9,)), "int8": LatencyStats(median_ms=0.6, rounds_ms=(0.6,))},
}
SIZES = {"fp32": 4000, "int8": 1000}


def figures(
    plan: SearchedPlan = PLAN,
    latencies: Latencies = LATENCIES,
    sizes: dict[str, int] = SIZES,
    quality: QualityReport | None = None,
    budget: Budget | None = None,
) -> Figures:
    return Figures(plan=plan, latencies=latencies, sizes=sizes, quality=quality, budget=budget or Budget())


def alone(fp32_ms: float, int8_ms: float) -> Latencies:
    return {**LATENCIES, 1: {"fp32": LatencyStats(median_ms=fp32_ms, rounds_ms=(fp32_ms,)), "int8": LatencyStats(median_ms=int8_ms, rounds_ms=(int8_ms,))}}


def in_batches(speedup: float) -> Latencies:
    return {**LATENCIES, 8: {**LATENCIES[8], "fp32": replace(LATENCIES[8]["fp32"], rounds_ms=(2.0 * speedup,))}}


def test_int8_that_is_slower_on_one_image_alone_is_taken_for_batches() -> None:
    sizes = {"fp32": 1000, "int8": 4000}
    found = figures(latencies=alone(0.6, 0.613), sizes=sizes).selection()
    assert (found.precision, found.batch_precision, found.from_batch) == ("fp32", "int8", 8) and "int8" in found.precisions
    words = "int8 is taken for batches of 8 and more, if `batch` asks for them, and fp32 for less, because int8 is slower on one image alone: "
    assert found.reason.startswith(words) and "the file is 4.00 times larger" in found.reason
    within = figures(latencies=alone(0.6, 0.611), sizes=sizes).selection()  # 2 % may be noise
    assert within == Selection(precision="int8", reason=within.reason) and within.reason.startswith("int8 is taken: ")
    far = figures(replace(PLAN, sqnr_db=20.0), alone(0.6, 0.64), sizes).selection()  # if it loses too much, it is not taken in batches either
    assert far == Selection(precision="fp32", reason=far.reason) and far.reason.startswith("int8 is not taken, because its outputs are not")


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
    split = {f"{name} split batch": LatencyStats(median_ms=ms, rounds_ms=(ms,)) for name, ms in (("fp32", fp32_ms), ("int8", int8_ms))}
    found = figures(replace(PLAN, sqnr_db=sqnr_db), {**LATENCIES, 8: {**LATENCIES[8], **split}}).selection()
    assert found == Selection(precision=precision, reason=found.reason, split_batch_from=split_from)
    assert ("int8 is 1.25 times as fast again at batch 8 if each thread runs images of its own" in found.reason) == (int8_ms == 1.6)
    assert ("fp32 is 2.00 times as fast again at batch 8" in found.reason) == (fp32_ms == 2.0)


def test_a_machine_that_drifts_between_rounds_hides_no_gain() -> None:
    drift = (1.0, 1.6, 1.1, 1.4, 1.2)
    whole = LatencyStats(median_ms=2.4, rounds_ms=tuple(2.0 * each for each in drift))
    split = LatencyStats(median_ms=2.4, rounds_ms=tuple(1.9 * each for each in (*drift[:4], 3.0)))  # one round of its own bad luck
    assert figures(latencies={8: {**LATENCIES[8], "int8": whole, "int8 split batch": split}}).selection().split_batch_from == 8


def test_outputs_that_the_metric_does_not_see_are_held_to_the_floor() -> None:
    far, several = replace(PLAN, sqnr_db=-0.5), replace(judged(0.0), outputs=2)
    budget = Budget(max_drop=2.0)  # which 50 images can tell
    assert figures(far, quality=judged(0.0), budget=budget).pays() and not figures(far, quality=several, budget=budget).pays()
    words = figures(far, quality=several, budget=budget).explanation()
    assert "(at least 30 dB asked for: missed, because the metric looks at the first output alone)" in words
    assert figures(far, quality=replace(judged(0.0, "my:own"), outputs=2), budget=budget).pays()  # which is given every output


def test_a_convolution_of_the_network_itself_is_one_too() -> None:
    plan = replace(PLAN, findings={name: Finding(macs=1) for name in ("Conv", "Conv_1", "up/ConvTranspose", "head.Convolved/Gemm")}, kept_float={})
    assert "3 of 3 convolutions and 1 of 1 matrix products" in figures(plan).explanation()


def judged(drop: float, metric: str = "accuracy") -> QualityReport:
    values = {"torch": Quality(metric=metric, value=0.9, count=50), "int8": Quality(metric=metric, value=0.9 - drop, count=50)}
    return QualityReport(qualities=values, changed={"int8": 1}, non_tie_changes={"int8": 1})


def test_every_figure_is_in_the_explanation() -> None:
    words = figures(quality=judged(0.002)).explanation()
    for part in (
        "int8 is taken: 1 of 2 convolutions and 1 of 1 matrix products run as integers, 75% of the multiplications",
        "2.00 times as fast as fp32 at batch 8 (2 against 4 ms)",
        "1.50 times as fast as fp32 at batch 1 (0.6 against 0.9 ms)",
        "loads in 12 ms against 30",
        "its process held at most 150 MiB against 200",
        "the file is 4.00 times smaller",
        "its outputs are 41.3 dB from fp32's, calibrated with 8 images (at least 30 dB asked for, because one image weighs more than 0.5 points)",
        "89.80% accuracy on 50 held-out images against PyTorch's 90.00% accuracy",
    ):
        assert part in words


@pytest.mark.parametrize(
    ("plan", "speedup", "quality", "budget", "reason"),
    [
        (PLAN, 2.0, judged(0.0049), Budget(), ""),
        (PLAN, 2.0, judged(0.0051), Budget(), "because it loses more than the 0.5 points allowed"),
        (PLAN, 2.0, judged(0.6, "psnr_db"), Budget(), "because it loses more than the 0.5 dB allowed"),
        (PLAN, 2.0, judged(0.6, "my:own"), Budget(), "because it loses more than the 0.5 of my:own allowed"),
        (PLAN, 1.05, judged(0.0), Budget(), ""),
        (PLAN, 1.049, judged(0.0), Budget(), "because it is not 1.05 times as fast as fp32"),
        (PLAN, None, judged(0.0), Budget(), "because its speed could not be measured"),
        (replace(PLAN, calibration_images=7), 2.0, judged(0.0), Budget(), "because it was calibrated with 7 images, and 8 are asked for"),
        (replace(PLAN, sqnr_db=29.9), 2.0, judged(0.0), Budget(), "because its outputs are not within 30 dB of fp32's"),  # 50 images cannot tell half a point
        (replace(PLAN, sqnr_db=29.9), 2.0, judged(0.0), Budget(max_drop=2.0), ""),
        (replace(PLAN, sqnr_db=29.9), 2.0, judged(0.0, "psnr_db"), Budget(), ""),
        (replace(PLAN, sqnr_elsewhere={"8x8": 26.5}), 2.0, None, Budget(), ""),
        (PLAN, 2.0, None, Budget(sqnr_floor_db=41.0), ""),
        (PLAN, 2.0, None, Budget(sqnr_floor_db=42.0), "because its outputs are not within 42 dB of fp32's"),
        (replace(PLAN, sqnr_db=float("nan")), 2.0, None, Budget(), "because its outputs are not within 30 dB of fp32's"),
        (PLAN, 2.0, judged(float("nan")), Budget(), "because it loses more than the 0.5 points allowed"),
    ],
)
def test_it_is_taken_only_if_it_pays_and_the_reason_is_told(
    plan: SearchedPlan, speedup: float | None, quality: QualityReport | None, budget: Budget, reason: str
) -> None:
    found = figures(plan, in_batches(speedup) if speedup is not None else {}, quality=quality, budget=budget)
    assert found.pays() == (not reason) and found.speedup == speedup
    words = found.explanation()
    floor_counts = quality is None or too_few_examples(quality.qualities["torch"], budget.max_drop)
    assert (": missed" in words) == (floor_counts and not plan.sqnr_db >= budget.sqnr_floor_db)
    assert all(f"{decibels:.1f} at {size}" in words for size, decibels in plan.sqnr_elsewhere.items())
    assert words.startswith("int8 is taken: ") if not reason else reason in words


def test_outputs_of_integers_are_in_the_explanation() -> None:
    plan = replace(PLAN, agreement={"classes": 0.99996, "count": 1.0, "mask": 0.875})
    words = "calibrated with 8 images, 99.9% of the entries of classes are fp32's, all of the entries of count are fp32's, 87.5% of the entries of mask are"
    assert words in figures(plan).explanation()


@pytest.mark.parametrize(
    ("probes", "unseen", "words"),
    [(0, False, ", calibrated with 8 images"), (4, True, " on 4 images beside the 8 that"), (4, False, " on 4 images of the 8 that")],
)
def test_the_images_that_errors_were_measured_on_are_told(probes: int, unseen: bool, words: str) -> None:
    assert f"41.3 dB from fp32's{words}" in figures(replace(PLAN, probes=probes, unseen=unseen)).explanation()


def test_a_busy_machine_is_told_of() -> None:
    busy = {**LATENCIES, 1: {"fp32": LatencyStats(median_ms=0.9, rounds_ms=(0.9,), waited=0.5), "int8": LatencyStats(median_ms=0.6, rounds_ms=(0.6,))}}
    assert "the machine was busy: threads waited for a processor 50% of their time" in figures(latencies=busy).explanation()
    assert "busy" not in figures().explanation()


def test_a_machine_of_another_kind_says_that_it_did_not_measure() -> None:
    words = figures(latencies={}).explanation()
    assert "neither its kernels nor its speed could be looked at, because this machine is no x86-vnni" in words


def test_a_searched_plan_gets_its_decision() -> None:
    plan = decide(MeasuredVariant(model=b"", plan=PLAN, latencies=LATENCIES, audit={}), SIZES, judged(0.0), Budget())
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
        assert decide(variant, SIZES, quality, budget) is plan
    else:
        with pytest.raises(ExportError, match=f"the replayed plan does not keep the quality budget: {reason}"):
            decide(variant, SIZES, quality, budget)
