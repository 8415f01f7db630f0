"""The figures of an export, held against figures worked out by hand."""

import json
from dataclasses import replace

import pytest

from edgeport_export.benchmark.runner import LatencyStats
from edgeport_export.quantization.budget import Budget
from edgeport_export.quantization.plan import Finding, Plan
from edgeport_export.quantization.summary import integer_counts, split_gain, summarize
from edgeport_export.validation.quality import QualityReport
from edgeport_runtime import Quality
from edgeport_runtime.manifest import Selection


def stats(ms: float, *, load_ms: float = 1.0, mib: int = 100) -> LatencyStats:
    return LatencyStats(median_ms=ms, rounds_ms=(ms,), load_ms=load_ms, peak_bytes=mib * 2**20)


PLAN = Plan(
    target="x86-vnni",
    formats="U8 activations, S8 weights per channel",
    method="minmax",
    integer=("a/Conv", "b/Gemm"),
    kept_float={"c/Conv": "time: it is faster in float"},
    integer_share=0.75,
    ranges={},
    graph_sha256="0" * 64,
    calibration_images=32,
    calibration_sha256="1" * 64,
    batch=8,
    sqnr_db=41.26,
    sqnr_elsewhere={"8x8": 26.5, "32x32": 35.0},
    findings={"a/Conv": Finding(macs=2), "b/Gemm": Finding(macs=1), "c/Conv": Finding(macs=1)},
    agreement={"classes": 0.99},
    probes=8,
    unseen=True,
    speedup=2.0,
    selection=Selection(precision="int8", reason="r"),
)
LATENCIES = {
    8: {"fp32": stats(4.0, load_ms=30.44, mib=200), "int8": stats(2.0, load_ms=12.0, mib=150), "int8 split batch": stats(1.6)},
    1: {"fp32": stats(0.9), "int8": stats(0.6)},
}
SIZES = {"fp32": 4000, "int8": 1000}
QUALITY = QualityReport(
    qualities={name: Quality(metric="accuracy", value=value, count=50) for name, value in (("torch", 0.9), ("fp32", 0.9), ("int8", 0.88))},
    changed={"fp32": 0, "int8": 1},
    non_tie_changes={"fp32": 0, "int8": 1},
)


def test_what_was_noticed_is_told() -> None:
    assert summarize({"fp32": 4000}, {8: {"fp32": stats(4.0)}}, None, None, Budget(), ["half of it is black"])["warnings"] == ["half of it is black"]


def test_every_figure_of_every_variant() -> None:
    found = summarize(SIZES, LATENCIES, QUALITY, PLAN, Budget())
    assert found["variants"] == {
        "fp32": {
            "bytes": 4000,
            "ms_per_call": {"8": 4.0, "1": 0.9},
            "speedup": {"8": 1.0, "1": 1.0},
            "split_batch_speedup": None,
            "load_ms": 30.4,
            "peak_mib": 200.0,
            "quality": 0.9,
            "changed_labels": 0,
            "sqnr_db": None,
            "sqnr_elsewhere_db": {},
            "agreement": {},
            "integer_share": None,
        },
        "int8": {
            "bytes": 1000,
            "ms_per_call": {"8": 2.0, "1": 0.6},
            "speedup": {"8": 2.0, "1": 1.5},
            "split_batch_speedup": 1.25,
            "load_ms": 12.0,
            "peak_mib": 150.0,
            "quality": 0.88,
            "changed_labels": 1,
            "sqnr_db": 41.26,
            "sqnr_elsewhere_db": {"8x8": 26.5, "32x32": 35.0},
            "agreement": {"classes": 0.99},
            "integer_share": 0.75,
        },
    }
    assert found["integer"] == {"convolutions": {"integer": 1, "all": 2}, "matrix products": {"integer": 1, "all": 1}}
    assert found["kept_float"] == {"c/Conv": "time: it is faster in float"}
    assert json.loads(json.dumps(found)) == found


def test_fp32_alone() -> None:
    found = summarize({"fp32": 4000, "fp16": 2000}, {8: {"fp32": stats(4.0)}}, None, None, Budget())
    assert found["variants"]["fp16"]["ms_per_call"] == {} and found["variants"]["fp16"]["load_ms"] is None
    assert (found["integer"], found["kept_float"], found["warnings"]) == ({}, {}, [])


def test_a_convolution_of_the_network_itself_is_one_too() -> None:
    names = ("Conv", "Conv_1", "up/ConvTranspose", "head.Convolved/Gemm")
    counts = integer_counts(replace(PLAN, findings={name: Finding(macs=1) for name in names}, kept_float={}))
    assert counts == {"convolutions": {"integer": 3, "all": 3}, "matrix products": {"integer": 1, "all": 1}}


def test_the_gain_of_split_batches_is_the_median_over_rounds() -> None:
    whole, split = replace(stats(2.0), rounds_ms=(2.0, 4.0, 6.0)), replace(stats(1.0), rounds_ms=(1.0, 1.0, 4.0))
    assert split_gain({8: {"fp32": whole, "fp32 split batch": split}}, 8, "fp32") == 2.0
    assert split_gain({8: {"fp32": whole}}, 8, "fp32") is None and split_gain({}, 8, "fp32") is None


FAR = "int8 is further from fp32 at other sizes: 26.5 dB at 8x8"
FEW = "50 held-out images cannot tell a loss of 0.5 points, so int8 must stay near fp32, too"
BUSY = {8: {**LATENCIES[8], "fp32": replace(stats(4.0), waited=0.5)}}


@pytest.mark.parametrize(
    ("latencies", "quality", "plan", "budget", "warnings"),
    [
        (LATENCIES, QUALITY, PLAN, Budget(max_drop=3.0, sqnr_floor_db=20.0), []),
        (LATENCIES, QUALITY, PLAN, Budget(), [FEW, FAR]),
        (LATENCIES, replace(QUALITY, unseen=1), PLAN, Budget(max_drop=3.0, sqnr_floor_db=20.0), ["the metric looks at the first output alone"]),
        (LATENCIES, None, PLAN, Budget(), ["there were no held-out images to evaluate int8 on: its distance from fp32 was measured on 8 images", FAR]),
        (LATENCIES, None, replace(PLAN, unseen=False), Budget(sqnr_floor_db=20.0), ["there were no held-out images to evaluate int8 on"]),
        ({8: {"fp32": stats(1.0)}}, QUALITY, PLAN, Budget(max_drop=3.0, sqnr_floor_db=20.0), ["the speed of int8 was not measured, because this machine is"]),
        (BUSY, QUALITY, PLAN, Budget(max_drop=3.0, sqnr_floor_db=20.0), ["the machine was busy: threads waited for a processor 50% of their time"]),
    ],
)
def test_what_makes_the_figures_less_sure_is_warned_of(
    latencies: dict[int, dict[str, LatencyStats]], quality: QualityReport | None, plan: Plan, budget: Budget, warnings: list[str]
) -> None:
    found = summarize(SIZES, latencies, quality, plan, budget)["warnings"]
    assert len(found) == len(warnings) and all(each.startswith(words) for each, words in zip(found, warnings, strict=True))
