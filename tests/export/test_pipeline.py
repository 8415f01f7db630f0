import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnxscript import opset20

from edgeport_export import ExportError, ExportOptions, GraphEditor, OutputError, ParityError, PassResult, export_bundle, pipeline, verify
from edgeport_export.benchmark import runner
from edgeport_export.benchmark.runner import LatencyStats
from edgeport_export.quantization import plan_search
from edgeport_export.quantization.plan import read_plan
from edgeport_export.quantization.targets import find_target
from edgeport_runtime import Bundle, Contract, EdgeportError, Example, Output, load, selection

pytestmark = pytest.mark.usefixtures("fixed_latencies")
Make = Callable[..., Path]
Promised = Callable[[Path], dict[str, bytes]]


def test_a_bundle_is_whole_and_equals_pytorch(make_bundle: Make, tiny: ModuleType, tmp_path: Path) -> None:
    out = make_bundle(tmp_path / "a" / "bundle")
    pixels = np.stack([example.source for example in tiny.brightness_examples(8, seed=9)])
    network = tiny.trained_classifier().double()
    expected = network(torch.from_numpy(pixels).double().permute(0, 3, 1, 2) / 127.5 - 1).detach().numpy()
    for precision, tolerance in (("fp32", 1e-6), ("int8", 0.05)):
        model = load(out, precision=precision)
        assert model.check()
        np.testing.assert_allclose(model.raw(pixels)["logits"], expected, atol=tolerance * np.ptp(expected))
    manifest, evidence = Bundle(out).manifest, Bundle(out).evidence()
    assert manifest.auto.precision == "int8" and "2.00 times as fast as fp32 at batch 8" in manifest.auto.reason
    assert {"torch", "onnxruntime", "edgeport", "numpy"} <= manifest.provenance.keys()
    assert evidence["quality"]["changed"]["fp32"] == 0 and evidence["quality"]["values"]["torch"] > 0.9
    assert evidence["speed"]["ms_per_call"].items() >= {"fp32": 2.0, "int8": 1.0}.items() and evidence["machine"]["threads"] >= 1
    assert manifest.variants[0].onnxruntime == "1.18" and manifest.variants[1].plan["integer_share"] == 1.0


def test_same_network_same_bytes_in_another_folder(make_bundle: Make, promised: Promised, tmp_path: Path) -> None:
    first, second = make_bundle(tmp_path / "one"), make_bundle(tmp_path / "elsewhere" / "two")
    assert promised(first) == promised(second)
    for data in promised(first).values():
        assert str(tmp_path).encode() not in data


def test_fp32_alone_needs_no_images(make_bundle: Make, tmp_path: Path) -> None:
    out = make_bundle(tmp_path / "b", calibration=(), held_out=(), options=ExportOptions(precisions=("fp32",)))
    model = load(out)
    assert model.precision == "fp32" and model.reason == "the bundle was made without int8" and model.check()
    assert Bundle(out).evidence()["quality"] is None


@pytest.mark.parametrize(
    ("options", "times_ms", "reason"),
    [
        (ExportOptions(), {"fp32": 1.0, "int8": 1.0}, "int8 is not taken: it is 1.00 times as fast as fp32 at batch 8"),
        (
            ExportOptions(max_drop=0.0),
            {"fp32": 2.0, "int8": 1.0},
            "int8 is not taken: it loses 0.10 points of accuracy on 24 held-out images",
        ),
    ],
)
def test_int8_that_does_not_pay_is_left_out_unless_it_is_asked_for_in_any_case(
    make_bundle: Make, tmp_path: Path, options: ExportOptions, times_ms: dict[str, float], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = {name: LatencyStats(median_ms=ms, rounds_ms=(ms,)) for name, ms in times_ms.items()}
    monkeypatch.setattr(runner, "benchmark", lambda *_, **__: stats)
    if options.max_drop == 0.0:
        monkeypatch.setattr(pipeline.QualityReport, "drop", lambda self, precision: 0.1)
    model = load(make_bundle(tmp_path / "b", options=options))
    assert reason in model.reason and model.bundle is not None
    assert [variant.precision for variant in model.bundle.manifest.variants] == ["fp32"]
    assert "conv1/Conv" in model.bundle.evidence()["int8"]["findings"]
    kept = load(make_bundle(tmp_path / "c", options=replace(options, always_keep_int8=True)))
    assert kept.bundle is not None and [variant.precision for variant in kept.bundle.manifest.variants] == ["fp32", "int8"]
    assert kept.precision == "fp32" and reason in kept.reason
    assert load(tmp_path / "c", precision="int8").check()


def test_int8_that_is_slower_on_one_image_alone_is_there_for_batches(
    make_bundle: Make, promised: Promised, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def latencies(_: object, *, batch: int, **__: object) -> dict[str, LatencyStats]:
        return {name: LatencyStats(median_ms=ms, rounds_ms=(ms,)) for name, ms in (("fp32", 2.0), ("int8", 1.0 if batch > 1 else 3.0))}

    monkeypatch.setattr(runner, "benchmark", latencies)
    path = make_bundle(tmp_path / "b")
    alone, together = load(path), load(path, batch=8)
    assert (alone.precision, together.precision) == ("fp32", "int8") and alone.reason == together.reason
    assert "but 0.67 times at batch 1, so batches of 8 and more take it" in alone.reason
    again = make_bundle(tmp_path / "again", options=ExportOptions(plan=read_plan(path)))
    assert promised(path) == promised(again) and "model.int8.onnx" in promised(again)


def test_a_replayed_plan_gives_the_same_bytes_whatever_the_clock_says(
    make_bundle: Make, promised: Promised, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_bundle(tmp_path / "first")
    plan = read_plan(first)
    assert plan == read_plan(first / "manifest.json") and plan.speedup == 2.0 and plan.selection.reason.startswith("int8 is 2.00 times")
    slow = {"fp32": LatencyStats(median_ms=1.0, rounds_ms=(1.0,)), "int8": LatencyStats(median_ms=9.0, rounds_ms=(9.0,))}
    monkeypatch.setattr(runner, "benchmark", lambda *_, **__: slow)
    second = make_bundle(tmp_path / "second", options=ExportOptions(plan=plan))
    assert promised(first) == promised(second)
    assert Bundle(second).evidence()["speed"]["ms_per_call"]["int8"] == 9.0  # the evidence is measured anew
    with pytest.raises(ExportError, match="made for another graph"):
        make_bundle(tmp_path / "third", options=ExportOptions(plan=replace(plan, graph_sha256="0" * 64)))
    with pytest.raises(ExportError, match=r"does not keep the quality budget: .* dB from fp32, 90 asked for"):
        make_bundle(tmp_path / "third", options=ExportOptions(plan=plan, sqnr_floor_db=90.0), held_out=())
    with pytest.raises(ExportError, match="made for the target x86-vnni, not arm64"):
        make_bundle(tmp_path / "third", options=ExportOptions(plan=plan, target="arm64"))
    monkeypatch.setattr(pipeline.QualityReport, "drop", lambda self, precision: 0.7)
    with pytest.raises(ExportError, match=r"does not keep the quality budget: int8 loses 0\.7, 0\.5 allowed"):
        make_bundle(tmp_path / "third", options=ExportOptions(plan=plan))
    assert not (tmp_path / "third").exists()


def test_a_network_that_int8_cannot_be_made_for_is_refused_before_anything_is_made(class_contract: Contract, tmp_path: Path) -> None:
    class Classes(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)).argmax(1)

    contract = replace(class_contract, task="tensors", labels=(), outputs=(Output(name="classes", dtype="int64", shape=("batch",), kind="tensor"),))
    images = [Example(source=np.full((16, 16, 3), level, np.uint8), truth=0) for level in range(9)]
    words = "every output is integers, on which int8's error cannot be measured"
    with pytest.raises(ExportError, match=words):
        export_bundle(Classes(), contract, tmp_path / "b", name="b", calibration=images, options=ExportOptions(always_keep_int8=True))
    out = export_bundle(Classes(), contract, tmp_path / "b", name="b", calibration=images).folder
    assert Bundle(out).manifest.auto.precision == "fp32" and words in Bundle(out).manifest.auto.reason


def test_a_batch_to_measure_at_that_the_contract_forbids_is_refused_before_any_work(make_bundle: Make, class_contract: Contract, tmp_path: Path) -> None:
    largest = class_contract.largest_batch
    with pytest.raises(ExportError, match=rf"at batches of {largest + 1} \(--batch\), but the contract allows at most {largest}"):
        make_bundle(tmp_path / "b", options=ExportOptions(benchmark_batch=largest + 1))
    assert not (tmp_path / "b").exists()


def test_another_kind_of_cpu_is_planned_by_rule_and_not_taken_here(make_bundle: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_search, "integer_nodes", lambda made: set())  # what kernels this machine has says nothing of the other
    other = "arm64" if find_target(None).name != "arm64" else "x86"
    out = make_bundle(tmp_path / "b", options=ExportOptions(target=other, always_keep_int8=True))
    bundle = Bundle(out)
    plan = bundle.variant("int8").plan
    assert plan["target"] == other and plan["speedup"] is None
    assert plan["integer"] and not set(plan["integer"]) & set(plan["kept_float"]) and plan["integer_share"] > 0.5
    assert bundle.manifest.auto.precision == "fp32" and f"this machine is no {other}" in bundle.manifest.auto.reason
    assert load(out, precision="int8").check()


def test_fp16_is_traced_without_a_card_and_holds_its_golden_cases(make_bundle: Make, tiny: ModuleType, tmp_path: Path) -> None:
    out = make_bundle(tmp_path / "b", options=ExportOptions(precisions=("fp32", "fp16")))
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


def test_a_metric_of_your_own_decides(make_bundle: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_metrics", type(sys)("my_metrics"))
    sys.modules["my_metrics"].share = second_class_share  # type: ignore[attr-defined]
    out = make_bundle(tmp_path / "b", options=ExportOptions(metric="my_metrics:share"))
    quality = Bundle(out).evidence()["quality"]
    assert quality["metric"] == "my_metrics:share" and 0.2 < quality["values"]["int8"] < 0.5
    for metric, words in (
        ("my_metrics:gone", "cannot be imported"),
        ("my_metrics", "expected a metric as my.module:function"),
        ("nowhere:x", "cannot be imported"),
    ):
        with pytest.raises(ExportError, match=words):
            make_bundle(tmp_path / "c", options=ExportOptions(metric=metric))
    with pytest.raises(ExportError, match="no held-out images"):
        make_bundle(tmp_path / "c", options=ExportOptions(metric="my_metrics:share"), held_out=())


def failing(outputs: Mapping[str, Any], truths: Sequence[Any]) -> float:
    return float(outputs["nothing of the kind"])


def test_a_metric_that_fails_says_so_before_anything_is_made(make_bundle: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_metrics", type(sys)("my_metrics"))
    sys.modules["my_metrics"].failing = failing  # type: ignore[attr-defined]
    stages: list[str] = []
    with pytest.raises(ExportError, match=r"the metric my_metrics:failing failed \(KeyError"):
        make_bundle(tmp_path / "b", options=ExportOptions(metric="my_metrics:failing"), progress=lambda stage, *_: stages.append(stage))
    assert stages == [] and list(tmp_path.iterdir()) == []


def test_a_metric_lies_in_the_current_folder_and_gives_a_number(make_bundle: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics_of_here.py").write_text("def none(outputs, truths):\n    return float('nan')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ExportError, match="the metric metrics_of_here:none gave nan: expected a finite number"):
        make_bundle(tmp_path / "b", options=ExportOptions(metric="metrics_of_here:none"))
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
        export_bundle(Upscaler().eval(), class_contract, tmp_path / "c", name="up", calibration=examples, options=ExportOptions(always_keep_int8=True))
    assert not (tmp_path / "c").exists()


def test_copies_of_one_image_are_one_image(make_bundle: Make, tiny: ModuleType, tmp_path: Path) -> None:
    out = make_bundle(tmp_path / "b", calibration=tiny.brightness_examples(1, seed=0) * 20)
    assert Bundle(out).manifest.auto.reason == "int8 is not taken: it was calibrated with 1 images, and at least 8 are needed"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"calibration": [np.zeros((16, 16, 7), np.uint8)]}, r"7"),
        ({"held_out": [np.zeros((16, 16, 3), np.uint8)]}, "held_out: 1 of 1 examples have no truth"),
        ({"held_out": "photos"}, "held_out: photos: expected one folder of images per label"),
        ({"held_out": [Example(source=np.zeros((16, 16, 3), np.uint8), truth=3)]}, "must be the index of its class, 0 to 2, got 3"),
        ({"held_out": [Example(source=np.zeros((16, 16, 3), np.uint8), truth="dark")]}, "must be the index of its class, 0 to 2, got 'dark'"),
    ],
)
def test_images_that_are_none_are_refused(make_bundle: Make, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(EdgeportError, match=words):
        make_bundle(tmp_path / "b", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_brings_its_own_target(make_bundle: Make, promised: Promised, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_bundle(tmp_path / "a", options=ExportOptions(target="x86", always_keep_int8=True))
    again = make_bundle(tmp_path / "b", options=ExportOptions(plan=read_plan(made)))
    assert promised(made) == promised(again)
    monkeypatch.setattr(selection, "int8_products_are_exact", lambda: False)  # as an old CPU answers
    for path in (made, made / "model.int8.onnx"):
        assert not load(path, precision="auto").engine.options.exact_int8  # its weights cannot saturate, in its file alone neither
    assert load(make_bundle(tmp_path / "vnni", options=ExportOptions(target="x86-vnni")) / "model.int8.onnx").engine.options.exact_int8
    with pytest.raises(ExportError, match="made for the target x86, not arm64"):
        make_bundle(tmp_path / "c", options=ExportOptions(plan=read_plan(made), target="arm64"))


def test_a_replayed_plan_brings_int8_back_without_being_told_to(make_bundle: Make, promised: Promised, tmp_path: Path) -> None:
    slow = make_bundle(tmp_path / "slow", options=ExportOptions(always_keep_int8=True, sqnr_floor_db=500.0), held_out=())
    assert Bundle(slow).manifest.auto.precision == "fp32"
    again = make_bundle(tmp_path / "again", options=ExportOptions(plan=read_plan(slow), sqnr_floor_db=500.0), held_out=())
    assert promised(slow) == promised(again) and "model.int8.onnx" in promised(again)


def test_without_images_int8_is_left_out(make_bundle: Make, tmp_path: Path) -> None:
    assert [each.precision for each in Bundle(make_bundle(tmp_path / "b", calibration=(), held_out=())).manifest.variants] == ["fp32"]
    with pytest.raises(ExportError, match="int8 needs calibration images"):
        make_bundle(tmp_path / "c", calibration=(), held_out=(), options=ExportOptions(always_keep_int8=True))


def test_without_labels_the_outputs_must_stay_near(make_bundle: Make, tmp_path: Path) -> None:
    kept = load(make_bundle(tmp_path / "b", held_out=()))
    assert kept.precision == "int8" and re.search(r"its outputs are [4-5]\d\.\d dB from fp32's", kept.reason)
    model = load(make_bundle(tmp_path / "c", held_out=(), options=ExportOptions(sqnr_floor_db=200.0)))
    assert model.precision == "fp32" and "at least 200 dB are asked for" in model.reason


def test_a_bundle_that_disagrees_is_not_written(make_bundle: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finalize = pipeline.finalize_fp32

    def spoilt(model, contract):  # type: ignore[no-untyped-def]
        for each in model.graph.initializer:
            if each.name == "network.conv1.weight":
                each.raw_data = (np.frombuffer(each.raw_data, np.float32) * np.float32(1.001)).tobytes()
        return finalize(model, contract)

    monkeypatch.setattr(pipeline, "finalize_fp32", spoilt)
    with pytest.raises(ParityError, match="the fp32 graph disagrees with PyTorch, so no bundle was written"):
        make_bundle(tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_label_refuses_the_bundle(make_bundle: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = pipeline.QualityEvaluator.evaluate
    changed = {"fp32": 2, "int8": 0}
    monkeypatch.setattr(pipeline.QualityEvaluator, "evaluate", lambda *arguments: replace(evaluate(*arguments), non_tie_changes=changed))
    with pytest.raises(ParityError, match="fp32 gives another label than PyTorch on 2 of 24 held-out images"):
        make_bundle(tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "stage",
    [
        "tracing",
        "parity with PyTorch",
        "calibrating int8",
        "evaluating int8",
        "evaluating on held-out images",
        "golden cases",
        "timing fp32 and int8",
        "writing",
    ],
)
def test_ctrl_c_at_any_stage_leaves_nothing(make_bundle: Make, tmp_path: Path, stage: str) -> None:
    def progress(name: str, done: int, total: int, note: str = "") -> None:
        if name == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_bundle(tmp_path / "b", progress=progress)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_kept_unless_forced(make_bundle: Make, promised: Promised, tmp_path: Path) -> None:
    stored = Path(__file__).parents[1] / "fixtures" / "format1" / "classifier"
    out = Path(shutil.copytree(stored, tmp_path / "b"))
    before = promised(out)
    with pytest.raises(OutputError, match="exists already"):
        make_bundle(out)
    assert promised(out) == before
    make_bundle(out, force=True)
    assert json.loads((out / "manifest.json").read_text())["name"] == "tiny"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"options": {}}, "options must be an ExportOptions, got dict"),
        ({"name": 3}, "name must be a str, got int"),
        ({"out": 3}, "out must be a str or a Path, got int"),
        ({"contract": {}}, "contract must be an edgeport_runtime.Contract or an edgeport_export.ImageTask, got dict"),
        ({"network": torch.nn.Identity}, "network must be a torch.nn.Module, got type"),
    ],
)
def test_what_is_of_another_kind_is_refused_by_name(class_contract: Contract, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    given = {"network": torch.nn.Identity(), "contract": class_contract, "out": tmp_path / "b", "name": "b"} | changes
    with pytest.raises(ExportError, match=words):
        export_bundle(**given)


def relu_as_maximum(x: Any) -> Any:
    return opset20.Max(x, opset20.Constant(value_float=0.0))


def relu_by_hand(editor: GraphEditor, contract: Contract) -> PassResult:
    """Max(x, 0) for every Relu."""
    relus = [node for node in editor.nodes if node.op_type == "Relu"]
    for index, node in enumerate(relus):
        made = editor.builder(f"mine/{index}.")
        made.add("Max", [node.input[0], made.constant("zero", np.array(0.0, np.float32))], into=node.output[0])
        editor.replace(node, made.nodes)
    return PassResult(changed=len(relus))


def larger_bias(editor: GraphEditor, contract: Contract) -> PassResult:
    node = next(node for node in editor.nodes if node.op_type == "Gemm")
    editor.set_array(node.input[2], editor.array(node.input[2]) + np.float32(1e-3))
    return PassResult(changed=1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"translations": {torch.ops.aten.relu.default: relu_as_maximum}}, {"translations": f"aten.relu.default -> {__name__}:relu_as_maximum"}),
        ({"passes": [relu_by_hand]}, {"passes": f"{__name__}:relu_by_hand"}),
    ],
)
def test_a_users_own_translations_and_passes_make_the_graph_and_are_named(
    tiny: ModuleType, class_contract: Contract, tmp_path: Path, options: dict[str, Any], named: dict[str, str]
) -> None:
    network = tiny.trained_classifier()
    bundle = export_bundle(network, class_contract, tmp_path / "b", options=ExportOptions(precisions=("fp32",), **options))
    operators = {node.op_type for node in onnx.load(bundle.folder / "model.onnx").graph.node}
    assert "Max" in operators and "Relu" not in operators and verify(bundle, network)
    assert bundle.manifest.provenance.items() >= named.items() and bundle.manifest.name == "b"


@pytest.mark.parametrize(
    ("own", "error", "message"),
    [
        (larger_bias, ParityError, "the fp32 graph disagrees with PyTorch, so no bundle was written"),
        (lambda editor, contract: None, ExportError, "must return an edgeport_export.PassResult, got NoneType"),
        (lambda editor, contract: editor.nothing, ExportError, r"the pass .*<lambda> failed \(AttributeError"),
    ],
)
def test_a_pass_that_is_wrong_writes_nothing(
    tiny: ModuleType, class_contract: Contract, tmp_path: Path, own: Any, error: type[ExportError], message: str
) -> None:
    with pytest.raises(error, match=message):
        export_bundle(tiny.trained_classifier(), class_contract, tmp_path / "b", options=ExportOptions(precisions=("fp32",), passes=[own]))
    assert list(tmp_path.iterdir()) == []


def test_a_metric_may_be_a_function(make_bundle: Make, tmp_path: Path) -> None:
    seen: list[int] = []

    def share_of_dark(outputs: Mapping[str, Any], truths: Sequence[Any]) -> float:
        seen.append(len(truths))
        return float((outputs["logits"].argmax(1) == 0).mean())

    evidence = Bundle(make_bundle(tmp_path / "b", options=ExportOptions(metric=share_of_dark))).evidence()
    assert evidence["quality"]["metric"].endswith("share_of_dark") and set(seen) == {24}


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
    out = export_bundle(tiny.TinyGenerator(), image_contract, tmp_path / "g", name="g", calibration=pairs, held_out=pairs).folder
    assert load(out, precision="fp32").check() and load(out, precision="int8").check()
    quality = Bundle(out).evidence()["quality"]
    assert quality["metric"] == "psnr_db" and quality["ssim"].keys() == quality["values"].keys() and 0 < quality["ssim"]["fp32"] <= 1
