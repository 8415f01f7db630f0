import importlib
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

from edgeport_export import load_factory, model_libraries
from edgeport_export.model_libraries import _timm_pixels, is_library_name, library_model
from edgeport_models import NetworkError
from edgeport_runtime.images import prepare

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (301, 407, 3), dtype=np.uint8))


def normalized(network_name: str) -> np.ndarray:
    _, task = library_model(network_name, classes=None, download=False)
    levels = prepare(PHOTO, task.pixels).astype(np.float64) / 255
    return ((levels - task.pixels.mean) / task.pixels.std).transpose(2, 0, 1)


@pytest.mark.parametrize("name", ["mobilenetv4_conv_small", "vit_tiny_patch16_224", "efficientnet_lite0", "resnetv2_50x1_bit"])
def test_timms_preprocessing_is_timms(name: str) -> None:
    config = timm.data.resolve_model_data_config(timm.create_model(name))
    expected = timm.data.create_transform(**config, is_training=False)(PHOTO).numpy()
    np.testing.assert_allclose(normalized(f"timm:{name}"), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0"])
def test_torchvisions_preprocessing_and_labels_are_torchvisions(name: str) -> None:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    np.testing.assert_allclose(normalized(f"torchvision:{name}"), weights.transforms()(PHOTO).numpy(), atol=1e-6)
    network, task = library_model(f"torchvision:{name}", classes=None, download=False)
    assert task.labels == tuple(weights.meta["categories"]) and len(task.labels) == 1000 and not network.training


def test_a_segmentation_network_has_its_task_and_labels() -> None:
    _, task = library_model("torchvision:lraspp_mobilenet_v3_large", classes=None, download=False)
    assert task.task == "segmentation" and task.labels[:2] == ("__background__", "aeroplane") and len(task.labels) == 21


def test_the_head_has_as_many_classes_as_there_are_labels() -> None:
    for name in ("timm:mobilenetv4_conv_small", "torchvision:resnet18"):
        network, task = library_model(name, classes=7, download=False)
        with torch.inference_mode():
            assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 7) and task.labels == ()


def test_random_weights_are_the_same_again() -> None:
    first, second = (library_model("timm:mobilenetv4_conv_small", classes=3, download=False)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def offline(*_: Any, **__: Any) -> nn.Module:
    raise OSError("[Errno -2] Name or service not known")


@pytest.mark.parametrize(("library", "module"), [("timm", timm), ("torchvision", torchvision.models)])
def test_weights_that_cannot_be_downloaded(library: str, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "create_model" if library == "timm" else "get_model", offline)
    words = r"resnet18: its weights could not be downloaded \(OSError: .*\); give a file with --checkpoint, or try the export with --random-weights"
    with pytest.raises(NetworkError, match=words):
        load_factory(f"{library}:resnet18", None, None)


@pytest.mark.parametrize("reached", [True, False])
def test_a_hub_that_cannot_be_reached_is_asked_once(reached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    constants, asked = importlib.import_module("huggingface_hub.constants"), []

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        asked.append((address[1], timeout))
        if not reached:
            raise OSError("[Errno -2] Name or service not known")
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(model_libraries, "getproxies", dict)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail(f"offline: {constants.HF_HUB_OFFLINE}"))
    with pytest.raises(pytest.fail.Exception, match=f"offline: {not reached}"):
        load_factory("timm:resnet18", None, None)
    assert asked == [(443, 3.0)] and constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:mobilenetv4_conv_smal", r"timm [\d.]+ has no such network; it has mobilenetv4_conv_small"),
        ("torchvision:resnet19", r"torchvision [\d.]+\S* has no such network; it has resnet1"),
        ("torchvision:fasterrcnn_resnet50_fpn", "looks at its own boxes a second time, in a loop that is no graph: export a detector of one stage"),
        ("torchvision:r3d_18", "videos are no images"),
        ("torchvision:raft_small", "it takes two images"),
        ("torchvision:quantized_resnet18", "a quantized network; export the float one"),
        ("timm:", "has no such network"),
    ],
)
def test_names_that_are_refused(name: str, words: str) -> None:
    with pytest.raises(NetworkError, match=words):
        library_model(name, classes=None, download=False)


@pytest.mark.parametrize("change", [{"crop_mode": "border"}, {"input_size": (3, 224, 160)}, {"interpolation": "random"}, {"input_size": (4, 8, 8)}])
def test_preprocessing_that_edgeport_has_not_is_refused(change: dict[str, Any]) -> None:
    config = {"input_size": (3, 8, 8), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0, "crop_mode": "center"}
    assert _timm_pixels("timm:x", {**config, "crop_mode": "squash"}).resize == "stretch"
    with pytest.raises(NetworkError, match=re.escape("none that edgeport knows; export it from a factory")):
        _timm_pixels("timm:x", {**config, **change})


def test_random_weights_are_the_libraries_alone() -> None:
    assert is_library_name("timm:a") and not is_library_name("my.timm:a") and not is_library_name("timm")
    with pytest.raises(NetworkError, match="--random-weights is for timm:NAME and torchvision:NAME"):
        load_factory("torch.nn:Identity", None, None, random_weights=True)


def test_a_checkpoint_of_a_library_is_loaded(tmp_path: Path) -> None:
    state = timm.create_model("mobilenetv4_conv_small", num_classes=4).state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pth")
    source = load_factory("timm:mobilenetv4_conv_small", tmp_path / "w.pth", None, classes=4)
    assert all(torch.equal(value, state[key]) for key, value in source.network.state_dict().items())
    assert source.name == "mobilenetv4_conv_small" and source.contract.outputs[0].shape == ("batch", 4)
