"""Networks that edgeport knows nothing of, from factory to bundle: other libraries, several inputs, several outputs, another folder."""

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeport_export import ExportOptions, ImageTask, export_bundle, image_contract
from edgeport_export.cli.app import main
from edgeport_export.rewrites.finalize import finalize
from edgeport_export.tracing.exporter import trace
from edgeport_models import CNN
from edgeport_runtime import Contract, Input, Output, Pixels, Range, SessionOptions, load
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import classification
from edgeport_runtime.engine import Engine

ROOT = Path(__file__).parents[1]
FP32 = ExportOptions(precisions=("fp32",))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("name", ["test_resnet", *(pytest.param(name, marks=pytest.mark.long) for name in ("test_efficientnet", "test_convnext"))])
def test_a_network_of_timm_goes_through_unchanged(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=7).eval()
    sides = Range(low=64, high=192)
    pixels = Pixels(height=96, width=96, mean=MEAN, std=STD)
    contract = image_contract(network, ImageTask(task="classification", pixels=pixels, axes={"batch": Range(low=1, high=8), "height": sides, "width": sides}))
    out = export_bundle(network, contract, tmp_path / "b", name=name, options=FP32).folder
    image = noise(2, 101, 130, 3)
    x = (torch.from_numpy(image).double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    expected = network.double()(x.permute(0, 3, 1, 2)).detach().numpy()
    np.testing.assert_allclose(load(out).raw(image)["logits"], expected, atol=2e-5 * np.ptp(expected))


class Two(nn.Module):
    """An image, another of another size and a vector in; a tuple of a scalar score and a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.mix = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 4, 3), nn.Linear(13, 2)

    def forward(self, left: Tensor, right: Tensor, extra: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features = torch.cat([self.left(left).mean((2, 3)), self.right(right).amax((2, 3)), extra], dim=1)
        return self.mix(features), {"features": features, "total": features.sum(1, keepdim=True)}


def two_contract() -> Contract:
    return Contract(
        task="tensors",
        inputs=(
            Input(name="left", dtype="uint8", shape=("batch", "height", "width", 3), pixels=Pixels(height=12, width=16, mean=(0.5,) * 3, std=(0.25,) * 3)),
            Input(name="right", dtype="uint8", shape=("batch", 9, 9, 1), pixels=Pixels(height=9, width=9, mode="L", mean=(0.0,), std=(1.0,))),
            Input(name="extra", dtype="float32", shape=("batch", 5)),
        ),
        outputs=(
            Output(name="score", dtype="float32", shape=("batch", 2), kind="tensor"),
            Output(name="features", dtype="float32", shape=("batch", 13), kind="tensor"),
            Output(name="total", dtype="float32", shape=("batch", 1), kind="tensor"),
        ),
        axes={"batch": Range(low=1, high=4), "height": Range(low=8, high=40), "width": Range(low=8, high=40)},
    )


def test_several_inputs_and_nested_outputs_through_a_contract_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    network = Two().eval()
    torch.save({"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, tmp_path / "two.pt")
    (tmp_path / "contract.json").write_text(two_contract().to_json())
    monkeypatch.setitem(sys.modules, "two_inputs", type(sys)("two_inputs"))
    sys.modules["two_inputs"].make = Two  # type: ignore[attr-defined]
    command = ["export", "two_inputs:make", "--checkpoint", str(tmp_path / "two.pt"), "--contract", str(tmp_path / "contract.json")]
    assert main([*command, "--out", str(tmp_path / "b")]) == 0, capsys.readouterr().err
    model = load(tmp_path / "b")
    assert model.check()
    left, right = noise(3, 11, 30, 3), noise(3, 9, 9, 1, seed=1)
    extra = np.random.default_rng(2).standard_normal((3, 5)).astype(np.float32)
    got = model.raw(left=left, right=right, extra=extra)
    tensors = ((torch.from_numpy(left) / 255 - 0.5) / 0.25).permute(0, 3, 1, 2).double(), (torch.from_numpy(right) / 255).permute(0, 3, 1, 2).double()
    score, rest = network.double()(*tensors, torch.from_numpy(extra).double())
    for name, expected in {"score": score, **rest}.items():
        np.testing.assert_allclose(got[name], expected.detach().numpy(), atol=1e-6)


def test_a_network_of_plain_tensors_with_axes_of_its_own(tmp_path: Path) -> None:
    class Mixer(nn.Module):
        def forward(self, query: Tensor, key: Tensor) -> Tensor:
            return torch.softmax(query @ key.transpose(1, 2), dim=-1) @ key

    contract = Contract(
        task="tensors",
        inputs=(
            Input(name="query", dtype="float32", shape=("batch", "length", 6)),
            Input(name="key", dtype="float32", shape=("batch", "positions", 6)),
        ),
        outputs=(Output(name="mixed", dtype="float32", shape=("batch", "length", 6), kind="tensor"),),
        axes={"batch": Range(low=1, high=3), "length": Range(low=1, high=20), "positions": Range(low=1, high=30)},
    )
    model = load(export_bundle(Mixer(), contract, tmp_path / "b", name="mixer", options=FP32).folder)
    query, key = (np.random.default_rng(i).standard_normal((2, size, 6)).astype(np.float32) for i, size in enumerate((17, 5)))
    expected = Mixer()(torch.from_numpy(query).double(), torch.from_numpy(key).double()).numpy()
    np.testing.assert_allclose(model.raw(query=query, key=key)["mixed"], expected, atol=1e-6)


def test_an_embedding_is_a_vector_for_each_image(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    contract = image_contract(network, ImageTask(task="embedding", pixels=Pixels(height=20, width=20, mean=(0.5,) * 3, std=(0.5,) * 3)))
    model = load(export_bundle(network, contract, tmp_path / "b", name="e", options=FP32).folder)
    image = noise(20, 20, 3)
    expected = network.double()(torch.from_numpy(image[None]).permute(0, 3, 1, 2).double() / 127.5 - 1)[0].detach().numpy()
    np.testing.assert_allclose(model(image), expected, atol=1e-6)


@pytest.fixture(scope="module")
def cnn() -> tuple[nn.Module, Engine]:
    torch.manual_seed(0)
    network = CNN().eval()
    contract = classification(
        Pixels(height=64, width=64, mean=(0.5,) * 3, std=(0.5,) * 3),
        tuple("0123456789"),
        image_axes(smallest_px=CNN.SMALLEST_PX, largest_px=1024, largest_batch=16),
    )
    return copy.deepcopy(network).double(), Engine(finalize(trace(network, contract).model, contract), contract, SessionOptions(threads=1))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(CNN.SMALLEST_PX, 200), st.integers(CNN.SMALLEST_PX, 200))
def test_the_cnn_is_right_at_40_random_sizes(cnn: tuple[nn.Module, Engine], batch: int, height: int, width: int) -> None:
    network, engine = cnn
    image = noise(batch, height, width, 3, seed=height)
    expected = network(torch.from_numpy(image).permute(0, 3, 1, 2).double() / 127.5 - 1).detach().numpy()
    np.testing.assert_allclose(engine.run({"pixels": image})["logits"], expected, atol=2e-6)


EXPORT = """
import sys
from pathlib import Path
from edgeport_export.cli.export_command import ExportJob, run_export
from edgeport_export.progress import no_progress
run_export(ExportJob(name="cnn", checkpoint=Path(sys.argv[1]), out=Path(sys.argv[2]), precision="fp32"), no_progress)
"""


@pytest.mark.long
def test_two_clones_in_two_folders_write_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    """Another folder, another process, another hash seed: every file but the evidence."""
    found = []
    for number, folder in enumerate(("clone", "some where/else")):
        clone = tmp_path / folder
        for package in ("export", "runtime", "models"):
            shutil.copytree(ROOT / package, clone / package, ignore=shutil.ignore_patterns("__pycache__"))
        weights = Path(shutil.copy(checkpoint, clone / "weights.safetensors"))
        paths = os.pathsep.join(str(clone / package) for package in ("runtime", "models", "export"))
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": str(number)}
        subprocess.run([sys.executable, "-c", EXPORT, str(weights), str(clone / "bundle")], cwd=clone, env=environment, check=True, capture_output=True)
        files = [path for path in sorted((clone / "bundle").rglob("*")) if path.is_file() and path.name != "evidence.json"]
        found.append({str(path.relative_to(clone / "bundle")): hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
        assert json.loads((clone / "bundle" / "manifest.json").read_text())["name"] == "cnn"
    assert found[0] == found[1] and len(found[0]) > 5
