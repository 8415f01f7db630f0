from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from edgeport_export.quality import Jury, _joined
from edgeport_export.trace import finish, trace
from edgeport_export.wrap import Reference
from edgeport_runtime import Contract, SessionOptions
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
    model = finish(trace(network, class_contract).model, class_contract)
    engines = {"fp32": Engine(model, class_contract, SessionOptions()), "int8": Shifted(model, class_contract, SessionOptions())}
    engines["int8"].bias = 1e6  # type: ignore[attr-defined]
    examples = tiny.brightness_examples(30, seed=4)
    found = Jury(class_contract, Reference(network, class_contract), examples).judge(engines)
    right = found.qualities["torch"].value
    answers = np.array(found.qualities["torch"].answers)
    assert right > 0.9 and found.qualities["int8"].value == 1 / 3  # always the first of three
    assert found.changed == {"fp32": 0, "int8": int((answers != 0).sum())}
    assert found.decided["int8"] == found.changed["int8"]
    assert found.drop("int8") == 100 * (right - 1 / 3) and found.drop("fp32") == 0
    assert found.to_dict()["values"]["torch"] == right


def count_of_images(outputs: Mapping[str, Any], truths: Sequence[Any]) -> float:
    return float(len(truths) == len(outputs["logits"]))


def test_a_metric_of_ones_own_does_not_hide_changed_labels(tiny: ModuleType, class_contract: Contract) -> None:
    network = tiny.trained_classifier()
    model = finish(trace(network, class_contract).model, class_contract)
    shifted = Shifted(model, class_contract, SessionOptions())
    shifted.bias = 1e6
    found = Jury(class_contract, Reference(network, class_contract), tiny.brightness_examples(30, seed=4), ("count", count_of_images)).judge({"int8": shifted})
    assert found.qualities["int8"].value == 1.0 and found.qualities["int8"].metric == "count"
    assert found.changed["int8"] == sum(answer != 0 for answer in found.qualities["torch"].answers) > 10


def test_outputs_of_different_sizes_reach_a_metric_one_by_one() -> None:
    small, large = np.zeros((1, 2, 3)), np.ones((1, 5, 3))
    together, apart = _joined([small, small]), _joined([small, large])
    assert isinstance(together, np.ndarray) and together.shape == (2, 2, 3)
    assert isinstance(apart, list) and [each.shape for each in apart] == [(1, 2, 3), (1, 5, 3)]
