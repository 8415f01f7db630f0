import shutil
import unittest
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
from edgeport_runtime import Bundle, Contract, SessionOptions
from edgeport_runtime.engine import Engine
from edgeport_runtime.golden_inputs import formula_inputs
from edgeport_runtime.images import prepare
from edgeport_runtime.protobuf import DTYPES, read_tensor


def test_cases_are_real_images_and_an_odd_size(tiny: ModuleType, class_contract: Contract) -> None:
    examples = tiny.brightness_examples(5, seed=0)
    reference = TorchReference(tiny.trained_classifier(), class_contract)
    cases = [each.arrays["pixels"] for each in golden_inputs(reference, examples)]
    np.testing.assert_array_equal(cases[0], np.stack([prepare(e.source, class_contract.pixels) for e in examples[:3]]))
    assert cases[1].shape[1] != cases[1].shape[2]
    assert len([each for each in golden_inputs(reference, []) if not each.is_edge]) == 4


def test_the_edges_of_the_ranges_are_cases_of_their_own(tiny: ModuleType, class_contract: Contract) -> None:
    """4..64 pixels, up to 8 images: the smallest is stored, the largest are made by the formula, and all fit into memory here."""
    edges = [each for each in golden_inputs(TorchReference(tiny.trained_classifier(), class_contract), []) if each.is_edge]
    assert [each.arrays["pixels"].shape for each in edges] == [(1, 4, 4, 3), (1, 64, 64, 3), (8, 16, 16, 3)]
    assert [each.sizes for each in edges] == [None, {"batch": 1, "height": 64, "width": 64}, {"batch": 8, "height": 16, "width": 16}]


def test_an_edge_does_not_widen_what_other_cases_may_differ_by(tiny: ModuleType, class_contract: Contract) -> None:
    """A variant that is off by 0.1, and by 5 at the smallest size."""
    reference = TorchReference(tiny.trained_classifier(), class_contract)
    inputs = golden_inputs(reference, [])

    class Off:
        def run(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"logits": reference.run(arrays)["logits"] + np.float32(5.0 if arrays["pixels"].shape[1] == 4 else 0.1)}

    parity = Parity(cases=(), floors={"logits": 1e-7}, ranges={"logits": 1.0})
    found = answer_golden(inputs, reference, {"int8": Off()}, parity).tolerance  # type: ignore[dict-item]
    largest = [each["int8"][0].max_abs for each in found]
    assert largest == pytest.approx([5.0 if each.arrays["pixels"].shape[1] == 4 else 0.1 for each in inputs], rel=1e-2)


def answers(contract: Contract, *truths: dict[str, np.ndarray]) -> GoldenAnswers:
    return GoldenAnswers(contract=contract, inputs=[], truths=truths, host={}, tolerance=[])


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
    cases = write_golden(tmp_path, answer_golden(golden_inputs(reference, []), reference, {"fp32": engine}, parity))
    large = [case for case in cases if case.sizes is not None]
    assert len(cases) == 7 and len(large) == 2 and all(not case.inputs and case.folder.startswith("large_") for case in large)
    for case in cases[:5]:
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


def test_large_cases_hold_samples_of_the_outputs(tiny: ModuleType, image_contract: Contract, tmp_path: Path) -> None:
    """Each so many-th value of the flat output, at most 4096; and the formula makes the same input again."""
    module = tiny.TinyGenerator().eval()
    engine = Engine(finalize(trace(module, image_contract).model, image_contract), image_contract, SessionOptions())
    parity = Parity(cases=(), floors={"image.levels": 1e-6}, ranges={"image.levels": 255.0})
    reference = TorchReference(module, image_contract)
    cases = write_golden(tmp_path, answer_golden(golden_inputs(reference, []), reference, {"fp32": engine}, parity))
    for case in (each for each in cases if each.sizes is not None):
        truth = reference.run(formula_inputs(image_contract, case.sizes or {}))
        stored, levels = (onnx.numpy_helper.to_array(onnx.load_tensor(tmp_path / file)) for file in (case.outputs[0].file, case.levels["image"].file))
        assert case.every > 1 and 2048 < stored.size <= 4096
        np.testing.assert_array_equal(stored, truth["image"].ravel()[:: case.every])
        np.testing.assert_array_equal(levels, truth["image.levels"].ravel()[:: case.every])


@pytest.mark.filterwarnings("ignore")  # of onnx.version, and of numbers in ONNX's own cases that overflow
def test_onnx_own_runner_of_backend_tests_replays_the_cases(tiny_bundle: Path, tmp_path: Path) -> None:
    """ONNX's loader finds the model and its cases, and its runner compares onnxruntime's answers with the stored ones. It looks at nothing else of a bundle."""
    from onnx.backend.test.loader import load_model_tests
    from onnx.backend.test.runner import Runner
    from onnxruntime.backend import backend

    (tmp_path / "simple").mkdir()
    shutil.copytree(tiny_bundle, tmp_path / "simple" / "test_tiny")
    cases = load_model_tests(data_dir=str(tmp_path), kind="simple")
    found = [case for case in cases if case.model_dir is not None]
    assert [Path(case.model_dir).name for case in found] == ["test_tiny"]
    ran: list[int] = []

    class Counted(backend.OnnxRuntimeBackend):  # type: ignore[misc]  # onnxruntime has no types
        @classmethod
        def supports_device(cls, device: str) -> bool:
            return device == "CPU"

        @classmethod
        def prepare(cls, model: object, device: str = "CPU", **options: object) -> object:
            session = backend.OnnxRuntimeBackend.prepare(model, device, **options)
            run = session.run
            session.run = lambda inputs, **more: ran.append(len(inputs[0])) or run(inputs, **more)  # type: ignore[func-returns-value]
            return session

    runner = Runner(Counted, __name__)
    runner._test_items.clear()  # ONNX's own
    runner._add_model_test(found[0], "Simple")
    result = unittest.TestResult()
    runner.test_suite.run(result)
    stored = [case for case in Bundle(tiny_bundle).manifest.golden if case.sizes is None]
    assert not result.failures and not result.errors, (result.failures, result.errors)
    assert len(ran) == len(stored) > 2
