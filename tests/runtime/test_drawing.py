"""Pictures of answers: what is where, at every size, and with nothing found."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeport_runtime import Detections, InputError, Prediction, Segmentation
from edgeport_runtime.drawing import LARGEST_PX, SMALLEST_PX, class_color, drawn, line_color, overlaid
from edgeport_runtime.predictions import FloatMap, Label, Values

NONE = Detections(boxes=np.zeros((0, 4), np.float32), scores=np.zeros(0, np.float32), classes=np.zeros(0, np.int64), labels=())
LONG = "a label of very many words that is longer than any picture is wide, and then some more words"


def gray(height: int, width: int) -> Image.Image:
    return Image.new("RGB", (width, height), (128, 128, 128))


def one_box(box: list[float], label: str = "cat") -> Detections:
    return Detections(boxes=np.array([box], np.float32), scores=np.array([0.75], np.float32), classes=np.array([0]), labels=(label,))


def answers(height: int, width: int) -> dict[str, Any]:
    return {
        "class": Prediction(label=LONG, index=0, score=0.5, top=(Label(label=LONG, index=0, score=0.5), Label(label="b", index=1, score=0.25))),
        "boxes": one_box([0, 0, width, height], LONG),
        "no boxes": NONE,
        "mask": Segmentation(classes=np.tile(np.arange(width) % 3, (height, 1)), labels=("ground", LONG, "tree")),
        "no mask": Segmentation(classes=np.zeros((height, width), np.int64), labels=("ground",)),
        "map": FloatMap(values=np.tile(np.arange(width, dtype=np.float32), (height, 1)), range=(0.0, float(width)), unit="m"),
        "points": Values(values={"length": 3.5}, points={"tip": (width / 2, height / 2)}, units={"length": "mm"}, arrays={}),
        "no points": Values(values={}, points={}, units={}, arrays={}),
        "image": gray(2 * height, 2 * width),
        "vector": np.linspace(-1, 1, 7, dtype=np.float32),
    }


@pytest.mark.parametrize("name", answers(2, 2))
@pytest.mark.parametrize(("height", "width"), [(1, 1), (28, 28), (480, 640), (3, 700), (700, 3)])
def test_every_answer_has_a_picture_at_every_size(name: str, height: int, width: int) -> None:
    """Never smaller than can be read, never out of all proportion, and the image keeps its own proportions."""
    source = gray(height, width)
    made = drawn(answers(height, width)[name], source)
    assert made.mode == "RGB" and max(made.size) <= 4 * LARGEST_PX
    assert min(made.size) >= min(SMALLEST_PX, LARGEST_PX * min(height, width) // max(height, width) or 1)
    assert source.getpixel((0, 0)) == (128, 128, 128) and source.size == (width, height)  # it was not drawn on


def test_a_box_is_drawn_where_it_is() -> None:
    made = np.asarray(one_box([100, 200, 300, 400]).draw(gray(480, 640)))
    color = np.array(line_color(0))
    assert (made[300, 100] == color).all() and (made[300, 299] == color).all() and (made[399, 200] == color).all()  # left, right and bottom edges
    assert (made[300, 200] == 128).all() and (made[300, 98] == 128).all() and (made[402, 200] == 128).all()
    assert (made[190, 102] == color).all()  # the label's plate, above


def test_the_best_of_several_boxes_lies_on_top() -> None:
    both = Detections(boxes=np.array([[50, 50, 300, 300]] * 2, np.float32), scores=np.array([0.9, 0.4], np.float32), classes=np.array([3, 0]), labels=())
    assert (np.asarray(both.draw(gray(400, 400)))[200, 50] == line_color(3)).all()


def test_a_small_image_is_enlarged_and_its_boxes_with_it() -> None:
    made = np.asarray(one_box([8, 8, 24, 24]).draw(gray(32, 32)))
    assert made.shape == (320, 320, 3) and (made[160, 80] == line_color(0)).all() and (made[160, 160] == 128).all()


def test_nothing_found_is_written_below() -> None:
    """A band below the image holds text; an answer that found something has none."""
    found, none = one_box([1, 1, 50, 50]).draw(gray(400, 400)), NONE.draw(gray(400, 400))
    assert found.size == (400, 400) and none.size[0] == 400 and none.size[1] > 410
    band = np.asarray(none)[400:]
    assert (band > 200).any() and (band < 60).any()


def test_an_overlay_mixes_colors_by_half_and_leaves_the_ground_alone() -> None:
    made = np.asarray(overlaid(gray(2, 2), np.array([[0, 1], [2, 255]], np.uint8), 0.5))
    assert made[0, 0].tolist() == [128] * 3 and made[1, 1].tolist() == [128] * 3  # the first class, and what was not seen
    assert made[0, 1].tolist() == [128, 64, 64] and made[1, 0].tolist() == [64, 128, 64]


@pytest.mark.parametrize(
    ("index", "color"), [(0, (0, 0, 0)), (1, (128, 0, 0)), (2, (0, 128, 0)), (3, (128, 128, 0)), (15, (192, 128, 128)), (20, (0, 64, 128))]
)
def test_colors_are_those_of_pascal_voc(index: int, color: tuple[int, int, int]) -> None:
    """background, aeroplane, bicycle, bird, person, tv monitor, as the development kit of 2012 has them."""
    assert class_color(index) == color


@pytest.mark.parametrize("opacity", [-1, 2, float("nan"), "x"])
def test_an_opacity_that_is_none(opacity: Any) -> None:
    with pytest.raises(InputError, match=r"opacity of an overlay is in 0\.\.1"):
        Segmentation(classes=np.array([[0, 1]]), labels=()).overlay(gray(1, 2), opacity)


def test_many_classes_have_colors_and_nan_has_a_bar() -> None:
    assert Segmentation(classes=np.array([[0, 257]]), labels=()).overlay(gray(1, 2)).getpixel((1, 0)) == (128, 64, 64)  # as class 1
    assert drawn(np.array([np.nan, 1.0], np.float32), gray(9, 9)).size[0] >= SMALLEST_PX


def test_an_image_is_shown_upright() -> None:
    """Boxes are in pixels of the upright image, so that is what they are drawn on."""
    turned = Image.new("RGB", (400, 600), (128, 128, 128))
    exif = turned.getexif()
    exif[0x0112] = 6
    assert one_box([10, 10, 590, 390]).draw(turned).size == (600, 400)
