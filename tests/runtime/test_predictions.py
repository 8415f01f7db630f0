"""Answers as an application uses them."""

import numpy as np
import pytest
from PIL import Image

from edgeport_runtime import Detections, InputError, Pixels, Segmentation
from edgeport_runtime.framing import Framing
from edgeport_runtime.predictions import Detection, FloatMap, as_image, label_of

FOUND = Detections(
    boxes=np.array([[1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 9, 9]], np.float32),
    scores=np.array([0.9, 0.5, 0.25], np.float32),
    classes=np.array([1, 0, 1]),
    labels=("cat", "dog"),
)


def test_detections_are_a_sequence() -> None:
    assert len(FOUND) == 3 and [each.label for each in FOUND] == ["dog", "cat", "dog"]
    assert FOUND[0] == Detection(label="dog", index=1, score=pytest.approx(0.9), box=(1.0, 2.0, 3.0, 4.0)) and FOUND[-1].box == (0.0, 0.0, 9.0, 9.0)
    assert [each.score for each in FOUND[1:]] == [0.5, 0.25] and len(FOUND[FOUND.classes == 1]) == 2
    with pytest.raises(IndexError):
        FOUND[3]


def test_detections_of_at_least_a_score() -> None:
    assert len(FOUND.at_least(0.5)) == 2 and len(FOUND.at_least(0.0)) == 3 and not FOUND.at_least(0.95)


def test_a_class_without_a_label_is_named_by_its_index() -> None:
    assert (label_of(1, ("cat", "dog")), label_of(7, ())) == ("dog", "7")


def test_a_segmentation_in_tiles_has_classes_alone() -> None:
    tiled = Segmentation(classes=np.array([[0, 1], [2, 3]]), labels=())
    assert tiled.at_source().tolist() == [[0, 1], [2, 3]] and tiled.at_source().dtype == np.uint8
    with pytest.raises(InputError, match="in tiles has classes alone: leave tile_px out"):
        tiled.scores_at_source()
    assert Segmentation(classes=np.array([[300]]), labels=()).at_source().tolist() == [[300]]


def test_scores_at_the_sources_size() -> None:
    scores = np.stack([np.zeros((4, 4)), np.ones((4, 4))]).astype(np.float32)
    found = Segmentation(classes=scores.argmax(axis=0), labels=(), scores=scores, framing=Framing.of((8, 6), Pixels(height=4, width=4), (4, 4)))
    assert found.scores_at_source().shape == (2, 8, 6) and (found.scores_at_source()[1] == 1).all() and (found.at_source() == 1).all()


def test_a_palette_image_holds_the_classes() -> None:
    made = Segmentation(classes=np.array([[0, 1], [2, 254]]), labels=()).to_image()
    assert made.mode == "P" and np.asarray(made).tolist() == [[0, 1], [2, 254]]
    assert made.convert("RGB").getpixel((1, 0)) == (128, 0, 0)  # PASCAL VOC's aeroplane
    assert made.convert("RGB").getpixel((0, 1)) == (0, 128, 0)  # and bicycle


def test_more_classes_than_a_byte_holds() -> None:
    made = Segmentation(classes=np.array([[0, 1], [2, 255]]), labels=()).to_image()
    assert made.mode == "I;16" and np.asarray(made).tolist() == [[0, 1], [2, 255]]


def test_a_map_as_gray_levels() -> None:
    found = FloatMap(values=np.array([[0.0, 5.0, 10.0, 20.0, -3.0]], np.float32), range=(0.0, 10.0), unit="m")
    assert np.asarray(found.to_image()).tolist() == [[0, 128, 255, 255, 0]]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pixels_as_an_image(channels: int, mode: str) -> None:
    made = as_image(np.zeros((4, 6, channels), np.uint8))
    assert isinstance(made, Image.Image) and (made.mode, made.size) == (mode, (6, 4))
