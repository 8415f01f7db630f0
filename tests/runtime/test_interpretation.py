"""Raw outputs as answers, for each task."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeport_runtime import Contract, DetectionHead, Detections, Input, Output, Pixels, Prediction, Range, Segmentation
from edgeport_runtime.contract import pixel_input
from edgeport_runtime.interpretation import RunOutputs, softmax
from edgeport_runtime.pixels import Resize
from edgeport_runtime.predictions import FloatMap, Label, Values
from edgeport_runtime.tasks import TaskName, find_task


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([[1000.0, 1000.0], [-1000.0, 0.0]], [[0.5, 0.5], [0.0, 1.0]]),
        ([[0.0, np.log(3.0)]], [[0.25, 0.75]]),
        ([[-np.inf, 0.0]], [[0.0, 1.0]]),
    ],
)
def test_softmax_does_not_overflow(logits: list[list[float]], expected: list[list[float]]) -> None:
    found = softmax(np.array(logits, np.float32))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-7)


RANGE = Range(low=1, high=4)


def fixed(given: Input) -> Input:
    return replace(given, shape=("batch", 8, 8, 3))


def answers(
    task: TaskName, arrays: dict[str, NDArray[Any]], *, top: int = 5, labels: tuple[str, ...] = (), resize: Resize = "stretch", **more: Any
) -> list[Any]:
    """What a model of one size (8x8) makes of these outputs, for images of 16 x 32 (HxW)."""
    described = more.pop("outputs", {})
    outputs = []
    for name, array in arrays.items():
        facts = {"kind": find_task(task).output_kind, **described.get(name, {})}
        outputs.append(Output(name=name, dtype=str(array.dtype), shape=("batch", *array.shape[1:]), **facts))
    given = pixel_input(Pixels(height=8, width=8, resize=resize))
    contract = Contract(task=task, inputs=(fixed(given),), outputs=tuple(outputs), axes={"batch": RANGE}, labels=labels, **more)
    count = len(next(iter(arrays.values())))
    return find_task(task).interpret(RunOutputs(outputs=arrays, contract=contract, sources_px=[(16, 32)] * count, network_px=(8, 8), top=top))


def test_classes_come_in_falling_order() -> None:
    logits = np.log(np.array([[0.2, 0.5, 0.3], [0.6, 0.2, 0.2]], np.float32))
    first, second = answers("classification", {"logits": logits}, labels=("dark", "middle", "bright"), top=2)
    assert isinstance(first, Prediction) and isinstance(second, Prediction)
    assert (first.label, [each.label for each in first.top]) == ("middle", ["middle", "bright"]) and first.score == pytest.approx(0.5)
    assert [each.label for each in second.top] == ["dark", "middle"]  # of two that are equal the first


def test_classes_without_labels_are_named_by_their_index() -> None:
    (found,) = answers("classification", {"logits": np.array([[0.0, 9.0]], np.float32)})
    assert isinstance(found, Prediction) and found.label == "1" and len(found.top) == 2 and isinstance(found.top[0], Label)


def test_each_position_has_its_class() -> None:
    scores = np.zeros((2, 3, 2, 2), np.float32)
    scores[0, 2], scores[1, 1, 0, 1] = 1.0, 1.0
    first, second = answers("segmentation", {"scores": scores}, labels=("a", "b", "c"))
    assert isinstance(first, Segmentation) and isinstance(second, Segmentation)
    assert first.classes.tolist() == [[2, 2], [2, 2]] and second.classes.tolist() == [[0, 1], [0, 0]] and first.labels == ("a", "b", "c")
    assert first.at_source().shape == (16, 32)


def test_a_vector_for_each_image() -> None:
    found = answers("embedding", {"vector": np.arange(6, dtype=np.float32).reshape(2, 3)})
    assert [each.tolist() for each in found] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_an_image_for_each_image(channels: int, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 6, channels), dtype=np.uint8)
    for image, array in zip(answers("image-to-image", {"image": pixels}), pixels, strict=True):
        assert isinstance(image, Image.Image) and image.mode == mode and image.size == (6, 4)
        np.testing.assert_array_equal(np.asarray(image).reshape(array.shape), array)


@pytest.mark.parametrize(
    ("resize", "expected"),
    [
        # the source is 16 x 32; the network's input 8 x 8
        ("stretch", [[0.0, 0.0, 16.0, 16.0], [8.0, 4.0, 32.0, 16.0]]),
        ("letterbox", [[0.0, 0.0, 16.0, 8.0], [8.0, 0.0, 32.0, 16.0]]),  # 4 rows of the image from row 2 on, four source pixels each; the rest is padding
    ],
)
def test_boxes_are_those_of_the_source(resize: Resize, expected: list[list[float]]) -> None:
    boxes = np.array([[[0, 0, 4, 8 if resize == "stretch" else 4], [2, 2, 8, 8], [0, 0, 4, 2]]], np.float32)
    scores = np.array([[[0.9, 0.1], [0.2, 0.8], [0.9 if resize == "letterbox" else 0.0, 0.0]]], np.float32)
    head = DetectionHead(activation="none", iou_threshold=None, score_threshold=0.5)
    kinds = {"boxes": {"kind": "boxes"}, "scores": {"kind": "scores"}}
    (found,) = answers("detection", {"boxes": boxes, "scores": scores}, labels=("cat", "dog"), resize=resize, outputs=kinds, detection=head)
    assert isinstance(found, Detections)
    assert found.boxes.tolist() == expected and [each.label for each in found] == ["cat", "dog"]  # what lies in the padding alone is none
    assert found[0].box == tuple(expected[0]) and found[0].score == pytest.approx(0.9) and len(found.at_least(0.85)) == 1


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 1, 8, 8)])
def test_a_map_has_its_range_and_unit(shape: tuple[int, ...]) -> None:
    depth = np.full(shape, 2.5, np.float32)
    (found,) = answers("map", {"depth": depth}, outputs={"depth": {"range": (0.0, 10.0), "unit": "m"}})
    assert isinstance(found, FloatMap) and found.unit == "m" and found.at_source().shape == (16, 32) and (found.at_source() == 2.5).all()
    assert np.unique(np.asarray(found.to_image())).tolist() == [64]  # 255 * 2.5 / 10, rounded


def test_numbers_and_points_have_names() -> None:
    outputs = {
        "size": np.array([[3.0, 4.0]], np.float32),
        "eyes": np.array([[[0.5, 0.5], [1.0, 0.25]]], np.float32),
        "nose": np.array([[4.0, 8.0]], np.float32),
        "rest": np.array([[7.0]], np.float32),
    }
    described = {
        "size": {"names": ("width", "height"), "unit": "mm"},
        "eyes": {"kind": "landmarks", "names": ("left", "right"), "unit": "share"},
        "nose": {"kind": "landmarks", "names": ("nose",), "unit": "px"},
    }
    (found,) = answers("tensors", outputs, outputs=described)
    assert isinstance(found, Values)
    assert found.values == {"width": 3.0, "height": 4.0} and found.units == {"width": "mm", "height": "mm"}
    assert found.points == {"left": (16.0, 8.0), "right": (32.0, 4.0), "nose": (16.0, 16.0)}  # of 32 x 16 pixels
    assert {name: array.tolist() for name, array in found.arrays.items()} == {"rest": [7.0]}
