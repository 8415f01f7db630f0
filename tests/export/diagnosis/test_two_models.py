import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edgeport_export import ExportError, ImageTask, assert_parity, compare_models, export_bundle
from edgeport_export.quantization.budget import Budget
from edgeport_runtime import Bundle, Contract


def test_network_bundle_and_plain_export_agree_in_every_pair(tiny_bundle: Path, network: nn.Module, plain_file: Path) -> None:
    for first, second in ((tiny_bundle, network), (tiny_bundle, plain_file), (plain_file, tiny_bundle), (plain_file, network), (network, Bundle(tiny_bundle))):
        found = compare_models(first, second, contract=None if {first, second} - {plain_file, network} else Bundle(tiny_bundle).manifest.contract)
        assert found and found.inputs >= 9, str(found)
        assert found.against == ("TinyClassifier" if network in (first, second) else found.first)
        assert found.outputs[0].relative <= found.outputs[0].limit.relative < 1e-5


@pytest.mark.parametrize("part", ["conv1", "conv2", "head"])
@pytest.mark.parametrize("other", ["network", "file"])
def test_one_median_weight_off_by_a_percent_is_a_difference(
    part: str, other: str, tiny_bundle: Path, network: nn.Module, plain_file: Path, altered: Callable[..., Path]
) -> None:
    changed = altered(tiny_bundle / "model.onnx", part, 1.01)
    assert compare_models(tiny_bundle / "model.onnx", plain_file)
    found = compare_models(changed, network if other == "network" else plain_file)
    assert not found and "FAILED logits: largest difference" in str(found)
    with pytest.raises(AssertionError, match="differ on 9 inputs"):
        assert_parity(changed, network if other == "network" else plain_file)


def test_two_networks_need_a_contract(network: nn.Module, class_contract: Contract) -> None:
    with pytest.raises(ExportError, match="neither network has a contract"):
        compare_models(network, network)
    assert assert_parity(network, copy.deepcopy(network), contract=class_contract)
    changed = copy.deepcopy(network)
    changed.head.weight.data[0, 0] *= 1.01
    assert not compare_models(network, changed, contract=class_contract)


def test_int8_is_held_to_the_floor_or_to_what_its_bundle_tells(tiny_bundle: Path, network: nn.Module) -> None:
    promised = Bundle(tiny_bundle).variant("int8").plan["sqnr_db"]
    for name in (f"{tiny_bundle}@int8", tiny_bundle / "model.int8.onnx"):
        for second in (network, tiny_bundle):
            found = compare_models(name, second, budget=Budget(sqnr_floor_db=10.0))
            assert found and found.kind == "golden" and found.outputs[0].limit.least_db == 10.0 and found.outputs[0].limit.relative is None
            assert found.outputs[0].sqnr_db > promised - 20  # of other images, at the edges of the range
    told = compare_models(f"{tiny_bundle}@int8", network, budget=Budget(sqnr_floor_db=999.0))
    assert told.outputs[0].limit.least_db == pytest.approx(promised - 3) and "dB were measured at export" in str(told)


def test_labels_decide_about_int8_if_there_are_enough(tiny_bundle: Path, network: nn.Module, tiny: ModuleType, tmp_path: Path) -> None:
    """The floor of a file is 30 dB, and would say no."""
    examples = tiny.brightness_examples(240, seed=3)
    floor = Budget(sqnr_floor_db=90.0)
    found = compare_models(tiny_bundle / "model.int8.onnx", network, inputs=examples, budget=floor, changes_to=tmp_path / "changes")
    assert found and found.task is not None and found.task.decides and not found.outputs[0].is_within_limit
    assert (tmp_path / "changes" / "changes.json").exists() and found.to_dict()["task"]["passed"] is True
    few = compare_models(tiny_bundle / "model.int8.onnx", network, inputs=examples[:9], budget=floor)
    assert not few and few.task is not None and not few.task.decides
    shuffled = copy.deepcopy(network)
    shuffled.head.weight.data, shuffled.head.bias.data = network.head.weight.data[[1, 2, 0]], network.head.bias.data[[1, 2, 0]]
    swapped = compare_models(tiny_bundle / "model.int8.onnx", shuffled, inputs=examples, budget=Budget(sqnr_floor_db=-99.0))
    assert not swapped and swapped.task is not None and not swapped.task


def test_pixels_are_compared_before_rounding(tmp_path: Path, tiny: ModuleType, image_contract: Contract, fixed_latencies: None) -> None:
    network = tiny.TinyGenerator().eval()
    bundle = export_bundle(network, image_contract, tmp_path / "generator")
    found = compare_models(bundle, network)
    assert found and found.outputs[0].output == "image.levels" and 0 < found.outputs[0].max_abs < 0.01
    program = torch.onnx.export(copy.deepcopy(network), (torch.zeros(1, 3, 16, 16),), dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "plain.onnx", external_data=False)
    assert compare_models(tmp_path / "plain.onnx", bundle)


@pytest.mark.parametrize(("fault", "words"), [("nan", "NaN: 0 values of TinyClassifier, "), ("shape", "the shapes differ"), ("dtype", "the dtypes differ")])
def test_what_cannot_be_compared_fails_with_its_reason(
    fault: str, words: str, plain_file: Path, network: nn.Module, class_contract: Contract, tmp_path: Path
) -> None:
    model = onnx.load(plain_file)
    if fault == "nan":
        bias = next(each for each in model.graph.initializer if each.name == "head.bias")
        bias.CopyFrom(numpy_helper.from_array(np.array([0, np.nan, 0], np.float32), bias.name))
    else:
        output = model.graph.output[0].name
        last = next(node for node in model.graph.node if output in node.output)
        last.output[list(last.output).index(output)] = "before"
        attributes = {"to": onnx.TensorProto.INT32} if fault == "dtype" else {"perm": [1, 0]}
        model.graph.node.append(onnx.helper.make_node("Cast" if fault == "dtype" else "Transpose", ["before"], [output], **attributes))
        del model.graph.output[:]
        kind = onnx.TensorProto.INT32 if fault == "dtype" else onnx.TensorProto.FLOAT
        model.graph.output.append(onnx.helper.make_tensor_value_info(output, kind, None))
    onnx.save(model, tmp_path / "faulty.onnx")
    found = compare_models(network, tmp_path / "faulty.onnx", contract=class_contract)
    assert not found and words in str(found)


class Both(nn.Module):
    def __init__(self, network: nn.Module, count: int) -> None:
        super().__init__()
        self.network, self.count = network, count

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.network(x) * (1 + index) for index in range(self.count))


def test_a_missing_output_is_a_difference_and_one_too_many_is_told(tmp_path: Path, tiny_bundle: Path, network: nn.Module, fixed_latencies: None) -> None:
    pixels = Bundle(tiny_bundle).manifest.contract.pixels
    bundle = export_bundle(Both(network, 2), ImageTask(task="tensors", pixels=pixels), tmp_path / "two")
    assert compare_models(bundle, Both(network, 2))
    for one in (Both(network, 1), tiny_bundle / "model.onnx"):
        found = compare_models(bundle, one, contract=bundle.manifest.contract)
        assert not found and "the output is missing in " in str(found) and [bool(each) for each in found.outputs] == [True, False]
    with pytest.raises(ExportError, match="Both gives 3 outputs, but 2 are to be compared"):
        compare_models(bundle, Both(network, 3))


def test_two_files_of_onnx_backend_tests() -> None:
    data = Path(onnx.__file__).parent / "backend" / "test" / "data" / "pytorch-converted"
    same = compare_models(data / "test_Conv2d", data / "test_Conv2d" / "model.onnx", inputs="golden")
    assert same and same.kind == "golden" and same.outputs[0].elements > 1
    assert not compare_models(data / "test_ELU", data / "test_SELU")
