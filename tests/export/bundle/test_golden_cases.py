from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch

from edgeport_export import Parity
from edgeport_export.bundle.golden_cases import DEVICE_FACTOR, GoldenAnswers, answer_golden, golden_inputs, write_golden
from edgeport_export.network.reference import TorchReference
from edgeport_export.rewrites.finalize import finalize
from edgeport_export.tracing.exporter import trace
from edgeport_export.validation.parity import FACTOR, Case
from edgeport_runtime import Contract, SessionOptions
from edgeport_runtime.engine import Engine
from edgeport_runtime.images import prepare
from edgeport_runtime.protobuf import DTYPES, read_tensor


def test_cases_are_real_images_and_an_odd_size(tiny: ModuleType, class_contract: Contract) -> None:
    examples = tiny.brightness_examples(5, seed=0)
    cases = golden_inputs(class_contract, examples)
    np.testing.assert_array_equal(cases[0]["pixels"], np.stack([prepare(e.source, class_contract.pixels) for e in examples[:3]]))
    height, width = cases[1]["pixels"].shape[1:3]
    assert height != width
    assert len(golden_inputs(class_contract, [])) == 4


def answers(contract: Contract, *truths: dict[str, np.ndarray]) -> GoldenAnswers:
    return GoldenAnswers(contract=contract, inputs=[], truths=truths, host={}, tolerance={})


@pytest.mark.parametrize(("share", "told"), [(0.0, False), (0.25, False), (0.5, True)])
def test_an_image_that_is_half_black_is_told(share: float, told: bool, image_contract: Contract) -> None:
    levels = np.full((1, 10, 10, 4), 100.0)
    levels[:, : int(10 * share)] = -3.0
    levels[:, 9:, :2] = 255.0 if share == 0.25 else 100.0  # two rows and a fifth of another
    found = answers(image_contract, {f"{image_contract.outputs[0].name}.levels": levels}).noticed
    sentence = "50% of the image's values lie at the levels 0 or 255 or beyond, and are cut there: is the range of the output right (--output-range)?"
    assert found == [sentence] * told


@pytest.mark.parametrize(
    ("logits", "told"),
    [([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]], True), ([[0.2, 0.5, 0.2]], False), ([[2.0, -1.0, 0.0]], False), ([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5]], False)],
)
def test_a_softmax_inside_is_told(logits: list[list[float]], told: bool, class_contract: Contract) -> None:
    found = answers(class_contract, *({class_contract.outputs[0].name: np.array([row])} for row in logits)).noticed
    assert len(found) == told and all("leave its own softmax out" in each for each in found)


@pytest.mark.parametrize("kind", ["class", "image"])
def test_files_can_be_replayed_by_other_tools(kind: str, tiny: ModuleType, class_contract: Contract, image_contract: Contract, tmp_path: Path) -> None:
    torch.manual_seed(0)
    contract, module = (class_contract, tiny.trained_classifier()) if kind == "class" else (image_contract, tiny.TinyGenerator())
    output = contract.outputs[0].name
    compared = output if kind == "class" else f"{output}.levels"
    engine = Engine(finalize(trace(module, contract).model, contract), contract, SessionOptions())
    parity = Parity(cases=(Case(output=compared, sizes={}, torch_error=1e-6, onnx_error=1e-6),), floors={compared: 1e-6}, ranges={compared: 2.0})
    reference = TorchReference(module, contract)
    cases = write_golden(tmp_path, answer_golden(golden_inputs(contract, []), reference, {"fp32": engine}, parity))
    assert len(cases) == 4
    for case in cases:
        x, y = (onnx.numpy_helper.to_array(onnx.load_tensor(tmp_path / file.file)) for file in (case.inputs[0], case.outputs[0]))
        truth = reference.pixels(x)
        np.testing.assert_array_equal(y, truth[output])
        assert case.inputs[0].file == f"{case.folder}/input_0.pb"
        half = 0.5 if kind == "image" else 0.0
        assert case.tolerance["fp32"][0].max_abs == pytest.approx(half + DEVICE_FACTOR * 1e-6 * 2.0)
        assert set(case.levels) == (set() if kind == "class" else {output})
    assert DEVICE_FACTOR > FACTOR


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 4, 5)])
def test_the_torch_free_reader_reads_what_onnx_writes(dtype: str, shape: tuple[int, ...]) -> None:
    array = (np.random.default_rng(0).standard_normal(shape) * 9).astype(dtype)
    name, read = read_tensor(onnx.numpy_helper.from_array(array, "x").SerializeToString())
    assert name == "x" and read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)
