from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from edgeport_export import ExportError
from edgeport_export.diagnosis.pipelines import Pipeline, torchvision_transforms
from edgeport_export.diagnosis.recipes import RecipeComparison, compare_recipe, normalization
from edgeport_export.network.size_sweep import random_image
from edgeport_runtime import Pixels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PIXELS = Pixels(height=64, width=64, mean=MEAN, std=STD, resize="crop", resize_shorter_px=73)
IMAGES = [Image.fromarray(random_image((1, h, w, 3), np.random.default_rng(h))[0]) for h, w in ((180, 250), (230, 160))]
NORMALIZE = v2.Normalize(list(MEAN), list(STD))
CROP = [v2.Resize(73), v2.CenterCrop(64)]
TENSOR = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
BGR = v2.Lambda(lambda made: made.flip(0))


def compared(*steps: Any) -> RecipeComparison:
    return compare_recipe(Pipeline(name="mine", function=v2.Compose(list(steps))), PIXELS, IMAGES)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((*CROP, *TENSOR, NORMALIZE), []),
        ((v2.PILToTensor(), v2.Resize(73, antialias=True), v2.CenterCrop(64), v2.ToDtype(torch.float32, scale=True), NORMALIZE), []),
        ((*CROP, *TENSOR, v2.Normalize(list(MEAN[::-1]), list(STD[::-1]))), ["mean is (0.485, 0.456, 0.406) in the contract, (0.406, 0.456, 0.485)", "std is"]),
        ((*CROP, *TENSOR, NORMALIZE, BGR), ["the channel order is red, green, blue in the contract, blue, green, red in the pipeline"]),
        ((*CROP, *TENSOR), ["mean is", "std is (0.229, 0.224, 0.225) in the contract, (1.0, 1.0, 1.0)"]),
        ((*CROP, v2.PILToTensor(), v2.ToDtype(torch.float32)), ["mean is", "the value range differs: one of them is for levels of 0..255"]),
        ((v2.Resize((64, 64)), *TENSOR, NORMALIZE), ["resize is crop:73 in the contract, stretch in the pipeline"]),
        ((v2.Resize(64), v2.CenterCrop(64), *TENSOR, NORMALIZE), ["resize is crop:73 in the contract, crop:64 in the pipeline"]),
        ((v2.Resize(81), v2.CenterCrop(64), *TENSOR, NORMALIZE), ["resize is crop:73 in the contract, crop:81 in the pipeline"]),
        ((v2.Resize(55), v2.CenterCrop(48), *TENSOR, NORMALIZE), ["size is 64x64 in the contract, 48x48 in the pipeline", "crop:55"]),
        (
            (v2.Resize(73, v2.InterpolationMode.BICUBIC), v2.CenterCrop(64), *TENSOR, NORMALIZE),
            ["interpolation is bilinear in the contract, bicubic in the pipeline"],
        ),
        ((v2.Resize(73, v2.InterpolationMode.LANCZOS), v2.CenterCrop(64), *TENSOR, NORMALIZE), ["lanczos in the pipeline"]),
        ((v2.Resize(73, v2.InterpolationMode.NEAREST), v2.CenterCrop(64), *TENSOR, NORMALIZE), ["nearest in the pipeline"]),
        ((*TENSOR, v2.Resize(73, antialias=False), v2.CenterCrop(64), NORMALIZE), ["antialias: the contract averages pixels when an image shrinks"]),
        (
            (*TENSOR, v2.Resize(73, v2.InterpolationMode.BICUBIC, antialias=False), v2.CenterCrop(64), NORMALIZE),
            ["bicubic in the pipeline", "antialias: the contract"],
        ),
    ],
)
def test_what_differs_is_named_and_nothing_else(steps: tuple[Any, ...], words: list[str]) -> None:
    found = compared(*steps)
    assert len(found.differences) == len(words) and all(word in each for word, each in zip(words, found.differences, strict=True)), found.differences
    assert bool(found) is (not words) and ("FAILED" in str(found)) is bool(words)
    assert found.fitted.levels_apart < 1


def test_what_no_recipe_explains_is_a_difference() -> None:
    found = compared(v2.Resize(73), v2.CenterCrop(64), v2.RandomHorizontalFlip(p=1.0), *TENSOR, NORMALIZE)
    assert not found and "levels apart, and no rule, filter or size that is known explains it" in found.differences[-1]


def test_a_pipeline_of_training_is_refused() -> None:
    with pytest.raises(ExportError, match="mine gives two answers for one image: name that of evaluation"):
        compared(v2.RandomResizedCrop(64), *TENSOR, NORMALIZE)


def test_the_probes_tell_filters_apart_whatever_the_users_images_are() -> None:
    for kind in (v2.InterpolationMode.BICUBIC, v2.InterpolationMode.LANCZOS):
        steps = v2.Compose([v2.Resize(73, kind), v2.CenterCrop(64), *TENSOR, NORMALIZE])
        found = compare_recipe(Pipeline(name="mine", function=steps), PIXELS)
        assert found.differences == (f"interpolation is bilinear in the contract, {kind.value} in the pipeline",)
    assert compare_recipe(Pipeline(name="mine", function=torchvision_transforms(PIXELS)), PIXELS)


def test_mean_and_std_are_told_in_the_contracts_own_order() -> None:
    pipeline = Pipeline(name="mine", function=v2.Compose([*CROP, *TENSOR, NORMALIZE, BGR]))
    assert normalization(pipeline, PIXELS) == (pytest.approx(MEAN), pytest.approx(STD), True)


def test_a_pipeline_that_does_more_than_normalize_is_refused() -> None:
    curved = Pipeline(name="mine", function=v2.Compose([*CROP, *TENSOR, v2.Lambda(lambda made: made**2.2)]))
    with pytest.raises(ExportError, match="mine does not normalize with a mean and a std"):
        compare_recipe(curved, PIXELS, IMAGES)


@pytest.mark.parametrize(
    "rule", [{"resize": "keep"}, {"resize": "letterbox"}, {"resize": "stretch"}, {"resize": "stretch", "mode": "L", "mean": (0.5,), "std": (0.2,)}]
)
def test_every_rule_of_the_contract_is_its_own_recipe(rule: dict[str, Any]) -> None:
    pixels = Pixels(**{**vars(PIXELS), "resize_shorter_px": None, **rule})
    found = compare_recipe(Pipeline(name="mine", function=torchvision_transforms(pixels)), pixels, [each.convert(pixels.mode) for each in IMAGES])
    assert found, found.differences
