from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import nn

from edgeport_export.diagnosis import blame as module
from edgeport_export.diagnosis.blame import blame, blame_inputs
from edgeport_export.network.reference import TorchReference
from edgeport_export.network.size_sweep import MEMORY_BUDGET_BYTES, measured_cost
from edgeport_runtime import Contract


def test_a_sound_graph_has_nothing_to_blame(tiny_bundle: Path, reference: TorchReference) -> None:
    found = blame(onnx.load(tiny_bundle / "model.onnx"), reference)
    assert found and found.first is None and not found.unmatched
    assert [step.modules[-1] for step in found.steps] == ["normalization", "conv1 (Conv2d)", "conv2 (Conv2d)", "head (Linear)"]
    assert all(step.ratio <= 4 for step in found.steps) and "all 4 matched modules agree" in str(found)


@pytest.mark.parametrize("part", ["conv1", "conv2", "head"])
def test_one_median_weight_off_by_a_percent_is_blamed_on_its_module(
    part: str, tiny_bundle: Path, reference: TorchReference, altered: Callable[..., Path]
) -> None:
    found = blame(onnx.load(altered(tiny_bundle / "model.onnx", part, 1.01)), reference)
    assert not found and found.first is not None and found.first.modules[-1].startswith(part)
    assert str(found).startswith(f"the first to differ is {part} (")
    after = [step for step in found.steps if step.is_over and not step.is_first]
    assert all(not step.is_first for step in after) and [step for step in found.steps if step.is_first] == [found.first]


def test_another_normalization_is_no_modules_fault(tiny_bundle: Path, network: nn.Module, class_contract: Contract) -> None:
    model = onnx.load(tiny_bundle / "model.onnx")
    mean = next(each for each in model.graph.initializer if each.name == "mean0")
    mean.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(mean) + np.float32(1), "mean0"))
    found = blame(model, TorchReference(network, class_contract))
    assert found.first is not None and found.first.modules == ("normalization",)


def test_a_difference_after_the_last_module_is_told(tiny_bundle: Path, reference: TorchReference) -> None:
    model = onnx.load(tiny_bundle / "model.onnx")
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "before"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1.001), "more"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["before", "more"], ["logits"], name="edgeport/more"))
    found = blame(model, reference)
    assert found.first is None and found.outputs_over == ("logits",) and not found
    assert "every matched module agrees, and logits does not: the difference comes after head (Linear)" in str(found)


def test_values_are_looked_at_in_groups_that_fit(tiny_bundle: Path, reference: TorchReference, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(tiny_bundle / "model.onnx")
    inputs = blame_inputs(reference)
    whole, seen = blame(model, reference, inputs), []
    outputs = module.module_outputs
    monkeypatch.setattr(module, "module_outputs", lambda reference, arrays, keys: seen.append(len(keys)) or outputs(reference, arrays, keys))  # type: ignore[func-returns-value]
    monkeypatch.setattr(module, "MEMORY_BUDGET_BYTES", 1)
    assert blame(model, reference, inputs) == whole and set(seen) == {1}


def test_inputs_are_single_images_that_fit_into_memory(network: nn.Module, class_contract: Contract) -> None:
    reference = TorchReference(network, class_contract)
    inputs = blame_inputs(reference)
    cost = measured_cost(network, class_contract)
    assert [each["pixels"].shape for each in inputs] == [(1, 16, 16, 3)] * 3
    assert cost({"batch": 1, "height": 16, "width": 16}) <= MEMORY_BUDGET_BYTES
    assert not np.array_equal(inputs[0]["pixels"], inputs[1]["pixels"])
