import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from edgeport_export import ExportError
from edgeport_export.diagnosis.pipelines import Pipeline, find_pipeline, torchvision_transforms
from edgeport_export.network.size_sweep import random_image
from edgeport_runtime import Pixels
from edgeport_runtime.images import prepare

IMAGE = Image.fromarray(random_image((1, 90, 130, 3), np.random.default_rng(0))[0])
PIXELS = Pixels(height=48, width=48, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    "rule", [{"resize": "stretch"}, {"resize": "crop", "resize_shorter_px": 60}, {"resize": "letterbox"}, {"resize": "keep"}], ids=lambda rule: rule["resize"]
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_torchvisions_transforms_see_what_the_contract_describes(rule: dict[str, Any], interpolation: Any) -> None:
    pixels = Pixels(**{**vars(PIXELS), **rule, "interpolation": interpolation})
    made = Pipeline(name="t", function=torchvision_transforms(pixels))(IMAGE)
    expected = (prepare(IMAGE, pixels) / 255 - np.array(pixels.mean)) / np.array(pixels.std)
    np.testing.assert_allclose(made.transpose(1, 2, 0), expected, atol=1e-5)


def test_gray_images_have_one_channel() -> None:
    pixels = Pixels(height=48, width=48, mode="L")
    made = Pipeline(name="t", function=torchvision_transforms(pixels))(IMAGE)
    np.testing.assert_allclose(made[0], prepare(IMAGE, pixels)[:, :, 0] / 255, atol=1e-6)


def test_pipelines_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_pre.py").write_text("import numpy as np\ndef ones(image): return np.ones((1, 3, image.height, image.width))\nnumber = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_pre", raising=False)
    assert find_pipeline("my_pre:ones", PIXELS)(IMAGE).shape == (3, 90, 130)
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    np.testing.assert_array_equal(find_pipeline("ResNet18_Weights.IMAGENET1K_V1", PIXELS)(IMAGE), weights.transforms()(IMAGE).numpy())
    for name, words in (
        ("my_pre:two", "cannot be imported"),
        ("my_pre:number", "expected a function that takes a PIL image, got int"),
        ("no", "expected a pipeline"),
    ):
        with pytest.raises(ExportError, match=words):
            find_pipeline(name, PIXELS)


def test_a_timm_models_own_transform() -> None:
    timm = pytest.importorskip("timm")
    made = find_pipeline("timm:resnet18", PIXELS)(IMAGE)
    own = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg("resnet18").to_dict()), is_training=False)
    np.testing.assert_array_equal(made, own(IMAGE).numpy())
    with pytest.raises(ExportError, match="timm has no such network"):
        find_pipeline("timm:none_such", PIXELS)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda image: 1 / 0, "the pipeline .* failed on a PIL image \\(ZeroDivisionError"),
        (lambda image: image, "must make a tensor of shape \\(channels, height, width\\) of a PIL image, got uint8 of shape \\(90, 130, 3\\)"),
        (lambda image: torch.zeros(2, 3, 8, 8), "got float32 of shape \\(2, 3, 8, 8\\)"),
        (lambda image: "text", "must make a tensor"),
    ],
)
def test_what_is_no_pipeline_says_what_is_expected(function: Any, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        find_pipeline(function, PIXELS)(IMAGE)
