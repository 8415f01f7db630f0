"""Pixels that are looked up: held to numpy in float64 for all 256 values, and to the fp32 graph of whole networks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgeport_export.calibration import calibrate
from edgeport_export.quantize import candidates, observed_values, preprocess, quantize
from edgeport_export.rewrites.pixel_table import pixel_table
from edgeport_export.targets import TARGETS
from edgeport_export.trace import finish, trace
from edgeport_runtime import Contract, SessionOptions
from edgeport_runtime.device import open_session
from edgeport_runtime.evaluate import Example

STEP, ZERO = 0.0237, np.uint8(97)
FUNCTIONS = {"Tanh": np.tanh, "Sigmoid": lambda x: 1 / (1 + np.exp(-x))}


def ending(kind: str, low: float, high: float, *, zero: np.generic = ZERO, steps: int = 1) -> onnx.ModelProto:
    """Integers (1, 3, 16, W) that are dequantised, moved, and made pixels in float, as a quantised generator ends."""
    values = {
        "step": np.full(steps, STEP, np.float32) if steps > 1 else np.array(STEP, np.float32),
        "zero": np.full(steps, zero) if steps > 1 else zero,
        "low": np.array(low, np.float32),
        "scale": np.array(255 / (high - low), np.float32),
        "least": np.array(0, np.float32),
        "most": np.array(255, np.float32),
        "start": np.array([0]),
        "end": np.array([3]),
        "axis": np.array([1]),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["real"], name="dq", axis=1),
        helper.make_node("Slice", ["real", "start", "end", "axis"], ["cut"], name="cut"),
        helper.make_node(kind, ["cut"], ["value"], name="activation"),
        helper.make_node("Sub", ["value", "low"], ["lifted"], name="edgeport/Sub"),
        helper.make_node("Mul", ["lifted", "scale"], ["scaled"], name="edgeport/Mul"),
        helper.make_node("Clip", ["scaled", "least", "most"], ["clipped"], name="edgeport/Clip"),
        helper.make_node("Transpose", ["clipped"], ["image.levels"], name="edgeport/Transpose", perm=[0, 2, 3, 1]),
        helper.make_node("Round", ["image.levels"], ["rounded"], name="edgeport/Round"),
        helper.make_node("Cast", ["rounded"], ["image"], name="edgeport/Cast", to=TensorProto.UINT8),
    ]
    if low == 0:  # the exporter leaves out what does nothing
        nodes = [node for node in nodes if node.op_type != "Sub"]
        next(node for node in nodes if node.op_type == "Mul").input[0] = "value"
    inputs = [helper.make_tensor_value_info("q", TensorProto.UINT8 if isinstance(zero, np.uint8) else TensorProto.INT8, [1, 4, 16, None])]
    outputs = [
        helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 16, None, 3]),
        helper.make_tensor_value_info("image.levels", TensorProto.FLOAT, [1, 16, None, 3]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(("kind", "low", "high"), [("Tanh", -1.0, 1.0), ("Sigmoid", 0.0, 1.0)])
def test_every_one_of_256_values_has_its_level(image_contract: Contract, kind: str, low: float, high: float) -> None:
    model = ending(kind, low, high)
    described = replace(image_contract, outputs=(replace(image_contract.outputs[0], range=(low, high)),))
    assert pixel_table(model, described) == 1
    onnx.checker.check_model(model, full_check=True)
    q = np.resize(np.arange(256, dtype=np.uint8), (1, 4, 16, 64))
    level = (FUNCTIONS[kind]((q[:, :3].astype(np.float64) - int(ZERO)) * STEP) - low) * 255 / (high - low)
    got, exact = open_session(model.SerializeToString(), SessionOptions()).run(["image", "image.levels"], {"q": q})
    np.testing.assert_allclose(exact, level.transpose(0, 2, 3, 1), atol=1e-3)
    assert got.dtype == np.uint8 and np.abs(got - level.transpose(0, 2, 3, 1)).max() < 0.5 + 1e-4 and len(np.unique(got)) > 120


@pytest.mark.parametrize(
    ("changes", "limits"),
    [
        ({"kind": "Tanh", "low": -0.5, "high": 0.5}, (-0.5, 0.5)),
        ({"kind": "Tanh", "low": 0.0, "high": 1.0}, (0.0, 1.0)),
        ({"kind": "Sigmoid", "low": -1.0, "high": 1.0}, (-1.0, 1.0)),
        ({"kind": "Erf", "low": -1.0, "high": 1.0}, (-1.0, 1.0)),
        ({"kind": "Tanh", "low": -1.0, "high": 1.0, "zero": np.int8(3)}, (-1.0, 1.0)),
        ({"kind": "Tanh", "low": -1.0, "high": 1.0, "steps": 4}, (-1.0, 1.0)),
    ],
    ids=["half of tanh", "tanh from 0", "sigmoid from -1", "another function", "signed integers", "a step for each channel"],
)
def test_other_endings_stay_as_they_are(image_contract: Contract, changes: dict[str, object], limits: tuple[float, float]) -> None:
    model = ending(**changes)  # type: ignore[arg-type]
    before = model.SerializeToString(deterministic=True)
    described = replace(image_contract, outputs=(replace(image_contract.outputs[0], range=limits),))
    assert pixel_table(model, described) == 0 and model.SerializeToString(deterministic=True) == before


def test_what_the_network_subtracts_itself_is_not_taken_for_the_way_to_levels(image_contract: Contract) -> None:
    model = ending("Sigmoid", 0.0, 1.0)
    scaling = next(node for node in model.graph.node if node.name == "edgeport/Mul")
    own = helper.make_node("Sub", ["value", "tenth"], ["shifted"], name="Sub")
    model.graph.node.insert(list(model.graph.node).index(scaling), own)
    next(node for node in model.graph.node if node.name == "edgeport/Mul").input[0] = "shifted"
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "tenth"))
    described = replace(image_contract, outputs=(replace(image_contract.outputs[0], range=(0.0, 1.0)),))
    assert pixel_table(model, described) == 0


@pytest.mark.parametrize("filters", ["3x3", "1x1", "upsampled"])
@pytest.mark.parametrize(("last", "limits"), [(nn.Tanh(), (-1.0, 1.0)), (nn.Sigmoid(), (0.0, 1.0))], ids=["tanh", "sigmoid"])
def test_whole_generators_end_in_one_operator(image_contract: Contract, tmp_path: Path, last: nn.Module, limits: tuple[float, float], filters: str) -> None:
    ends = {"3x3": [nn.Conv2d(16, 3, 3, padding=1)], "1x1": [nn.Conv2d(16, 3, 1)], "upsampled": [nn.Conv2d(16, 12, 3, stride=2, padding=1), nn.PixelShuffle(2)]}
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), *ends[filters], last).eval()
    with torch.no_grad():
        network[2].weight *= 12  # for pixels from dark to bright
    described = replace(image_contract, outputs=(replace(image_contract.outputs[0], range=limits),))
    generator, vnni = np.random.default_rng(0), TARGETS["x86-vnni"]
    pictures = [generator.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(12)]
    prepared = preprocess(trace(network, described).model)
    ranges = calibrate(prepared, observed_values(prepared, vnni), described, [Example(source=each, truth=each) for each in pictures]).limits("minmax")
    models = finish(prepared, described), finish(quantize(prepared, described, set(candidates(prepared, vnni)[0]), ranges, vnni), described)
    image = generator.integers(0, 256, (2, 18, 14, 3), dtype=np.uint8)
    exact, near = (open_session(model, SessionOptions()).run(None, {"pixels": image})[0].astype(int) for model in models)
    assert exact.shape == near.shape and 0 < np.abs(exact - near).max() < 16 and np.ptp(exact) > 60
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath, settings.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    onnxruntime.InferenceSession(models[1], settings, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearSigmoid") == 1 and not {"Tanh", "Sigmoid", "Round", "Clip"} & set(kinds)
