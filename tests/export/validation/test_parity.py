from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeport_export.network.reference import TorchReference
from edgeport_export.network.size_sweep import sweep_sizes
from edgeport_export.rewrites.finalize import finalize
from edgeport_export.tracing.exporter import trace
from edgeport_export.validation.parity import _compared, measure_parity, remedy
from edgeport_runtime import Contract, Pixels
from edgeport_runtime.contract import Range, classification, image_axes, pixel_input


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(each for each in model.graph.initializer if each.name == name)


def test_a_sound_export_is_as_near_to_float64_as_torch(tiny: ModuleType, class_contract: Contract) -> None:
    module = tiny.trained_classifier()
    parity = measure_parity(TorchReference(module, class_contract), finalize(trace(module, class_contract).model, class_contract))
    assert parity and parity.worst < 1e-6 and len(parity.cases) > len(sweep_sizes(class_contract))
    assert parity.floors["logits"] < 1e-6 and "parity at" in str(parity)
    assert parity.to_dict()["passed"] is True


@pytest.mark.parametrize(("weight", "factor"), [("network.conv1.weight", 1.001), ("network.conv2.weight", 1.001), ("network.head.bias", 1.001)])
def test_one_changed_weight_fails(tiny: ModuleType, class_contract: Contract, weight: str, factor: float) -> None:
    module = tiny.trained_classifier()
    model = trace(module, class_contract).model
    tensor = initializer(model, weight)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[np.unravel_index(np.argmax(np.abs(values)), values.shape)] *= factor
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, weight))
    parity = measure_parity(TorchReference(module, class_contract), finalize(model, class_contract))
    assert not parity and "FAILED logits at" in str(parity)


def test_a_graph_baked_to_its_example_fails_and_the_sizes_are_named() -> None:
    """What the exporter does to adaptive pooling without the rewrite: the kernel of the example's size."""
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    baked = nn.Sequential(module[0], nn.AvgPool2d(8, 8), nn.Flatten(), module[3])
    axes = {"batch": Range(low=1, high=8)}
    fixed = classification(
        Pixels(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3), tuple("abc"), image_axes(smallest_px=4, largest_px=64, largest_batch=8)
    )
    still = Contract(task="classification", inputs=(pixel_input_of(16),), outputs=fixed.outputs, axes=axes, labels=fixed.labels)
    model = trace(baked, still).model
    parity = measure_parity(TorchReference(module, fixed), finalize(model, fixed))
    failed = {(case.sizes["height"], case.sizes["width"]) for case in parity.failures()}
    assert not parity and (16, 16) not in failed and (17, 16) in failed
    lines = str(parity).splitlines()[1:]
    assert lines and all("onnxruntime failed" in line or "allowed" in line for line in lines)
    assert not any("alone" in line for line in lines)  # of batches that failed as a whole


def pixel_input_of(side: int):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return replace(pixel_input(Pixels(height=side, width=side, mean=(0.5,) * 3, std=(0.5,) * 3)), shape=("batch", side, side, 3))


def test_pixel_outputs_are_compared_before_rounding(tiny: ModuleType, image_contract: Contract) -> None:
    torch.manual_seed(0)
    module = tiny.TinyGenerator()
    model = finalize(trace(module, image_contract).model, image_contract)
    parity = measure_parity(TorchReference(module, image_contract), model)
    assert parity and parity.ranges == {"image.levels": 255.0} and parity.worst < 1e-6
    other = tiny.TinyGenerator()
    other.load_state_dict(module.state_dict())
    with torch.no_grad():
        other.conv2.bias += 1e-5  # a thousandth of a level: the rounded images are all equal
    assert not measure_parity(TorchReference(other, image_contract), model)


def test_a_small_answer_does_not_hide_behind_a_large_one() -> None:
    small, large = np.array([[0.0, 1.0]]), np.array([[0.0, 5.0]])
    noise = 1e-6 * np.array([[0.0, 1.0]])  # of the range at each point, in PyTorch's float32
    rows = [({"batch": 1}, "", "y", small, small + noise, small + 100 * noise), ({"batch": 2}, "", "y", large, large + 5 * noise, large)]
    parity = _compared(["y"], rows)
    assert parity.floors["y"] == pytest.approx(1e-6) and [case.sizes["batch"] for case in parity.failures()] == [1]
    assert parity.ratio(parity.cases[0]) == pytest.approx(100) and parity.ranges["y"] == 5


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int8, np.int64])
def test_flags_and_small_integers_must_be_equal_and_do_not_wrap_around(dtype: type) -> None:
    exact = np.array([[1, 0, 1, 0]]).astype(dtype)
    assert _compared(["y"], [({"batch": 1}, "", "y", exact, exact, exact.copy())])
    parity = _compared(["y"], [({"batch": 1}, "", "y", exact, exact, 1 - exact if dtype is not np.bool_ else ~exact)])
    assert not parity and parity.worst == 1.0 and parity.ranges["y"] == 1.0
    wide = np.array([[-128, 127]]).astype(np.int8)
    assert _compared(["y"], [({"batch": 1}, "", "y", wide, wide, wide)]).ranges["y"] == 255.0


def test_rounding_is_called_rounding_and_fails_all_the_same(class_contract: Contract) -> None:
    exact, unit = np.array([[0.0, 1.0]]), np.array([[0.0, 1.0]])
    own, other = {"batch": 1, "height": 16, "width": 16}, {"batch": 2, "height": 16, "width": 16}
    for off, words in ((9e-7, "add a long sum in parts, or leave batch out"), (9e-3, "right at its own size, but not at others of batch")):
        parity = _compared(["y"], [(own, "", "y", exact, exact, exact), (other, "", "y", exact, exact, exact + off * unit)])
        assert not parity and words in remedy(parity, class_contract, [])
    parity = _compared(["y"], [(own, "", "y", exact, exact, exact + 9e-3 * unit)])
    assert "it is wrong at its own size already" in remedy(parity, class_contract, [])


def test_nan_never_passes(tiny: ModuleType, class_contract: Contract) -> None:
    module = tiny.trained_classifier()
    model = trace(module, class_contract).model
    tensor = initializer(model, "network.head.bias")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(3, np.nan, np.float32), "network.head.bias"))
    assert not measure_parity(TorchReference(module, class_contract), finalize(model, class_contract))
