from types import ModuleType

import numpy as np
import onnx
import pytest
import torch

from edgeport_export import ExportError
from edgeport_export.quantize import CALIBRATION_BATCH, CalibrationReader, calibration_sample, float_nodes, quantize
from edgeport_export.trace import finish, trace
from edgeport_models import AttentionNet, network
from edgeport_runtime import Contract, ImageError, SessionOptions
from edgeport_runtime.device import open_session
from edgeport_runtime.evaluate import Example
from edgeport_runtime.images import prepare


def run(model: bytes, pixels: np.ndarray) -> np.ndarray:
    return np.asarray(open_session(model, SessionOptions()).run(None, {"pixels": pixels})[0])


def test_int8_is_integer_and_near(tiny: ModuleType, class_contract: Contract) -> None:
    module = tiny.trained_classifier()
    traced = trace(module, class_contract).model
    data, plan = quantize(traced, class_contract, tiny.brightness_examples(24, seed=5))
    assert plan.integer == ("conv1/Conv", "conv2/Conv", "head/Gemm") and plan.integer_share == 1.0 and plan.kept_float == {}
    assert plan.calibration_images == 24 and plan.formats == "U8S8 per channel"
    fp32 = finish(traced, class_contract)
    pixels = np.stack([example.source for example in tiny.brightness_examples(8, seed=6)])
    exact, rounded = run(fp32, pixels), run(data, pixels)
    assert len(data) < len(fp32) and not np.array_equal(exact, rounded)
    assert np.abs(exact - rounded).max() < 0.05 * np.ptp(exact)


def test_the_last_pair_is_dropped_so_the_answer_is_not_rounded(tiny: ModuleType, class_contract: Contract) -> None:
    data, _ = quantize(trace(tiny.trained_classifier(), class_contract).model, class_contract, tiny.brightness_examples(24, seed=5))
    graph = onnx.load_from_string(data).graph
    last = next(node for node in graph.node if "logits" in node.output)
    assert {each.name for each in graph.initializer} <= {name for node in graph.node for name in node.input}
    assert last.op_type == "Gemm"
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)


def test_attention_stays_float_and_says_why() -> None:
    entry = network("attention")
    contract = entry.contract(tuple("0123456789"), 64)
    torch.manual_seed(0)
    module = AttentionNet(channels=32).eval()
    photos = [Example(source=np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8), truth=0) for i in range(4)]
    data, plan = quantize(trace(module, contract).model, contract, photos)
    reason = "a product of two activations is slower and far less exact as integers"
    assert plan.kept_float == {"attention.attention/MatMul": reason, "attention.attention/MatMul_2": reason}
    graph = onnx.load_from_string(data).graph
    softmax = next(node for node in graph.node if node.op_type == "Softmax")
    producers = {out: node.op_type for node in graph.node for out in node.output}
    assert producers[softmax.input[0]] != "DequantizeLinear"
    assert all(node.op_type != "QuantizeLinear" for node in graph.node if softmax.output[0] in node.input)
    assert 0 < plan.integer_share < 1


def test_normalisation_and_rounding_stay_float(tiny: ModuleType, image_contract: Contract) -> None:
    data, plan = quantize(
        trace(tiny.TinyGenerator(), image_contract).model,
        image_contract,
        [Example(source=e.source, truth=e.source) for e in tiny.brightness_examples(8, seed=1)],
    )
    assert set(plan.integer) == {"conv1/Conv", "conv2/Conv"}
    graph = onnx.load_from_string(data).graph
    quantised = {name for node in graph.node if node.op_type == "QuantizeLinear" for name in node.input[:1]}
    outside = {out for node in graph.node if node.name.startswith("edgeport/") and node.op_type in ("Sub", "Mul", "Add", "Round") for out in node.output}
    assert len(outside & quantised) <= 1  # only what feeds the first convolution


def test_float_nodes_by_rule(tiny: ModuleType, class_contract: Contract) -> None:
    assert float_nodes(trace(tiny.trained_classifier(), class_contract).model).keys() >= {"edgeport/Cast"}


def test_calibration_is_the_runtimes_own_pixels(tiny: ModuleType, class_contract: Contract) -> None:
    examples = tiny.brightness_examples(CALIBRATION_BATCH + 3, seed=0)
    steps: list[int] = []
    reader = CalibrationReader(class_contract, examples, steps.append)
    fed = []
    while (batch := reader.get_next()) is not None:
        fed.append(batch["pixels"])
    assert [len(batch) for batch in fed] == [8, 3] and sum(steps) == 11
    np.testing.assert_array_equal(np.concatenate(fed), np.stack([prepare(e.source, class_contract.pixels) for e in examples]))
    other = CalibrationReader(class_contract, tiny.brightness_examples(11, seed=1), steps.append)
    while other.get_next() is not None:
        pass
    assert reader.hash.hexdigest() != other.hash.hexdigest()


def test_no_images_and_bad_images(tiny: ModuleType, class_contract: Contract) -> None:
    traced = trace(tiny.trained_classifier(), class_contract).model
    with pytest.raises(ExportError, match="int8 needs calibration images"):
        quantize(traced, class_contract, [])
    with pytest.raises(ImageError, match=r"gone\.png: there is no such file"):
        quantize(traced, class_contract, [Example(source="gone.png", truth=0)])


def test_a_sample_is_even_ordered_and_repeatable() -> None:
    examples = [Example(source=f"{i}.png", truth=0) for i in range(50)]
    sample = calibration_sample(examples, 10)
    assert len(sample) == 10 and sample == calibration_sample(examples, 10)
    assert [examples.index(e) for e in sample] == sorted(examples.index(e) for e in sample)
    assert calibration_sample(examples, 100) == examples
