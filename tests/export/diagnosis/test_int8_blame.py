from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from edgeport_export.diagnosis.int8_blame import Int8Blame, int8_blame
from edgeport_export.quantization.calibration import calibrate
from edgeport_export.quantization.qdq import observed_values, quantize
from edgeport_export.rewrites.finalize import finalize, finalize_fp32
from edgeport_runtime import Bundle, Contract, Example


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x))).mean((2, 3))[:, :3]


@pytest.fixture
def blamed(quantizable: Callable, class_contract: Contract) -> Callable[..., Int8Blame]:
    """What int8 costs in a network of two convolutions. `scale`: of ranges, by the part of a value's name."""

    def made(network: nn.Module, scale: float = 1.0, change: Callable[[onnx.ModelProto], None] = lambda _: None) -> Int8Blame:
        graph = quantizable(network, class_contract)
        generator = np.random.default_rng(0)
        examples = [Example(source=generator.integers(0, 256, (16, 16, 3)).astype(np.uint8)) for _ in range(8)]
        ranges = dict(calibrate(graph.model, observed_values(graph.model, graph.target), graph.contract, examples).ranges("minmax"))
        relu = next(node.output[0] for node in graph.model.graph.node if node.op_type == "Relu")
        ranges[relu] = (ranges[relu][0] * scale, ranges[relu][1] * scale)
        int8 = onnx.load_from_string(finalize(quantize(graph.model, class_contract, frozenset(graph.quantizable), ranges, graph.target), class_contract))
        change(int8)
        fp32 = onnx.load_from_string(finalize_fp32(graph.model, class_contract))
        inputs = [{"pixels": np.stack([each.source for each in examples])}]
        return int8_blame(fp32, int8, class_contract, inputs, rounded_to_nearest=True)

    return made


def test_costs_are_told_the_dearest_first_and_add_up(blamed: Callable[..., Int8Blame]) -> None:
    found = blamed(Two())
    assert found and {cost.module for cost in found.costs} == {"first", "second"} and sum(cost.share for cost in found.costs) == pytest.approx(1)
    assert found.costs[0].alone_db <= found.costs[1].alone_db and found.costs[0].share >= found.costs[1].share
    powers = [10 ** (-cost.alone_db / 10) for cost in found.costs]
    assert found.costs[0].share == pytest.approx(powers[0] / sum(powers))
    assert "the dearest of 2 integer products" in str(found)


def test_a_range_that_clips_is_named(blamed: Callable[..., Int8Blame]) -> None:
    found = blamed(Two(), scale=0.3)
    assert found.costs[0].module == "second" and found.costs[0].cause.kind == "clipped range" and "lie beyond 0..0" in found.costs[0].cause.told


def test_one_channel_that_reaches_far_is_named(blamed: Callable[..., Int8Blame]) -> None:
    network = Two()
    network.first.weight.data[5] *= 60
    network.first.bias.data[5] = 0
    network.second.weight.data[:, 5] /= 60
    found = next(cost for cost in blamed(network).costs if cost.module == "second")
    assert found.cause.kind == "outlier channel" and found.cause.told.startswith("channel 5 of ")


def test_coarse_weights_are_named(blamed: Callable[..., Int8Blame]) -> None:
    """One weight of each output channel is 60 times the largest other, so that these have one or two steps; it reads a channel that is nearly nothing."""
    network = Two()
    network.second.weight.data[:, 0, 0, 0] = 60 * network.second.weight.data.abs().max()
    network.first.weight.data[0], network.first.bias.data[0] = 0, 1e-3
    found = next(cost for cost in blamed(network).costs if cost.module == "second")
    assert found.cause.kind == "coarse weights"


def test_a_channel_whose_weights_were_set_to_zero_is_altered(blamed: Callable[..., Int8Blame]) -> None:
    def zeroed(model: onnx.ModelProto) -> None:
        weights = next(each for each in model.graph.initializer if each.data_type == onnx.TensorProto.INT8 and tuple(each.dims) == (16, 16, 3, 3))
        values = numpy_helper.to_array(weights).copy()
        values[2] = 0
        weights.CopyFrom(numpy_helper.from_array(values, weights.name))

    found = blamed(Two(), change=zeroed)
    assert not found and found.costs[0].module == "second" and found.costs[0].cause.kind == "altered weights"


@pytest.mark.parametrize("steps", [3, -3])
def test_a_weight_three_steps_off_is_named_with_its_place(steps: int, blamed: Callable[..., Int8Blame]) -> None:
    def moved(model: onnx.ModelProto) -> None:
        weights = next(each for each in model.graph.initializer if each.data_type == onnx.TensorProto.INT8 and tuple(each.dims) == (16, 16, 3, 3))
        values = numpy_helper.to_array(weights).copy()
        values[4, 3, 2, 1] = np.clip(values[4, 3, 2, 1], -100, 100) + steps
        weights.CopyFrom(numpy_helper.from_array(values, weights.name))

    found = blamed(Two(), change=moved)
    assert not found and found.costs[0].module == "second" and found.costs[0].cause.is_fault
    assert "the weight at [4, 3, 2, 1] is " in found.costs[0].cause.told and str(found).startswith("rounding does not explain int8's error")


def test_a_bundle_whose_weights_were_rounded_for_each_other_is_not_accused(tiny_bundle: Path, class_contract: Contract) -> None:
    bundle = Bundle(tiny_bundle)
    inputs = [{"pixels": bundle.tensor(case.inputs[0])} for case in bundle.manifest.golden if case.sizes is None]
    found = int8_blame(onnx.load(tiny_bundle / "model.onnx"), onnx.load(tiny_bundle / "model.int8.onnx"), class_contract, inputs, rounded_to_nearest=False)
    assert found and len(found.costs) == 3
