import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgeport_export import ExportError
from edgeport_export.network.reference import TorchReference
from edgeport_export.rewrites.finalize import finalize
from edgeport_export.tracing.exporter import trace
from edgeport_export.validation.quality import (
    QualityEvaluator,
    QualityReport,
    drop,
    joined,
    load_metric,
    metric_is_sufficient,
    quality_evaluator,
    too_few_examples,
    unseen_outputs,
)
from edgeport_models import network
from edgeport_runtime import Contract, Quality, SessionOptions
from edgeport_runtime.engine import Arrays, Engine


class Shifted(Engine):
    """An engine that prefers the first class by `bias`."""

    bias = 0.0

    def run(self, inputs) -> Arrays:  # type: ignore[no-untyped-def]
        logits = super().run(inputs)["logits"].copy()
        logits[:, 0] += self.bias
        return {"logits": logits}


def test_changed_labels_and_the_drop_are_counted(tiny: ModuleType, class_contract: Contract) -> None:
    network = tiny.trained_classifier()
    model = finalize(trace(network, class_contract).model, class_contract)
    engines = {"fp32": Engine(model, class_contract, SessionOptions()), "int8": Shifted(model, class_contract, SessionOptions())}
    engines["int8"].bias = 1e6  # type: ignore[attr-defined]
    examples = tiny.brightness_examples(30, seed=4)
    found = QualityEvaluator(TorchReference(network, class_contract), examples).evaluate(engines)
    right = found.qualities["torch"].value
    answers = np.array(found.qualities["torch"].answers)
    assert right > 0.9 and found.qualities["int8"].value == 1 / 3  # always the first of three
    assert found.changed == {"fp32": 0, "int8": int((answers != 0).sum())}
    assert found.non_tie_changes["int8"] == found.changed["int8"]
    assert found.drop("int8") == 100 * (right - 1 / 3) and found.drop("fp32") == 0
    assert found.to_dict()["values"]["torch"] == right


def count_of_images(outputs: Mapping[str, Any], truths: Sequence[Any]) -> float:
    return float(len(truths) == len(outputs["logits"]))


def test_a_metric_of_ones_own_does_not_hide_changed_labels(tiny: ModuleType, class_contract: Contract) -> None:
    network = tiny.trained_classifier()
    model = finalize(trace(network, class_contract).model, class_contract)
    shifted = Shifted(model, class_contract, SessionOptions())
    shifted.bias = 1e6
    found = QualityEvaluator(TorchReference(network, class_contract), tiny.brightness_examples(30, seed=4), ("count", count_of_images)).evaluate(
        {"int8": shifted}
    )
    assert found.qualities["int8"].value == 1.0 and found.qualities["int8"].metric == "count"
    assert found.changed["int8"] == sum(answer != 0 for answer in found.qualities["torch"].answers) > 10


def test_outputs_of_different_sizes_reach_a_metric_one_by_one() -> None:
    small, large = np.zeros((1, 2, 3)), np.ones((1, 5, 3))
    together, apart = joined([small, small]), joined([small, large])
    assert isinstance(together, np.ndarray) and together.shape == (2, 2, 3)
    assert isinstance(apart, list) and [each.shape for each in apart] == [(1, 2, 3), (1, 5, 3)]


def quality(metric: str, value: float, count: int = 100) -> Quality:
    return Quality(metric=metric, value=value, count=count)


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        (quality("accuracy", 0.9), quality("accuracy", 0.875), 2.5),  # percentage points
        (quality("psnr_db", 30.5), quality("psnr_db", 31.0), -0.5),
        (quality("psnr_db", np.inf), quality("psnr_db", np.inf), 0.0),  # both equal their targets
        (quality("psnr_db", np.inf), quality("psnr_db", 50.0), np.inf),
        (quality("my:own", 2.0), quality("my:own", 1.0), 1.0),
    ],
)
def test_a_drop_is_in_the_unit_of_its_metric(before: Quality, after: Quality, lost: float) -> None:
    assert drop(before, after) == pytest.approx(lost)


@pytest.mark.parametrize(
    ("metric", "count", "unseen", "max_drop", "few", "sufficient"),
    [
        ("accuracy", 199, 0, 0.5, True, False),  # one image of 199 weighs 0.503 points
        ("accuracy", 200, 0, 0.5, False, True),
        ("accuracy", 200, 1, 0.5, False, False),  # it looks at the first output alone
        ("psnr_db", 1, 0, 0.5, False, True),
        ("my:own", 1, 1, 0.5, False, True),
    ],
)
def test_a_metric_decides_alone_if_it_can_tell_the_budget_and_sees_every_output(
    metric: str, count: int, unseen: int, max_drop: float, few: bool, sufficient: bool
) -> None:
    found = quality(metric, 0.5, count)
    assert too_few_examples(found, max_drop) == few and metric_is_sufficient(found, unseen, max_drop) == sufficient


def test_a_task_without_a_metric_needs_one(class_contract: Contract, tiny: ModuleType) -> None:
    contract = replace(class_contract, task="tensors", labels=())
    reference, examples = TorchReference(tiny.trained_classifier(), contract), tiny.brightness_examples(3, seed=0)
    assert quality_evaluator(reference, examples, None) is None  # nothing can be judged, and nobody asked for it
    with pytest.raises(ExportError, match="a model of the task 'tensors' has no metric that edgeport knows: name one with --metric"):
        QualityEvaluator(reference, examples)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("accuracy", "expected a metric as my.module:function, got 'accuracy'"),
        ("no_such_module:f", "no_such_module:f: the metric cannot be imported"),
        ("math:no_such_function", "math:no_such_function: the metric cannot be imported"),
        ("math:pi", "math:pi: expected a function that takes outputs and truths, got float"),
    ],
)
def test_a_metric_that_is_none_is_refused(name: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        load_metric(name)


def test_pytorch_runs_once_however_often_engines_are_judged(tiny: ModuleType, class_contract: Contract) -> None:
    network = tiny.trained_classifier()
    reference = TorchReference(network, class_contract)
    evaluator = QualityEvaluator(reference, tiny.brightness_examples(6, seed=4))
    calls: list[int] = []
    reference.network.register_forward_hook(lambda *_: calls.append(1))
    engine = Engine(finalize(trace(network, class_contract).model, class_contract), class_contract, SessionOptions())
    first, second = evaluator.evaluate({"fp32": engine}), evaluator.evaluate({"fp32": engine})
    assert first.qualities == second.qualities and len(calls) == 1  # six images fit one run


def test_a_tasks_own_metric_sees_the_first_output_and_a_detectors_all() -> None:
    detector = network("detector").contract(("a", "b"), 64)
    assert len(detector.outputs) == 3 and unseen_outputs(detector) == 0
    classifier = network("cnn").contract(("a", "b"), 32)
    beside = replace(classifier.outputs[0], name="features", kind="tensor")
    assert unseen_outputs(classifier) == 0 and unseen_outputs(replace(classifier, outputs=(*classifier.outputs, beside))) == 1


def test_a_changed_image_is_told_by_its_place_and_its_pixels(class_contract: Contract, tiny: ModuleType) -> None:
    """One half of the images may judge: the number is that among all of them."""
    network, examples = tiny.trained_classifier(), tiny.brightness_examples(8, seed=4)
    other = copy.deepcopy(network)
    other.head.weight.data.neg_()
    engine = Engine(finalize(trace(other, class_contract).model, class_contract), class_contract, SessionOptions())
    report = QualityEvaluator(TorchReference(network, class_contract), examples).every_second(1).evaluate({"int8": engine})
    listed = report.to_dict()["changed_images"]["int8"]
    assert len(listed) == report.changed["int8"] > 0 and {each["image"] for each in listed} <= {1, 3, 5, 7}
    for each in listed:
        pixels = examples[each["image"]].source
        assert each["pixels_sha256"] == hashlib.sha256(b"(16, 16, 3)" + pixels.tobytes()).hexdigest() and each["truth"] == examples[each["image"]].truth


def test_changed_images_are_listed_the_surest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = Quality(metric="accuracy", value=1.0, count=4, answers=(0, 1, 2, 1), margins=(0.2, 0.9, 0.5, 0.7))
    int8 = Quality(metric="accuracy", value=0.25, count=4, answers=(1, 1, 0, 2), margins=(0.1, 0.8, 0.3, 0.4))
    report = QualityReport(qualities={"torch": torch, "int8": int8}, changed={"int8": 3}, non_tie_changes={"int8": 3}, truths=(0, 1, 2, 2))
    listed = report.to_dict()["changed_images"]["int8"]
    assert listed[0] == {"image": 3, "torch": 1, "answer": 2, "truth": 2, "torch_margin": 0.7, "margin": 0.4}
    assert [each["image"] for each in listed] == [3, 2, 0]
    monkeypatch.setattr("edgeport_export.validation.quality.MOST_CHANGED", 2)
    assert [each["image"] for each in report.to_dict()["changed_images"]["int8"]] == [3, 2]
