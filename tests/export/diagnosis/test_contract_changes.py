from dataclasses import replace
from typing import Any

import pytest

from edgeport_export import ImageTask
from edgeport_export.diagnosis.contract_changes import contract_changes
from edgeport_runtime import Contract, Pixels
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import classification, image_to_image

PIXELS = Pixels(height=16, width=16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
AXES = image_axes(smallest_px=4, largest_px=64)


def contract(labels: tuple[str, ...] = ("a", "b", "c"), **changes: Any) -> Contract:
    return classification(replace(PIXELS, **changes), labels, AXES)


@pytest.mark.parametrize(
    ("bundle", "words"),
    [
        (contract(mean=(0.3, 0.2, 0.1)), ["mean is (0.3, 0.2, 0.1) in the bundle, (0.1, 0.2, 0.3) with the network"]),
        (contract(interpolation="bicubic", std=(1.0, 1.0, 1.0)), ["interpolation is bicubic", "std is (1.0, 1.0, 1.0)"]),
        (contract(resize="crop", resize_shorter_px=20), ["resize is crop", "resize_shorter_px is 20"]),
        (contract(("b", "a", "c")), ["the labels are in another order than the network's: 'b' instead of 'a' for class 0, 'a' instead of 'b' for class 1"]),
        (contract(("a", "b", "d")), ["the labels are others than the network's: 'd' instead of 'c' for class 2"]),
        (contract(("a", "b")), ["there are 2 labels in the bundle, 3 with the network"]),
        (replace(contract(), axes=image_axes(smallest_px=8, largest_px=32)), []),
        (contract(), []),
    ],
)
def test_a_recipe_or_labels_that_differ_are_named(bundle: Contract, words: list[str]) -> None:
    for own in (contract(), ImageTask(task="classification", pixels=PIXELS, labels=("a", "b", "c"))):
        found = contract_changes(bundle, own)
        assert len(found) == len(words) and all(word in each for word, each in zip(sorted(words), sorted(found), strict=True)), found


def test_another_task_and_another_range_of_an_image() -> None:
    image = image_to_image(PIXELS, AXES)
    own = ImageTask(task="image-to-image", pixels=PIXELS, output_range=(0.0, 1.0))
    assert contract_changes(image, own) == ("the range of image is (-1.0, 1.0) in the bundle, (0.0, 1.0) with the network",)
    assert not contract_changes(image, replace(own, output_range=(-1.0, 1.0))) and not contract_changes(image, image)
    assert "task is classification in the bundle, image-to-image with the network" in contract_changes(contract(), image)


def test_a_description_without_labels_says_nothing_of_them() -> None:
    assert not contract_changes(contract(), ImageTask(task="classification", pixels=PIXELS))
