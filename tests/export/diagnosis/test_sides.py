from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeport_export import ExportError
from edgeport_export.diagnosis.sides import ENGINES, GraphSide, NetworkSide
from edgeport_runtime import Bundle, BundleError, Contract, DeviceError


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 12, 20, 3)).astype(np.uint8)


def in_torch(network: nn.Module, pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = network(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1).numpy()
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_of_another_tool_a_variant_and_the_network_give_the_same(
    engine: str, plain_file: Path, tiny_bundle: Path, network: nn.Module, class_contract: Contract, pixels: np.ndarray
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    sides = [GraphSide.of_file(plain_file, engine), GraphSide.of_bundle(Bundle(tiny_bundle), "fp32", engine), NetworkSide(name="net", network=network)]
    expected = in_torch(network, pixels)
    for side in sides:
        got = side.answer(class_contract)({"pixels": pixels})
        assert list(got) == ["logits"]
        np.testing.assert_allclose(got["logits"], expected, rtol=1e-4, atol=1e-4)


def test_precision_and_promise_are_read_from_the_file(plain_file: Path, tiny_bundle: Path) -> None:
    bundle = Bundle(tiny_bundle)
    int8 = GraphSide.of_bundle(bundle, "int8")
    assert (GraphSide.of_file(plain_file).precision, GraphSide.of_bundle(bundle).precision, int8.precision) == ("fp32", "fp32", "int8")
    assert int8.promised_db == bundle.variant("int8").plan["sqnr_db"] and GraphSide.of_bundle(bundle).promised_db is None
    assert GraphSide.of_file(tiny_bundle / "model.int8.onnx").contract == bundle.manifest.contract


def test_a_graph_with_other_ends_or_that_fails_says_its_name(plain_file: Path, image_contract: Contract, class_contract: Contract, tmp_path: Path) -> None:
    model = onnx.load(plain_file)
    model.graph.output.append(onnx.helper.make_tensor_value_info(model.graph.node[0].output[0], onnx.TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(ExportError, match=r"two\.onnx has 2 outputs"):
        GraphSide.of_file(tmp_path / "two.onnx").answer(class_contract)
    del model.graph.output[1]
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 9
    onnx.save(model, tmp_path / "nine.onnx")
    with pytest.raises(DeviceError, match=r"nine\.onnx: onnxruntime failed: .*"):
        GraphSide.of_file(tmp_path / "nine.onnx").answer(class_contract)({"pixels": np.zeros((1, 4, 4, 3), np.uint8)})
    for content in (b"text", b""):
        (tmp_path / "no.onnx").write_bytes(content)
        with pytest.raises(BundleError, match=r"no\.onnx: this cannot be read as an ONNX model"):
            GraphSide.of_file(tmp_path / "no.onnx")
    with pytest.raises(BundleError, match=r"gone\.onnx: expected an ONNX file, but there is no such file"):
        GraphSide.of_file(tmp_path / "gone.onnx")


def test_without_openvino_the_message_says_what_to_install(plain_file: Path, class_contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(DeviceError, match=r"pip install 'edgeport\[openvino\]'"):
        GraphSide.of_file(plain_file, "openvino").answer(class_contract)


def test_the_sizes_that_a_file_fixes(plain_file: Path, class_contract: Contract, network: nn.Module, tmp_path: Path, altered: Callable[..., Path]) -> None:
    model = onnx.load(plain_file)
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 3, 16, 24), strict=True):
        dim.dim_value = size
    onnx.save(model, tmp_path / "fixed.onnx")
    assert GraphSide.of_file(tmp_path / "fixed.onnx").fixed(class_contract) == {"batch": 1, "height": 16, "width": 24}
    assert GraphSide.of_file(plain_file).fixed(class_contract) == NetworkSide(name="net", network=network).fixed(class_contract) == {}
