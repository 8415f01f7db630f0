import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from edgeport_export import ExportError, ExportOptions, OutputError, ParityError, export_bundle, pipeline, quantization
from edgeport_export.pipeline import processor
from edgeport_export.plan import plan_from_dict, read_plan
from edgeport_export.race import Contender, Heat
from edgeport_export.targets import target
from edgeport_runtime import Bundle, Contract, Output, load
from edgeport_runtime import model as runtime_model
from edgeport_runtime.evaluate import Example

pytestmark = pytest.mark.usefixtures("even_race")


def make(tiny: ModuleType, contract: Contract, out: Path, **changes: object) -> Path:
    examples = tiny.brightness_examples(24, seed=2)
    given = {"name": "tiny", "calibration": examples, "held_out": examples, **changes}
    return export_bundle(tiny.trained_classifier(), contract, out, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(
    make_even: Callable[[pytest.MonkeyPatch], None], tiny: ModuleType, class_contract: Contract, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A bundle to look at; the race and the clock are even here, too."""
    with pytest.MonkeyPatch.context() as patch:
        make_even(patch)
        yield make(tiny, class_contract, tmp_path_factory.mktemp("made") / "bundle")


def promised(bundle: Path) -> dict[str, bytes]:
    return {str(p.relative_to(bundle)): p.read_bytes() for p in sorted(bundle.rglob("*")) if p.is_file() and p.name != "evidence.json"}


def test_a_bundle_is_whole_and_equals_pytorch(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> None:
    out = make(tiny, class_contract, tmp_path / "a" / "bundle")
    pixels = np.stack([example.source for example in tiny.brightness_examples(8, seed=9)])
    network = tiny.trained_classifier().double()
    expected = network(torch.from_numpy(pixels).double().permute(0, 3, 1, 2) / 127.5 - 1).detach().numpy()
    for precision, tolerance in (("fp32", 1e-6), ("int8", 0.05)):
        model = load(out, precision=precision)
        assert model.check()
        np.testing.assert_allclose(model.raw(pixels)["logits"], expected, atol=tolerance * np.ptp(expected))
    manifest, evidence = Bundle(out).manifest, Bundle(out).evidence()
    assert manifest.auto["precision"] == "int8" and "2.00 times as fast as fp32 at batch 8 (1 against 2 ms)" in manifest.auto["reason"]
    assert {"torch", "onnxruntime", "edgeport", "numpy"} <= manifest.provenance.keys()
    assert evidence["quality"]["changed"]["fp32"] == 0 and evidence["quality"]["values"]["torch"] > 0.9
    assert evidence["speed"]["ms_per_call"].items() >= {"fp32": 2.0, "int8": 1.0}.items() and evidence["machine"]["threads"] >= 1
    assert manifest.variants[0].onnxruntime == "1.18" and manifest.variants[1].plan["integer_share"] == 1.0


def test_same_network_same_bytes_in_another_folder(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> None:
    first, second = make(tiny, class_contract, tmp_path / "one"), make(tiny, class_contract, tmp_path / "elsewhere" / "two")
    assert promised(first) == promised(second)
    for data in promised(first).values():
        assert str(tmp_path).encode() not in data


def test_fp32_alone_needs_no_images(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> None:
    out = make(tiny, class_contract, tmp_path / "b", calibration=(), held_out=(), options=ExportOptions(precisions=("fp32",)))
    model = load(out)
    assert model.precision == "fp32" and model.reason == "the bundle was made without int8" and model.check()
    assert Bundle(out).evidence()["quality"] is None


@pytest.mark.parametrize(
    ("options", "heats", "said"),
    [
        (ExportOptions(), {"fp32": 1.0, "int8": 1.0}, "int8 is not taken, because it is not 1.05 times as fast as fp32"),
        (ExportOptions(max_drop=0.0), {"fp32": 2.0, "int8": 1.0}, "int8 is not taken, because it loses more than the 0 points allowed"),
    ],
)
def test_int8_that_does_not_pay_is_left_out_unless_somebody_insists(
    tiny: ModuleType, class_contract: Contract, tmp_path: Path, options: ExportOptions, heats: dict[str, float], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "race", lambda *_, **__: {name: Heat(median_ms=ms, rounds_ms=(ms,)) for name, ms in heats.items()})
    if options.max_drop == 0.0:
        monkeypatch.setattr(pipeline.Judgement, "drop", lambda self, precision: 0.1)
    model = load(make(tiny, class_contract, tmp_path / "b", options=options))
    assert said in model.reason and model.bundle is not None
    assert [variant.precision for variant in model.bundle.manifest.variants] == ["fp32"]
    assert "conv1/Conv" in model.bundle.evidence()["int8"]["findings"]
    insisted = load(make(tiny, class_contract, tmp_path / "c", options=replace(options, insist=True)))
    assert insisted.bundle is not None and [variant.precision for variant in insisted.bundle.manifest.variants] == ["fp32", "int8"]
    assert insisted.precision == "fp32" and said in insisted.reason
    assert load(tmp_path / "c", precision="int8").check()


def test_int8_that_is_slower_on_one_image_alone_is_there_for_batches(
    tiny: ModuleType, class_contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def heats(_: object, *, batch: int, **__: object) -> dict[str, Heat]:
        return {name: Heat(median_ms=ms, rounds_ms=(ms,)) for name, ms in (("fp32", 2.0), ("int8", 1.0 if batch > 1 else 3.0))}

    monkeypatch.setattr(quantization, "race", heats)
    path = make(tiny, class_contract, tmp_path / "b")
    alone, together = load(path), load(path, batch=8)
    assert (alone.precision, together.precision) == ("fp32", "int8") and alone.reason == together.reason
    assert "0.67 times as fast as fp32 at batch 1 (3 against 2 ms)" in alone.reason and "for batches of 8 and more" in alone.reason
    again = make(tiny, class_contract, tmp_path / "again", options=ExportOptions(plan=read_plan(path)))
    assert promised(path) == promised(again) and "model.int8.onnx" in promised(again)


@pytest.mark.parametrize(
    ("threads", "raced"),
    [(2, {"fp32", "int8", "fp32 data-parallel", "int8 data-parallel"}), (3, {"fp32", "int8"}), (1, {"fp32", "int8"})],
)
def test_what_batches_gain_from_threads_of_their_own_is_measured_kept_and_replayed(
    tiny: ModuleType, class_contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, raced: set[str]
) -> None:
    asked: dict[int, set[str]] = {}

    def heats(contenders: dict[str, Contender], *, batch: int, **_: object) -> dict[str, Heat]:
        asked[batch] = set(contenders)
        assert all(each.data_parallel == name.endswith("data-parallel") for name, each in contenders.items())
        times = {name: (2.0 if "fp32" in name else 1.0) * (0.8 if each.data_parallel else 1.0) for name, each in contenders.items()}
        return {name: Heat(median_ms=ms, rounds_ms=(ms,)) for name, ms in times.items()}

    monkeypatch.setattr(quantization, "race", heats)
    monkeypatch.setattr(quantization, "usable_threads", lambda: threads)
    path = make(tiny, class_contract, tmp_path / "b")
    assert asked == {8: raced, 1: {"fp32", "int8"}}
    auto = Bundle(path).manifest.auto
    assert auto.get("data_parallel_from") == ("8" if threads == 2 else None)
    assert ("int8 is 1.25 times as fast again at batch 8 where each thread runs images of its own" in auto["reason"]) == (threads == 2)
    assert load(path, batch=8, threads=2).engine.options.data_parallel == (threads == 2)
    again = make(tiny, class_contract, tmp_path / "again", options=ExportOptions(plan=read_plan(path)))
    assert promised(path) == promised(again)


def test_processes_that_the_machine_cannot_hold_are_left_out(
    tiny: ModuleType, class_contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def heats(contenders: dict[str, Contender], **_: object) -> dict[str, Heat]:
        if len(contenders) > 2:
            raise ExportError("fp32 data-parallel could not be timed: its process ended without a word")
        return {name: Heat(median_ms=ms, rounds_ms=(ms,)) for name, ms in (("fp32", 2.0), ("int8", 1.0))}

    monkeypatch.setattr(quantization, "race", heats)
    monkeypatch.setattr(quantization, "usable_threads", lambda: 2)
    auto = Bundle(make(tiny, class_contract, tmp_path / "b")).manifest.auto
    assert auto["precision"] == "int8" and "data_parallel_from" not in auto


def test_the_race_that_counts_brings_its_data_parallel_heat(
    tiny: ModuleType, class_contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    races = iter([(3.0, 4.0, 1.0), (2.0, 4.0, 2.0), (2.5, 4.0, 1.0)])  # fp32, int8, and fp32 data-parallel: of the first and last it would gain

    def heats(_: object, *, batch: int, **__: object) -> dict[str, Heat]:
        fp32, int8, apart = next(races) if batch > 1 else (2.0, 1.0, 2.0)
        times = {"fp32": fp32, "int8": int8, "fp32 data-parallel": apart, "int8 data-parallel": int8}
        return {name: Heat(median_ms=ms, rounds_ms=(ms,)) for name, ms in times.items()}

    monkeypatch.setattr(quantization, "race", heats)
    monkeypatch.setattr(quantization, "usable_threads", lambda: 2)
    auto = Bundle(make(tiny, class_contract, tmp_path / "b")).manifest.auto
    assert auto["precision"] == "fp32" and "(4 against 2 ms)" in auto["reason"] and "data_parallel_from" not in auto


def test_one_slow_process_decides_nothing(tiny: ModuleType, class_contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = iter([(2.0, 3.0), (1.5, 1.0)])  # int8 lost on one image, and then did not

    def heats(_: object, *, batch: int, **__: object) -> dict[str, Heat]:
        fp32, int8 = next(alone) if batch == 1 else (2.0, 1.0)
        return {name: Heat(median_ms=ms, rounds_ms=(ms,)) for name, ms in (("fp32", fp32), ("int8", int8))}

    monkeypatch.setattr(quantization, "race", heats)
    model = load(make(tiny, class_contract, tmp_path / "b"))
    assert model.precision == "int8" and "1.50 times as fast as fp32 at batch 1 (1 against 1.5 ms)" in model.reason


def test_a_replayed_plan_gives_the_same_bytes_whatever_the_clock_says(
    tiny: ModuleType, class_contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(tiny, class_contract, tmp_path / "first")
    plan = read_plan(first)
    assert plan == read_plan(first / "manifest.json") and plan.speedup == 2.0 and plan.verdict.startswith("int8 is taken: 2 of 2 convolutions")
    slow = {"fp32": Heat(median_ms=1.0, rounds_ms=(1.0,)), "int8": Heat(median_ms=9.0, rounds_ms=(9.0,))}
    monkeypatch.setattr(quantization, "race", lambda contenders, **_: slow)
    second = make(tiny, class_contract, tmp_path / "second", options=ExportOptions(plan=plan))
    assert promised(first) == promised(second)
    assert Bundle(second).evidence()["speed"]["ms_per_call"]["int8"] == 9.0  # the evidence is measured anew
    with pytest.raises(ExportError, match="made for another graph"):
        make(tiny, class_contract, tmp_path / "third", options=ExportOptions(plan=replace(plan, graph_sha256="0" * 64)))
    with pytest.raises(ExportError, match=r"does not keep the quality budget: .* dB from fp32, 90 asked for"):
        make(tiny, class_contract, tmp_path / "third", options=ExportOptions(plan=plan, sqnr_floor_db=90.0), held_out=())
    with pytest.raises(ExportError, match="made for the target x86-vnni, not arm64"):
        make(tiny, class_contract, tmp_path / "third", options=ExportOptions(plan=plan, target="arm64"))
    monkeypatch.setattr(pipeline.Judgement, "drop", lambda self, precision: 0.7)
    with pytest.raises(ExportError, match=r"does not keep the quality budget: int8 loses 0\.7, 0\.5 allowed"):
        make(tiny, class_contract, tmp_path / "third", options=ExportOptions(plan=plan))
    assert not (tmp_path / "third").exists()


def test_a_plan_of_before_a_field_came_is_read(made: Path) -> None:
    body = {name: value for name, value in read_plan(made).to_dict().items() if name not in ("agreement", "probes", "unseen", "sha256")}
    sealed = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    assert plan_from_dict({**body, "sha256": sealed}) == replace(read_plan(made), probes=0, unseen=False)


@pytest.mark.parametrize("text", ["", "[]", '{"target": "x86"}', "no json"])
def test_a_file_that_is_no_plan_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ExportError, match="int8 plan"):
        read_plan(tmp_path / "plan.json")
    with pytest.raises(ExportError, match=r"gone\.json: the int8 plan cannot be read"):
        read_plan(tmp_path / "gone.json")


@pytest.mark.parametrize(
    "change",
    [{"limits": {}}, {"integer": "conv1/Conv"}, {"integer": ["conv1/Conv", "gone"]}, {"auto": {"precision": "int4"}}, {"sqnr_db": 99.0}, {"findings": {}}],
    ids=str,
)
def test_a_plan_that_was_edited_is_refused(tiny: ModuleType, class_contract: Contract, made: Path, change: dict[str, Any], tmp_path: Path) -> None:
    body = read_plan(made).to_dict()
    (tmp_path / "plan.json").write_text(json.dumps(body))
    assert read_plan(tmp_path / "plan.json") == read_plan(made)
    (tmp_path / "plan.json").write_text(json.dumps(body | change))
    with pytest.raises(ExportError, match="was changed after it was made"):
        read_plan(tmp_path / "plan.json")


def test_the_audit_lists_what_clips_worst_first(made: Path) -> None:
    audit = Bundle(made).evidence()["int8"]["audit"]
    assert audit["clipping_images"] == 24 and {each["layer"] for each in audit["clipped"]} >= {"conv1/Conv", "head/Gemm"}
    shares = [each["share"] for each in audit["clipped"]]
    assert shares == sorted(shares, reverse=True)


def test_sizes_that_int8_was_not_calibrated_at_are_measured(made: Path) -> None:
    plan = read_plan(made)
    assert set(plan.sqnr_elsewhere) == {"4x4", "32x32"} and all(f"{decibels:.1f} at {size}" in plan.verdict for size, decibels in plan.sqnr_elsewhere.items())


def test_without_held_out_images_some_are_held_back(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> None:
    out = make(tiny, class_contract, tmp_path / "b", calibration=tiny.brightness_examples(20, seed=2), held_out=())
    assert Bundle(out).evidence()["int8"]["audit"]["clipping_images"] == 4 and "on 4 images beside the 16 that it was calibrated with" in read_plan(out).verdict
    few = make(tiny, class_contract, tmp_path / "few", calibration=tiny.brightness_examples(19, seed=2), held_out=())
    audit = Bundle(few).evidence()["int8"]["audit"]
    assert audit["clipping_images"] == 0 and audit["clipped"] is None and "on 8 images of the 19 that it was calibrated with" in read_plan(few).verdict


def test_what_int8_cannot_be_made_for_is_said_before_anything_is_made(class_contract: Contract, tmp_path: Path) -> None:
    class Classes(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)).argmax(1)

    contract = replace(class_contract, task="tensors", labels=(), outputs=(Output(name="classes", dtype="int64", shape=("batch",), kind="tensor"),))
    images = [Example(source=np.full((16, 16, 3), level, np.uint8), truth=0) for level in range(9)]
    said = "every output is integers, on which int8's error cannot be measured"
    with pytest.raises(ExportError, match=said):
        export_bundle(Classes(), contract, tmp_path / "b", name="b", calibration=images, options=ExportOptions(insist=True))
    out = export_bundle(Classes(), contract, tmp_path / "b", name="b", calibration=images)
    assert Bundle(out).manifest.auto["precision"] == "fp32" and said in Bundle(out).manifest.auto["reason"]
    two = replace(contract, inputs=(*contract.inputs, replace(contract.inputs[0], name="more")))
    assert "one image input" in quantization.unfit(two) and not quantization.unfit(class_contract)


def test_outputs_of_integers_are_compared_too(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> None:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 4, 1))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            scores = self.layers(x)
            return scores, scores.argmax(1)

    scores = Output(name="scores", dtype="float32", shape=("batch", 4, "height", "width"), kind="tensor")
    classes = Output(name="classes", dtype="int64", shape=("batch", "height", "width"), kind="tensor")
    contract = replace(class_contract, task="tensors", labels=(), outputs=(scores, classes))
    images = tiny.brightness_examples(8, seed=2)  # of so few, every one is looked at
    out = export_bundle(Both(), contract, tmp_path / "b", name="b", calibration=images, options=ExportOptions(insist=True, sqnr_floor_db=-99.0))
    pixels = np.stack([each.source for each in images])
    fp32, int8 = (load(out, precision=each).raw(pixels)["classes"] for each in ("fp32", "int8"))
    plan = read_plan(out)
    assert plan.agreement == {"classes": round(float((fp32 == int8).mean()), 6)} and 0.5 < plan.agreement["classes"] < 1
    assert f"on 8 images of the 8 that it was calibrated with, {plan.agreement['classes']:.1%} of the entries of classes are fp32's (at least" in plan.verdict


def test_a_batch_to_race_at_that_the_contract_forbids_is_refused_before_any_work(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> None:
    largest = class_contract.largest_batch
    with pytest.raises(ExportError, match=rf"at batches of {largest + 1} \(--batch\), but the contract allows at most {largest}"):
        make(tiny, class_contract, tmp_path / "b", options=ExportOptions(race_batch=largest + 1))
    assert not (tmp_path / "b").exists()


def test_another_kind_of_cpu_is_planned_by_rule_and_not_taken_here(
    tiny: ModuleType, class_contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "integer_nodes", lambda made: set())  # what kernels this machine has says nothing of the other
    other = "arm64" if target("").name != "arm64" else "x86"
    out = make(tiny, class_contract, tmp_path / "b", options=ExportOptions(target=other, insist=True))
    bundle = Bundle(out)
    plan = bundle.variant("int8").plan
    assert plan["target"] == other and plan["speedup"] is None
    assert plan["integer"] and not set(plan["integer"]) & set(plan["kept_float"]) and plan["integer_share"] > 0.5
    assert bundle.manifest.auto["precision"] == "fp32" and f"this machine is no {other}" in bundle.manifest.auto["reason"]
    assert load(out, precision="int8").check()


def test_fp16_is_traced_without_a_card_and_holds_its_golden_cases(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> None:
    out = make(tiny, class_contract, tmp_path / "b", options=ExportOptions(precisions=("fp32", "fp16")))
    model = load(out, precision="fp16")
    assert model.check() and Bundle(out).variant("fp16").bytes < 0.8 * Bundle(out).variant("fp32").bytes
    pixels = np.stack([example.source for example in tiny.brightness_examples(8, seed=9)])
    exact, half = load(out, precision="fp32").raw(pixels)["logits"], model.raw(pixels)["logits"]
    assert half.dtype == np.float32 and 0 < np.abs(exact - half).max() < 0.01 * np.ptp(exact)


def test_half_precision_that_overflows_is_refused(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> None:
    network = tiny.trained_classifier()
    with torch.no_grad():
        network.head.weight *= 1e7
    options = ExportOptions(precisions=("fp32", "fp16"))
    with pytest.raises(ExportError, match="fp16 gives NaN or infinity"):
        export_bundle(network, class_contract, tmp_path / "b", name="b", options=options)
    assert list(tmp_path.iterdir()) == []


def second_class_share(outputs: Mapping[str, Any], truths: Sequence[Any]) -> float:
    return float(np.mean(np.asarray(outputs["logits"]).argmax(axis=1) == 1)) + 0 * len(truths)


def test_a_metric_of_your_own_decides(tiny: ModuleType, class_contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_metrics", type(sys)("my_metrics"))
    sys.modules["my_metrics"].share = second_class_share  # type: ignore[attr-defined]
    out = make(tiny, class_contract, tmp_path / "b", options=ExportOptions(metric="my_metrics:share"))
    quality = Bundle(out).evidence()["quality"]
    assert quality["metric"] == "my_metrics:share" and 0.2 < quality["values"]["int8"] < 0.5
    for metric, said in (
        ("my_metrics:gone", "cannot be imported"),
        ("my_metrics", "expected a metric as my.module:function"),
        ("nowhere:x", "cannot be imported"),
    ):
        with pytest.raises(ExportError, match=said):
            make(tiny, class_contract, tmp_path / "c", options=ExportOptions(metric=metric))
    with pytest.raises(ExportError, match="no held-out images"):
        make(tiny, class_contract, tmp_path / "c", options=ExportOptions(metric="my_metrics:share"), held_out=())


def failing(outputs: Mapping[str, Any], truths: Sequence[Any]) -> float:
    return float(outputs["nothing of the kind"])


def test_a_metric_that_fails_says_so_before_anything_is_made(
    tiny: ModuleType, class_contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "my_metrics", type(sys)("my_metrics"))
    sys.modules["my_metrics"].failing = failing  # type: ignore[attr-defined]
    stages: list[str] = []
    with pytest.raises(ExportError, match=r"the metric my_metrics:failing failed \(KeyError"):
        make(tiny, class_contract, tmp_path / "b", options=ExportOptions(metric="my_metrics:failing"), watch=lambda stage, *_: stages.append(stage))
    assert stages == [] and list(tmp_path.iterdir()) == []


def test_a_metric_lies_in_the_current_folder_and_gives_a_number(
    tiny: ModuleType, class_contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics_of_here.py").write_text("def none(outputs, truths):\n    return float('nan')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ExportError, match="the metric metrics_of_here:none gave nan: expected a finite number"):
        make(tiny, class_contract, tmp_path / "b", options=ExportOptions(metric="metrics_of_here:none"))
    assert not (tmp_path / "b").exists()


class Upscaler(torch.nn.Module):
    """Nothing in it has an integer kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.ConvTranspose2d(3, 3, 2, 2, groups=3)
        torch.nn.init.constant_(self.up.bias, 1.0)  # nothing for relu to cut: of an answer that is nearly zero, only the noise would be left

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.up(x)).mean((2, 3))


def test_a_network_that_has_no_integer_products_is_exported_without_int8(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> None:
    examples = tiny.brightness_examples(12, seed=2)
    reason = r"no product of this network can run as integers \(up/ConvTranspose: onnxruntime has no integer kernel for a transposed convolution in groups\)"
    export_bundle(Upscaler().eval(), class_contract, tmp_path / "b", name="up", calibration=examples)
    model = load(tmp_path / "b")
    assert model.precision == "fp32" and re.match(reason, model.reason)
    with pytest.raises(ExportError, match=reason):
        export_bundle(Upscaler().eval(), class_contract, tmp_path / "c", name="up", calibration=examples, options=ExportOptions(insist=True))
    assert not (tmp_path / "c").exists()


def test_copies_of_one_image_are_one_image(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> None:
    out = make(tiny, class_contract, tmp_path / "b", calibration=tiny.brightness_examples(1, seed=0) * 20)
    assert "int8 is not taken by itself, because it was calibrated with 1 images, and 8 are asked for" in Bundle(out).manifest.auto["reason"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"calibration": [np.zeros((16, 16, 3), np.uint8)]}, r"calibration takes a list of .*Example\(source=…, truth=…\), got list of ndarray"),
        ({"calibration": np.zeros((2, 16, 16, 3), np.uint8)}, "got ndarray"),
        ({"held_out": "photos"}, "held_out takes a list of .*, got str"),
        ({"held_out": [Example(source=np.zeros((16, 16, 3), np.uint8), truth=3)]}, "must be the index of its class, 0 to 2, got 3"),
        ({"held_out": [Example(source=np.zeros((16, 16, 3), np.uint8), truth="dark")]}, "must be the index of its class, 0 to 2, got 'dark'"),
    ],
)
def test_images_that_are_none_are_refused(tiny: ModuleType, class_contract: Contract, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        make(tiny, class_contract, tmp_path / "b", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_brings_its_own_target(tiny: ModuleType, class_contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(tiny, class_contract, tmp_path / "a", options=ExportOptions(target="x86", insist=True))
    again = make(tiny, class_contract, tmp_path / "b", options=ExportOptions(plan=read_plan(made)))
    assert promised(made) == promised(again)
    monkeypatch.setattr(runtime_model, "int8_products_are_exact", lambda: False)  # as an old CPU answers
    for path in (made, made / "model.int8.onnx"):
        assert not load(path, precision="auto").engine.options.exact_int8  # its weights cannot saturate, in its file alone neither
    assert load(make(tiny, class_contract, tmp_path / "vnni", options=ExportOptions(target="x86-vnni")) / "model.int8.onnx").engine.options.exact_int8
    with pytest.raises(ExportError, match="made for the target x86, not arm64"):
        make(tiny, class_contract, tmp_path / "c", options=ExportOptions(plan=read_plan(made), target="arm64"))


def test_a_replayed_plan_brings_int8_back_without_being_told_to(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> None:
    slow = make(tiny, class_contract, tmp_path / "slow", options=ExportOptions(insist=True, sqnr_floor_db=500.0), held_out=())
    assert Bundle(slow).manifest.auto["precision"] == "fp32"
    again = make(tiny, class_contract, tmp_path / "again", options=ExportOptions(plan=read_plan(slow), sqnr_floor_db=500.0), held_out=())
    assert promised(slow) == promised(again) and "model.int8.onnx" in promised(again)


def test_without_images_int8_is_left_out(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> None:
    assert [each.precision for each in Bundle(make(tiny, class_contract, tmp_path / "b", calibration=(), held_out=())).manifest.variants] == ["fp32"]
    with pytest.raises(ExportError, match="int8 needs calibration images"):
        make(tiny, class_contract, tmp_path / "c", calibration=(), held_out=(), options=ExportOptions(insist=True))


def test_without_labels_the_outputs_must_stay_near(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> None:
    kept = load(make(tiny, class_contract, tmp_path / "b", held_out=()))
    assert kept.precision == "int8" and "no held-out images to judge it on" in kept.reason
    model = load(make(tiny, class_contract, tmp_path / "c", held_out=(), options=ExportOptions(sqnr_floor_db=200.0)))
    assert model.precision == "fp32" and "not within 200 dB" in model.reason


def test_a_bundle_that_disagrees_is_not_written(tiny: ModuleType, class_contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = pipeline.finish

    def spoilt(model, contract):  # type: ignore[no-untyped-def]
        for each in model.graph.initializer:
            if each.name == "network.conv1.weight":
                each.raw_data = (np.frombuffer(each.raw_data, np.float32) * np.float32(1.001)).tobytes()
        return finish(model, contract)

    monkeypatch.setattr(pipeline, "finish", spoilt)
    with pytest.raises(ParityError, match="the fp32 graph disagrees with PyTorch, so no bundle was written"):
        make(tiny, class_contract, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_label_refuses_the_bundle(tiny: ModuleType, class_contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = pipeline.Jury.judge
    monkeypatch.setattr(pipeline.Jury, "judge", lambda *arguments: replace(judge(*arguments), decided={"fp32": 2, "int8": 0}))
    with pytest.raises(ParityError, match="fp32 gives another label than PyTorch on 2 of 24 held-out images"):
        make(tiny, class_contract, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "stage",
    ["tracing", "parity with PyTorch", "calibrating int8", "judging int8", "judging on held-out images", "golden cases", "racing fp32 and int8", "writing"],
)
def test_ctrl_c_at_any_stage_leaves_nothing(tiny: ModuleType, class_contract: Contract, tmp_path: Path, stage: str) -> None:
    def watch(name: str, done: int, total: int, note: str = "") -> None:
        if name == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tiny, class_contract, tmp_path / "b", watch=watch)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_kept_unless_forced(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> None:
    stored = Path(__file__).parents[1] / "fixtures" / "format1" / "classifier"
    out = Path(shutil.copytree(stored, tmp_path / "b"))
    before = promised(out)
    with pytest.raises(OutputError, match="exists already"):
        make(tiny, class_contract, out)
    assert promised(out) == before
    make(tiny, class_contract, out, force=True)
    assert json.loads((out / "manifest.json").read_text())["name"] == "tiny"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"options": {}}, "options must be an ExportOptions, got dict"),
        ({"name": None}, "name must be a str, got NoneType"),
        ({"out": 3}, "out must be a str or a Path, got int"),
        ({"contract": {}}, "contract must be an edgeport_runtime.Contract, got dict"),
        ({"network": torch.nn.Identity}, "network must be a torch.nn.Module, got type"),
    ],
)
def test_what_is_of_another_kind_is_refused_by_name(class_contract: Contract, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    given = {"network": torch.nn.Identity(), "contract": class_contract, "out": tmp_path / "b", "name": "b"} | changes
    with pytest.raises(ExportError, match=said):
        export_bundle(**given)


def test_half_precision_that_fails_is_told_from_the_rest(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> None:
    class Narrow(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = tiny.trained_classifier()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.prelu(self.network(x), torch.tensor([0.2]))  # float32, whatever the network is

    given = {"name": "b", "options": ExportOptions(precisions=("fp32", "fp16"))}
    with pytest.raises(ExportError, match=r"^fp32 was made, but fp16 cannot be, so no bundle was written; leave fp16 out with --precision: PyTorch could not"):
        export_bundle(Narrow(), class_contract, tmp_path / "b", **given)  # type: ignore[arg-type]
    assert not (tmp_path / "b").exists()


def test_a_generator(tiny: ModuleType, image_contract: Contract, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pairs = [Example(source=e.source, truth=e.source) for e in tiny.brightness_examples(8, seed=2)]
    out = export_bundle(tiny.TinyGenerator(), image_contract, tmp_path / "g", name="g", calibration=pairs, held_out=pairs)
    assert load(out, precision="fp32").check() and load(out, precision="int8").check()
    assert Bundle(out).evidence()["quality"]["metric"] == "psnr_db"


def test_the_processors_name(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast CPU 9000\n")
    assert processor(tmp_path / "cpuinfo") == "Fast CPU 9000"
    assert processor(tmp_path / "nothing")
