"""The int8 variant, with latencies that are made up, so that what follows from them is known."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeport_export import ExportError, ExportOptions, export_bundle, pipeline
from edgeport_export.benchmark import runner
from edgeport_export.benchmark.runner import EngineSpec, LatencyStats
from edgeport_export.errors import NoIntegerProducts
from edgeport_export.quantization.budget import Budget
from edgeport_export.quantization.decision import decide
from edgeport_export.quantization.image_roles import Images
from edgeport_export.quantization.int8_settings import Int8Settings, Measuring
from edgeport_export.quantization.int8_variant import MeasuredVariant, int8_unsupported_reason, make_int8_variant
from edgeport_export.quantization.plan import Plan, read_plan
from edgeport_export.quantization.targets import TARGETS, find_target
from edgeport_export.tracing.exporter import trace
from edgeport_runtime import Bundle, Contract, Output, load
from edgeport_runtime.manifest import Selection

pytestmark = pytest.mark.usefixtures("fixed_latencies")
Make = Callable[..., Path]
Promised = Callable[[Path], dict[str, bytes]]
HERE = find_target(None).name
FASTER = {"fp32": 2.0, "int8": 1.0}


def stats(times_ms: Mapping[str, float]) -> dict[str, LatencyStats]:
    return {name: LatencyStats(median_ms=ms, rounds_ms=(ms,)) for name, ms in times_ms.items()}


@pytest.fixture(scope="module")
def traced(tiny: ModuleType, class_contract: Contract) -> onnx.ModelProto:
    return trace(tiny.trained_classifier(), class_contract).model


@pytest.fixture
def measured(traced: onnx.ModelProto, tiny: ModuleType, class_contract: Contract) -> Callable[..., MeasuredVariant]:
    """The tiny classifier's variant under these latencies, or from this plan."""

    def made(latencies: Callable[..., dict[str, LatencyStats]], threads: int = 1, plan: Plan | None = None, target: str = HERE) -> MeasuredVariant:
        settings = Int8Settings(target=TARGETS[target], budget=Budget(), batch=8, plan=plan)
        measuring = Measuring(benchmark=latencies, pair_timer=runner.PairTimer, threads=lambda: threads)
        return make_int8_variant(traced, class_contract, settings, Images(sample=tiny.brightness_examples(24, seed=2)), None, measuring, lambda *_: None)

    return made


def selection(variant: MeasuredVariant) -> Selection:
    return decide(variant, None, Budget()).selection


@pytest.mark.parametrize(
    ("threads", "engines"),
    [(2, {"fp32", "int8", "fp32 split batch", "int8 split batch"}), (3, {"fp32", "int8"}), (1, {"fp32", "int8"})],
)
def test_split_batches_are_measured_if_the_batch_divides_by_the_threads(measured: Callable[..., MeasuredVariant], threads: int, engines: set[str]) -> None:
    asked: dict[int, set[str]] = {}

    def latencies(engines: dict[str, EngineSpec], *, batch: int, **_: object) -> dict[str, LatencyStats]:
        asked[batch] = set(engines)
        assert all(each.split_batch == name.endswith("split batch") for name, each in engines.items())
        return stats({name: (2.0 if "fp32" in name else 1.0) * (0.8 if each.split_batch else 1.0) for name, each in engines.items()})

    found = selection(measured(latencies, threads))
    assert asked == {8: engines, 1: {"fp32", "int8"}}
    assert found.split_batch_from == (8 if threads == 2 else None)


def test_processes_that_the_machine_cannot_hold_are_left_out(measured: Callable[..., MeasuredVariant]) -> None:
    def latencies(engines: dict[str, EngineSpec], **_: object) -> dict[str, LatencyStats]:
        if len(engines) > 2:
            raise ExportError("fp32 split batch could not be timed: its process ended without a word")
        return stats(FASTER)

    found = selection(measured(latencies, threads=2))
    assert found == Selection(precision="int8", reason=found.reason)


def test_the_measurement_that_counts_brings_its_split_batches_along(measured: Callable[..., MeasuredVariant]) -> None:
    attempts = iter([(3.0, 4.0, 1.0), (2.0, 4.0, 2.0), (2.5, 4.0, 1.0)])  # fp32, int8, and fp32 split batch: of the first and last it would gain

    def latencies(_: object, *, batch: int, **__: object) -> dict[str, LatencyStats]:
        fp32, int8, split = next(attempts) if batch > 1 else (2.0, 1.0, 2.0)
        return stats({"fp32": fp32, "int8": int8, "fp32 split batch": split, "int8 split batch": int8})

    found = selection(measured(latencies, threads=2))
    assert found == Selection(precision="fp32", reason=found.reason) and "it is 0.50 times as fast as fp32 at batch 8" in found.reason


@pytest.mark.parametrize(
    ("attempts", "used", "speedup"),
    [
        ([(1.12, 1.0), (1.0, 1.05), (1.01, 1.03)], 3, 1.0),  # int8 had the better process
        ([(1.2, 1.0), (1.2, 1.1), (1.25, 1.05)], 3, 1.2),
        ([(1.0, 1.1), (1.3, 1.0), (1.2, 0.9)], 3, 1.11),  # fp32 had it
        ([(2.0, 1.6), (1.0, 1.6)], 1, 1.25),
        ([(1.5, 1.3), (1.6, 1.1)], 2, 1.36),
    ],
)
def test_a_narrow_win_is_measured_again_as_a_loss_is(
    measured: Callable[..., MeasuredVariant], attempts: list[tuple[float, float]], used: int, speedup: float
) -> None:
    left = list(attempts)

    def latencies(_: object, *, batch: int, **__: object) -> dict[str, LatencyStats]:
        return stats(dict(zip(("fp32", "int8"), left.pop(0) if batch > 1 else (2.0, 1.0), strict=True)))

    found = selection(measured(latencies))
    assert len(attempts) - len(left) == used
    assert f"it is {speedup:.2f} times" in found.reason or f"int8 is {speedup:.2f} times" in found.reason


def test_one_slow_process_decides_nothing(measured: Callable[..., MeasuredVariant]) -> None:
    alone = iter([(2.0, 3.0), (1.5, 1.0)])  # int8 lost on one image, and then did not

    def latencies(_: object, *, batch: int, **__: object) -> dict[str, LatencyStats]:
        return stats(dict(zip(("fp32", "int8"), next(alone) if batch == 1 else (2.0, 1.0), strict=True)))

    found = selection(measured(latencies))
    assert found.precision == "int8" and "1.50 times at batch 1" in found.reason


def test_a_variant_for_another_kind_of_cpu_is_not_timed_here(measured: Callable[..., MeasuredVariant]) -> None:
    def latencies(*_: object, **__: object) -> dict[str, LatencyStats]:
        raise AssertionError("nothing can be timed for another machine")

    other = "arm64" if HERE != "arm64" else "x86"
    variant = measured(latencies, target=other)
    assert variant.latencies == {} and variant.plan.target == other and f"this machine is no {other}" in selection(variant).reason


def test_a_replayed_plan_gives_the_same_bytes_and_nothing_is_searched(measured: Callable[..., MeasuredVariant]) -> None:
    first = measured(lambda *_, **__: stats(FASTER))
    plan = decide(first, None, Budget())
    again = measured(lambda *_, **__: stats({"fp32": 1.0, "int8": 9.0}), plan=plan)
    assert again.model == first.model and again.plan is plan and again.audit == {}
    assert again.latencies[8]["int8"].median_ms == 9.0  # the evidence is measured anew


@pytest.mark.parametrize(
    ("change", "target", "message"),
    [
        ({"graph_sha256": "0" * 64}, HERE, "made for another graph"),
        ({"target": "arm64" if HERE != "arm64" else "x86"}, HERE, "was made for the target .*, not"),
    ],
)
def test_a_plan_for_something_else_is_refused(measured: Callable[..., MeasuredVariant], change: dict[str, str], target: str, message: str) -> None:
    first = measured(lambda *_, **__: stats(FASTER))
    plan = replace(decide(first, None, Budget()), **change)
    with pytest.raises(ExportError, match=message):
        measured(lambda *_, **__: stats(FASTER), plan=plan, target=target)


def test_a_network_without_integer_products_says_why(class_contract: Contract, tiny: ModuleType) -> None:
    class Means(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    settings = Int8Settings(target=TARGETS[HERE], budget=Budget(), batch=8)
    traced = trace(Means(), class_contract).model
    with pytest.raises(NoIntegerProducts, match="no product of this network can run as integers, so there is no int8 variant of it"):
        make_int8_variant(traced, class_contract, settings, Images(sample=tiny.brightness_examples(8, seed=0)), None, Measuring(), lambda *_: None)


def test_split_batches_are_kept_in_the_bundle_and_replayed(make_bundle: Make, promised: Promised, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"fp32": 2.0, "int8": 1.0, "fp32 split batch": 1.6, "int8 split batch": 0.8}
    monkeypatch.setattr(runner, "benchmark", lambda engines, **_: stats({name: times[name] for name in engines}))
    monkeypatch.setattr(pipeline, "Measuring", partial(Measuring, threads=lambda: 2))
    path = make_bundle(tmp_path / "b")
    assert Bundle(path).manifest.auto.split_batch_from == 8
    assert load(path, batch=8, threads=2).engine.options.split_batch and not load(path, batch=7, threads=2).engine.options.split_batch
    again = make_bundle(tmp_path / "again", options=ExportOptions(plan=read_plan(path)))
    assert promised(path) == promised(again)


def test_the_audit_lists_what_clips_worst_first(tiny_bundle: Path) -> None:
    audit = Bundle(tiny_bundle).evidence()["int8"]["audit"]
    assert audit["clipping_images"] == 24 and {each["layer"] for each in audit["clipped"]} >= {"conv1/Conv", "head/Gemm"}
    shares = [each["share"] for each in audit["clipped"]]
    assert shares == sorted(shares, reverse=True)


def test_sizes_that_int8_was_not_calibrated_at_are_measured(tiny_bundle: Path) -> None:
    plan = read_plan(tiny_bundle)
    assert set(plan.sqnr_elsewhere) == {"4x4", "32x32"}
    assert Bundle(tiny_bundle).evidence()["summary"]["variants"]["int8"]["sqnr_elsewhere_db"] == plan.sqnr_elsewhere


def test_without_held_out_images_some_are_held_back(make_bundle: Make, tiny: ModuleType, tmp_path: Path) -> None:
    out = make_bundle(tmp_path / "b", calibration=tiny.brightness_examples(20, seed=2), held_out=())
    assert Bundle(out).evidence()["int8"]["audit"]["clipping_images"] == 4
    plan = read_plan(out)
    assert (plan.probes, plan.unseen, plan.calibration_images) == (4, True, 16)
    few = make_bundle(tmp_path / "few", calibration=tiny.brightness_examples(19, seed=2), held_out=())
    audit = Bundle(few).evidence()["int8"]["audit"]
    assert audit["clipping_images"] == 0 and audit["clipped"] is None
    plan = read_plan(few)
    assert (plan.probes, plan.unseen, plan.calibration_images) == (8, False, 19)


class ScoresAndClasses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.layers(x)
        return scores, scores.argmax(1)


SCORES = Output(name="scores", dtype="float32", shape=("batch", 4, "height", "width"), kind="tensor")
CLASSES = Output(name="classes", dtype="int64", shape=("batch", "height", "width"), kind="tensor")


def test_outputs_of_integers_are_compared_too(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> None:
    contract = replace(class_contract, task="tensors", labels=(), outputs=(SCORES, CLASSES))
    images = tiny.brightness_examples(8, seed=2)  # of so few, every one is looked at
    options = ExportOptions(always_keep_int8=True, sqnr_floor_db=-99.0)
    out = export_bundle(ScoresAndClasses(), contract, tmp_path / "b", name="b", calibration=images, options=options).folder
    pixels = np.stack([each.source for each in images])
    fp32, int8 = (load(out, precision=each).raw(pixels)["classes"] for each in ("fp32", "int8"))
    plan = read_plan(out)
    share = plan.agreement["classes"]
    assert plan.agreement == {"classes": round(float((fp32 == int8).mean()), 6)} and 0.5 < share < 1
    assert Bundle(out).evidence()["summary"]["variants"]["int8"]["agreement"] == plan.agreement


def two_images(contract: Contract) -> Contract:
    return replace(contract, task="tensors", labels=(), outputs=(SCORES,), inputs=(*contract.inputs, replace(contract.inputs[0], name="more")))


def classes_alone(contract: Contract) -> Contract:
    return replace(contract, task="tensors", labels=(), outputs=(CLASSES,))


def tensors_in(contract: Contract) -> Contract:
    return replace(contract, task="tensors", labels=(), outputs=(SCORES,), inputs=(replace(contract.inputs[0], dtype="float32", pixels=None),))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda contract: contract, ""),
        (two_images, "one image input"),
        (tensors_in, "one image input"),
        (classes_alone, "every output is integers"),
        (lambda contract: replace(classes_alone(contract), outputs=(CLASSES, SCORES)), ""),
    ],
)
def test_contracts_that_int8_cannot_be_made_for(change: Callable[[Contract], Contract], reason: str, class_contract: Contract) -> None:
    found = int8_unsupported_reason(change(class_contract))
    assert reason in found if reason else not found


def test_labels_decide_for_a_classifier_without_truth(make_bundle: Make, tiny: ModuleType, tmp_path: Path) -> None:
    """Dark and bright are told apart surely, so no label changes, however far the logits are from fp32's by a floor that nothing reaches."""
    images = tiny.brightness_examples(120, seed=2)
    out = make_bundle(tmp_path / "b", calibration=images, held_out=(), options=ExportOptions(sqnr_floor_db=200.0, calibration_images=100))
    plan, manifest, evidence = read_plan(out), Bundle(out).manifest, Bundle(out).evidence()
    assert plan.changes is not None and (plan.calibration_images, plan.probes, plan.unseen) == (80, 32, True)  # of 20 held back and 20 spare, 8 are probes
    fp32, int8 = (load(out, precision=each).batch([each.source for each in images]) for each in ("fp32", "int8"))
    assert plan.changes.clear >= 30 and plan.changes.clear_changed == 0
    assert sum(a.index != b.index for a, b in zip(fp32, int8, strict=True)) <= 2  # close ones
    assert manifest.auto.precision == "int8" and f"it changes 0 of {plan.changes.clear} clear labels" in manifest.auto.reason
    assert evidence["summary"]["variants"]["int8"]["changed_labels"] == plan.changes.close_changed
    assert any("its labels were compared with fp32's on 32 images" in each for each in evidence["summary"]["warnings"])
    again = make_bundle(tmp_path / "again", calibration=images, held_out=(), options=ExportOptions(plan=plan, sqnr_floor_db=200.0, calibration_images=100))
    assert read_plan(again) == plan


def test_few_images_are_held_to_the_floor(make_bundle: Make, tiny: ModuleType, tmp_path: Path) -> None:
    out = make_bundle(tmp_path / "b", calibration=tiny.brightness_examples(60, seed=2), held_out=(), options=ExportOptions(sqnr_floor_db=200.0))
    assert "dB from fp32's, and at least 200 dB are asked for" in Bundle(out).manifest.auto.reason


def test_a_distance_is_told_with_its_uncertainty(make_bundle: Make, tiny: ModuleType, tmp_path: Path) -> None:
    images = tiny.brightness_examples(60, seed=2)
    out = make_bundle(tmp_path / "b", calibration=images, held_out=(), options=ExportOptions(sqnr_floor_db=200.0, calibration_images=30))
    reason = Bundle(out).manifest.auto.reason
    assert re.search(r"its outputs are [3-6]\d\.\d dB from fp32's .± \d\.\d with other images., and at least 200 dB are asked for", reason), reason
