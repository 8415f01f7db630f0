import numpy as np
import pytest
from PIL import Image

from edgeport_runtime import Prediction, Segmentation
from edgeport_runtime.predictions import Label, embeddings, generated_images, predictions, segmentations, softmax


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


def test_classes_come_in_falling_order() -> None:
    logits = np.log(np.array([[0.2, 0.5, 0.3], [0.6, 0.2, 0.2]], np.float32))
    first, second = predictions(logits, ("dark", "middle", "bright"), 2)
    assert isinstance(first, Prediction) and isinstance(second, Prediction)
    assert (first.label, [each.label for each in first.top]) == ("middle", ["middle", "bright"]) and first.score == pytest.approx(0.5)
    assert [each.label for each in second.top] == ["dark", "middle"]  # of two that are equal the first


def test_classes_without_labels_are_named_by_their_index() -> None:
    (found,) = predictions(np.array([[0.0, 9.0]], np.float32), (), 5)
    assert isinstance(found, Prediction) and found.label == "1" and len(found.top) == 2 and isinstance(found.top[0], Label)


def test_each_position_has_its_class() -> None:
    scores = np.zeros((2, 3, 2, 2), np.float32)
    scores[0, 2], scores[1, 1, 0, 1] = 1.0, 1.0
    first, second = segmentations(scores, ("a", "b", "c"), 5)
    assert isinstance(first, Segmentation) and isinstance(second, Segmentation)
    assert first.classes.tolist() == [[2, 2], [2, 2]] and second.classes.tolist() == [[0, 1], [0, 0]] and first.labels == ("a", "b", "c")


def test_a_vector_for_each_image() -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = embeddings(vectors, (), 5)
    assert [each.tolist() for each in found] == [[0, 1, 2], [3, 4, 5]]  # type: ignore[union-attr]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_an_image_for_each_image(channels: int, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 6, channels), dtype=np.uint8)
    for image, array in zip(generated_images(pixels, (), 5), pixels, strict=True):
        assert isinstance(image, Image.Image) and image.mode == mode and image.size == (6, 4)
        np.testing.assert_array_equal(np.asarray(image).reshape(array.shape), array)
