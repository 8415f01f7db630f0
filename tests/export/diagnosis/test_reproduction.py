import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import nn

from edgeport_export import ExportOptions, compare_models, export_bundle
from edgeport_export.diagnosis.reproduction import Reproduction, reproduce
from edgeport_runtime import Bundle, Contract
from edgeport_runtime.manifest import sealed


@pytest.fixture
def tampered(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Bundle]:
    """A copy of the bundle in which one file's weights are changed, with every hash of the manifest rewritten. `provenance`: facts to change."""

    def made(file: str, change: Callable[[np.ndarray], None], **provenance: str) -> Bundle:
        folder = tmp_path / "tampered"
        shutil.copytree(tiny_bundle, folder)
        model = onnx.load(folder / file)
        weights = next(each for each in model.graph.initializer if "conv2" in each.name and len(each.dims) == 4)
        values = numpy_helper.to_array(weights).copy()
        change(values)
        weights.CopyFrom(numpy_helper.from_array(values, weights.name))
        (folder / file).write_bytes(model.SerializeToString(deterministic=True))
        manifest = json.loads((folder / "manifest.json").read_text())
        for variant in manifest["variants"]:
            variant["sha256"] = hashlib.sha256((folder / variant["file"]).read_bytes()).hexdigest()
        manifest["provenance"] |= provenance
        (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
        return Bundle(folder)

    return made


def by_precision(found: tuple[Reproduction, ...]) -> dict[str, Reproduction]:
    return {each.precision: each for each in found}


def test_both_files_come_out_byte_for_byte(tiny_bundle: Path, network: nn.Module, tiny: ModuleType) -> None:
    bundle = Bundle(tiny_bundle)
    found = by_precision(reproduce(bundle, network, tiny.brightness_examples(24, seed=2)))
    assert {name: each.same for name, each in found.items()} == {"fp32": True, "int8": True}
    assert str(found["fp32"]) == "fp32 is byte for byte what this network exports to"


def test_fp16_is_made_again_and_compared(tmp_path: Path, network: nn.Module, class_contract: Contract, fixed_latencies: None) -> None:
    bundle = export_bundle(network, class_contract, tmp_path / "half", options=ExportOptions(precisions=("fp32", "fp16")))
    assert {name: each.same for name, each in by_precision(reproduce(bundle, network)).items()} == {"fp32": True, "fp16": True}
    found = compare_models(f"{bundle.folder}@fp16", network)
    assert found and found.outputs[0].limit.least_db == 30.0 and 40 < found.outputs[0].sqnr_db < 100


def test_weights_that_were_rounded_for_each_other_need_the_images(tiny_bundle: Path, network: nn.Module, tiny: ModuleType) -> None:
    bundle = Bundle(tiny_bundle)
    assert bundle.variant("int8").plan["recovery"] is not None  # or this test shows nothing
    without, others = (by_precision(reproduce(bundle, network, images))["int8"] for images in ((), tiny.brightness_examples(24, seed=9)))
    assert without.same is None and without and "name them with --calibration" in str(without)
    assert others.same is None and "they are not those given" in str(others)


def times_1_01(values: np.ndarray) -> None:
    values[3, 2, 1, 0] *= 1.01


def three_steps(values: np.ndarray) -> None:
    values[3, 2, 1, 0] += 3 if values[3, 2, 1, 0] < 0 else -3


@pytest.mark.parametrize(("file", "change", "precision"), [("model.onnx", times_1_01, "fp32"), ("model.int8.onnx", three_steps, "int8")])
def test_one_weight_that_differs_is_named(
    file: str, change: Callable[[np.ndarray], None], precision: str, tampered: Callable[..., Bundle], network: nn.Module, tiny: ModuleType
) -> None:
    found = by_precision(reproduce(tampered(file, change), network, tiny.brightness_examples(24, seed=2)))
    assert not found[precision] and {change.module for change in found[precision].changes} == {"conv2"}
    assert str(found[precision]).startswith(f"FAILED {precision} is not what this network exports to: conv2: ") and "[3, 2, 1, 0]" in str(found[precision])
    other = found["int8" if precision == "fp32" else "fp32"]
    assert other.same


def test_another_network_is_told_by_its_modules(tiny_bundle: Path, network: nn.Module) -> None:
    changed = copy.deepcopy(network)
    changed.head.weight.data[1, 2] += 0.01
    found = by_precision(reproduce(Bundle(tiny_bundle), changed))
    assert not found["fp32"] and {each.module for each in found["fp32"].changes} == {"head"}
    assert found["int8"].same is None


def test_other_versions_of_the_packages_are_told_and_do_not_decide(tampered: Callable[..., Bundle], network: nn.Module) -> None:
    found = by_precision(reproduce(tampered("model.onnx", times_1_01, onnxscript="0.0.1"), network))["fp32"]
    assert found and found.same is False and "(onnxscript 0.0.1 then, " in str(found) and "FAILED" not in str(found)


def test_what_was_exported_with_additions_is_not_made_again(tampered: Callable[..., Bundle], network: nn.Module) -> None:
    found = reproduce(tampered("model.onnx", times_1_01, passes="mine:clean"), network)
    assert all(each.same is None and each for each in found) and "the export had passes of its own" in str(found[0])
