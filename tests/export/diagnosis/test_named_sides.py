import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgeport_export.diagnosis.named_sides import side_of
from edgeport_export.diagnosis.sides import GraphSide, NetworkSide
from edgeport_models import CheckpointError, NetworkError
from edgeport_runtime import Bundle, BundleError, Contract, InputError

NETS = """
from torch import nn
def net(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
def described():
    from edgeport_export import ImageTask
    from edgeport_runtime import Pixels
    return net(), ImageTask(task="embedding", pixels=Pixels(height=8, width=8))
"""


@pytest.mark.parametrize(
    ("detail", "precision", "engine"),
    [("", "fp32", "onnxruntime"), ("@int8", "int8", "onnxruntime"), ("@openvino", "fp32", "openvino"), ("@int8+openvino", "int8", "openvino")],
)
def test_a_bundle_with_a_precision_and_an_engine(detail: str, precision: str, engine: str, tiny_bundle: Path) -> None:
    side = side_of(f"{tiny_bundle}{detail}")
    assert isinstance(side, GraphSide) and (side.precision, side.engine) == (precision, engine)
    assert side.contract == Bundle(tiny_bundle).manifest.contract


def test_things_of_python_and_files(tiny_bundle: Path, plain_file: Path, network: nn.Module, checkpoint: Path) -> None:
    assert side_of(Bundle(tiny_bundle)).name == f"{tiny_bundle}@fp32"
    assert isinstance(side_of(network), NetworkSide) and side_of(network).name == "TinyClassifier"
    file = side_of(f"{plain_file}@openvino")
    assert isinstance(file, GraphSide) and file.engine == "openvino" and file.contract is None
    assert side_of(file) is file
    trained = side_of(checkpoint)
    assert isinstance(trained, NetworkSide) and isinstance(trained.contract, Contract)


def test_a_folder_of_a_backend_test_is_its_model(plain_file: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(plain_file.read_bytes())
    side = side_of(tmp_path)
    assert isinstance(side, GraphSide) and side.contract is None and side.folder == tmp_path


def test_a_bundle_that_lost_its_manifest_is_no_backend_test(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes((tiny_bundle / "model.onnx").read_bytes())
    with pytest.raises(BundleError, match="expected a bundle, but there is no manifest"):
        side_of(tmp_path)


def test_a_factory_with_and_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "named_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "named_nets", raising=False)
    weights = {"0.weight": torch.full((4, 3, 3, 3), 0.5), "0.bias": torch.zeros(4)}
    save_file(weights, tmp_path / "w.safetensors")
    side = side_of("named_nets:net@w.safetensors")
    assert isinstance(side, NetworkSide) and side.contract is None and not side.network.training
    assert torch.equal(side.network.state_dict()["0.weight"], weights["0.weight"])
    described = side_of("named_nets:described")
    assert described.contract is not None and described.contract.task == "embedding"
    with pytest.raises(CheckpointError, match=r"gone\.pt"):
        side_of("named_nets:net@gone.pt")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("{bundle}@int4", InputError, "after the @ of a bundle comes a precision (fp32, int8, fp16) or an engine (onnxruntime, openvino), got 'int4'"),
        ("{bundle}@fp16", BundleError, "no fp16 variant in this bundle; it has fp32, int8"),
        ("{plain}@int8", InputError, "after the @ of an ONNX file comes an engine, onnxruntime or openvino, got 'int8'"),
        ("nowhere", InputError, "there is no such bundle, ONNX file or checkpoint"),
        ("{folder}", BundleError, "expected a bundle, but there is no manifest.json"),
        ("no.such.module:net", NetworkError, "cannot be imported"),
    ],
)
def test_what_is_no_model_says_what_is_expected(name: str, kind: type[Exception], words: str, tiny_bundle: Path, plain_file: Path, tmp_path: Path) -> None:
    with pytest.raises(kind) as caught:
        side_of(name.format(bundle=tiny_bundle, plain=plain_file, folder=tmp_path))
    assert words in str(caught.value)


def test_a_number_is_no_model() -> None:
    with pytest.raises(InputError, match="expected a PyTorch network, a Bundle, or the name of a model, got int"):
        side_of(3)  # type: ignore[arg-type]
