"""The preprocessing that a network was trained with, as a function: torchvision's transforms, a timm model's own, or one that the user names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from edgeport_export.errors import ExportError
from edgeport_export.import_string import imported, name_of
from edgeport_runtime import Pixels
from edgeport_runtime.errors import first_line

FILTERS = {
    "nearest": v2.InterpolationMode.NEAREST,
    "bilinear": v2.InterpolationMode.BILINEAR,
    "bicubic": v2.InterpolationMode.BICUBIC,
    "lanczos": v2.InterpolationMode.LANCZOS,
}


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """From a PIL image to what a network takes. `name`: for messages. `function`: gives a tensor or an array (C, H, W), or (1, C, H, W)."""

    name: str
    function: Callable[[Image.Image], Any]

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """float32 (C, H, W). Raises ExportError if the function fails, or gives something else."""
        try:
            given = self.function(image)
        except Exception as error:  # the user's own code
            raise ExportError(f"the pipeline {self.name} failed on a PIL image ({type(error).__name__}: {first_line(error)})") from error
        array = np.asarray(given.detach().cpu() if isinstance(given, torch.Tensor) else given)
        array = array[0] if array.ndim == 4 and len(array) == 1 else array
        if array.ndim != 3 or array.shape[0] not in (1, 3) or array.dtype.kind not in "fiu":
            raise ExportError(
                f"the pipeline {self.name} must make a tensor of shape (channels, height, width) of a PIL image, got {array.dtype} of shape {array.shape}"
            )
        return array.astype(np.float32)


def find_pipeline(given: "str | Callable[[Image.Image], Any] | None", pixels: Pixels) -> Pipeline:
    """`given`: a function, its name as my.module:function, a torchvision weights object's name such as ResNet50_Weights.IMAGENET1K_V2, timm:NAME for the
    transform of a timm model, or None for torchvision's transforms as the contract describes them. Raises ExportError."""
    if given is None:
        return Pipeline(name="torchvision's transforms, as the contract describes them", function=torchvision_transforms(pixels))
    if callable(given):
        return Pipeline(name=name_of(given), function=given)
    if given.startswith("timm:"):
        return Pipeline(name=given, function=_timm_transform(given))
    if ":" not in given:
        try:
            return Pipeline(name=given, function=torchvision.models.get_weight(given).transforms())
        except (ValueError, AttributeError, KeyError) as error:
            raise ExportError(f"expected a pipeline as my.module:function, timm:NAME or the name of torchvision weights, got {given!r} ({error})") from error
    try:
        function = imported(given)
    except (ImportError, AttributeError, ValueError) as error:
        raise ExportError(f"{given}: the pipeline cannot be imported ({error}); expected my.module:function, seen from the current folder") from error
    if not callable(function):
        raise ExportError(f"{given}: expected a function that takes a PIL image, got {type(function).__name__}")
    return Pipeline(name=given, function=function)


def torchvision_transforms(pixels: Pixels) -> Callable[[Image.Image], Any]:
    """What a training script with torchvision would do for this contract. Letterboxing, which it has no transform for, is a resize and a pad."""
    kind = FILTERS[pixels.interpolation]
    steps: list[Any] = []
    if pixels.resize == "stretch":
        steps = [v2.Resize((pixels.height, pixels.width), kind)]
    elif pixels.resize == "crop":
        steps = [v2.Resize(pixels.resize_shorter_px, kind), v2.CenterCrop((pixels.height, pixels.width))]
    elif pixels.resize == "letterbox":
        steps = [_Letterbox(pixels)]
    gray = [v2.Grayscale()] if pixels.mode == "L" else []
    levels = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(pixels.mean), list(pixels.std))]
    composed: Callable[[Image.Image], Any] = v2.Compose([*gray, *steps, *levels])
    return composed


class _Letterbox:
    """The whole image inside, padded on both sides alike."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels

    def __call__(self, image: Image.Image) -> Any:
        pixels = self.pixels
        scale = min(pixels.width / image.width, pixels.height / image.height)
        inner = (max(1, round(image.height * scale)), max(1, round(image.width * scale)))
        left, top = (pixels.width - inner[1]) // 2, (pixels.height - inner[0]) // 2
        resized = v2.functional.resize(image, list(inner), FILTERS[pixels.interpolation])
        right, bottom = pixels.width - inner[1] - left, pixels.height - inner[0] - top
        return v2.functional.pad(resized, [left, top, right, bottom], fill=pixels.fill)


def _timm_transform(name: str) -> Callable[[Image.Image], Any]:
    try:
        import timm
    except ImportError as error:
        raise ExportError(f"{name}: timm cannot be imported ({error}); pip install timm") from error
    model = name.partition(":")[2]
    if not timm.is_model(model):
        raise ExportError(f"{name}: timm has no such network")
    data: Any = timm.data
    found: Any = timm.get_pretrained_cfg(model)
    made: Callable[[Image.Image], Any] = data.create_transform(**data.resolve_data_config(pretrained_cfg=found.to_dict()), is_training=False)
    return made
