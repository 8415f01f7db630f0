"""A repository whose configuration fits its model, and faults that Triton's own reader lets through."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeport_export import ExportError
from edgeport_export.deploy import triton
from edgeport_export.deploy.text_format import read_blocks
from edgeport_export.deploy.triton import config_faults, deploy_triton, repository_faults
from edgeport_runtime import Bundle, InputError

FIXTURES = Path(__file__).parents[2] / "fixtures" / "format2"
CLASSIFIER, GENERATOR = Bundle(FIXTURES / "classifier"), Bundle(FIXTURES / "generator")
MODEL = onnx.load_from_string(CLASSIFIER.read(CLASSIFIER.variant("fp32")))


@pytest.fixture
def text(tmp_path: Path) -> str:
    return (deploy_triton(CLASSIFIER, tmp_path / "repository", name="tiny") / "config.pbtxt").read_text()


def test_the_configuration_is_the_contracts(text: str) -> None:
    read = read_blocks(text)
    assert (read["name"], read["backend"], read["max_batch_size"]) == (["tiny"], ["onnxruntime"], [8])
    assert read["input"] == [{"name": ["pixels"], "data_type": ["TYPE_UINT8"], "dims": [-1, -1, 3]}]
    assert read["output"] == [{"name": ["logits"], "data_type": ["TYPE_FP32"], "dims": [3], "label_filename": ["labels.txt"]}]
    assert read["dynamic_batching"] == [{"max_queue_delay_microseconds": [500]}]
    assert read["instance_group"] == [{"count": [1], "kind": ["KIND_CPU"]}]
    (warmup,) = read["model_warmup"]
    assert warmup["batch_size"] == [1] and warmup["inputs"][0]["value"][0]["dims"] == [16, 16, 3]
    assert config_faults(text, MODEL) == []


def test_the_repository_is_as_triton_wants_it(tmp_path: Path) -> None:
    place = deploy_triton(CLASSIFIER, tmp_path / "r", precision="int8")
    assert place == tmp_path / "r" / "tiny-classifier"
    assert (place / "1" / "model.onnx").read_bytes() == CLASSIFIER.read(CLASSIFIER.variant("int8"))
    assert (place / "labels.txt").read_text().splitlines() == ["dark", "middle", "bright"]
    golden = CLASSIFIER.tensor(CLASSIFIER.manifest.golden[0].inputs[0])
    assert (place / "warmup" / "pixels").read_bytes() == golden[0].tobytes()
    assert repository_faults(tmp_path / "r") == []


def test_gpu_instances_and_delay(tmp_path: Path) -> None:
    place = deploy_triton(CLASSIFIER, tmp_path / "r", gpu=True, instances=3, delay_us=2000)
    read = read_blocks((place / "config.pbtxt").read_text())
    assert read["instance_group"] == [{"count": [3], "kind": ["KIND_GPU"]}] and read["dynamic_batching"] == [{"max_queue_delay_microseconds": [2000]}]
    assert (place / "1" / "model.onnx").read_bytes() == CLASSIFIER.read(CLASSIFIER.variant("fp32"))  # int8's kernels are the CPU's


def test_a_generator_has_no_labels(tmp_path: Path) -> None:
    place = deploy_triton(GENERATOR, tmp_path / "r")
    read = read_blocks((place / "config.pbtxt").read_text())
    assert read["output"] == [{"name": ["image"], "data_type": ["TYPE_UINT8"], "dims": [-1, -1, 3]}] and not (place / "labels.txt").exists()


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("dims: [3]", "dims: [4]", "output 'logits' has the dims [4], the ONNX file has [3] after the batch"),
        ("dims: [3]", "dims: [-1]", "output 'logits' has the dims [-1], the ONNX file has [3] after the batch"),
        ("dims: [-1, -1, 3]", "dims: [16, 16, 3]", "input 'pixels' has the dims [16, 16, 3], the ONNX file has [-1, -1, 3] after the batch"),
        ("max_batch_size: 8", "max_batch_size: -3", "max_batch_size is -3, expected 0 or more"),
        ("max_batch_size: 8", "max_batch_size: 9", "max_batch_size is 9, and the model promises at most 8"),
        ("max_batch_size: 8", "max_batch_size: 8\nmax_batch_size: 4", "max_batch_size is given 2 times"),
        ("kind: KIND_CPU", "kind: KIND_XPU", "an instance_group has the kind KIND_XPU"),
        ("microseconds: 500", "microseconds: -5", "max_queue_delay_microseconds is -5"),
        ("max_batch_size: 8", "max_batch_size: 0", "dynamic_batching needs a max_batch_size of more than 1, got 0"),
        ("TYPE_FP32", "TYPE_FP16", "output 'logits' has the data_type TYPE_FP16, the ONNX file has TYPE_FP32"),
        ('"logits"', '"scores"', "output 'scores' is not in the ONNX file, which has logits"),
        ('input [ { name: "pixels"', 'input [ { name: "x"', "input 'pixels' of the ONNX file is missing"),
        ('backend: "onnxruntime"', 'backend: "tensorrt"', "the backend is not onnxruntime"),
        ("count: 1", "count: 0", "an instance_group has the count 0"),
        ("dims: [3]", "dims: [3", "line 5: expected"),
    ],
)
def test_what_does_not_fit_is_found(old: str, new: str, fault: str, text: str) -> None:
    assert old in text
    found = config_faults(text.replace(old, new), MODEL)
    assert any(each.startswith(fault) for each in found), found


def test_a_changed_repository_is_held_to_its_files(tmp_path: Path) -> None:
    place = deploy_triton(CLASSIFIER, tmp_path / "r", name="a")
    (place / "warmup" / "pixels").write_bytes(b"123")
    assert repository_faults(tmp_path / "r") == ["a: the warm-up file pixels has 3 bytes, expected 768"]
    (place / "warmup" / "pixels").unlink()
    (place / "labels.txt").unlink()
    assert repository_faults(tmp_path / "r") == ["a: the labels labels.txt are missing", "a: the warm-up file pixels has no bytes, expected 768"]
    (place / "1" / "model.onnx").write_bytes(b"no model")
    assert repository_faults(tmp_path / "r") == ["a: 1/model.onnx cannot be read"]
    (place / "1" / "model.onnx").write_bytes(CLASSIFIER.read(CLASSIFIER.variant("fp32")))
    (place / "2").mkdir()
    assert "a: version 2 has no model.onnx" in repository_faults(tmp_path / "r")
    (place / "2").rmdir()
    place.rename(tmp_path / "r" / "b")
    assert repository_faults(tmp_path / "r")[0] == "b: the name is 'a', and the folder's is 'b'"


def test_without_a_common_first_axis_there_are_no_batches() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])
    model = helper.make_model(helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", [value], [out]))
    text = triton.config("m", model, CLASSIFIER.manifest.contract, 0, {"x": np.zeros((2, 3), np.float32)})
    read = read_blocks(text)
    assert read["max_batch_size"] == [0] and read["input"][0]["dims"] == [2, 3] and "dynamic_batching" not in read and config_faults(text, model) == []
    assert config_faults(text.replace("max_batch_size: 0", "max_batch_size: 4"), model)[0].startswith("input 'x' has no first axis that is dynamic")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "a/b"}, "a model's name is of letters, digits and any of _.-, got 'a/b'"),
        ({"instances": 0}, "expected at least one instance and a delay of at least 0 µs, got 0 and 500"),
        ({"precision": "fp16"}, "holds no fp16: give one of fp32, int8"),
    ],
)
def test_bad_input_is_one_sentence(given: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        deploy_triton(CLASSIFIER, tmp_path / "r", **given)  # type: ignore[arg-type]
    assert not (tmp_path / "r").exists()


def test_a_configuration_that_does_not_fit_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "gathered_batch", lambda bundle: -3)
    with pytest.raises(ExportError, match="the configuration does not fit the file, so nothing was written: max_batch_size is -3"):
        deploy_triton(CLASSIFIER, tmp_path / "r")
    assert not (tmp_path / "r").exists()
