"""Scenes: boxes and masks are where the digits are."""

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeport_models.scenes import LARGEST_PX, SCENE_PX, SMALLEST_PX, Scene, scenes

GLYPH = np.zeros((2, 8, 8), np.uint8)
GLYPH[0, 1:7, 3:5] = 255  # an upright stroke
GLYPH[1, 3:5, 1:7] = 255  # a lying one
DIGITS = np.array([1, 7])
GROUND = np.full((300, 300, 3), 128, np.uint8)


def made(*, seed: int = 0, varied: bool = False, photo: NDArray[np.uint8] = GROUND) -> list[Scene]:
    return scenes(GLYPH, DIGITS, photo, 40, seed=seed, varied=varied)[:]


def test_boxes_hold_exactly_what_the_mask_marks() -> None:
    for scene in made():
        assert scene.image.shape == (SCENE_PX, SCENE_PX, 3) and set(np.unique(scene.mask)) <= {0, 1}
        left_over = scene.mask.copy()
        for left, top, right, bottom in scene.boxes.boxes.astype(int):
            inside = scene.mask[top:bottom, left:right]
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()  # tight on all four sides
            left_over[top:bottom, left:right] = 0
        assert not left_over.any()


def test_each_digit_is_what_its_box_says() -> None:
    """Upright strokes are higher than wide, lying ones wider than high."""
    found = [(box, digit) for scene in made() for box, digit in zip(scene.boxes.boxes, scene.boxes.classes, strict=True)]
    assert len(found) > 40 and all((box[3] - box[1] > box[2] - box[0]) == (digit == 1) for box, digit in found)
    assert all(SMALLEST_PX / 2 < max(box[2] - box[0], box[3] - box[1]) <= LARGEST_PX for box, _ in found)
    assert any(not len(scene.boxes.boxes) for scene in made())


def test_digits_stand_out_from_the_ground() -> None:
    for scene in made():
        marked = scene.image[scene.mask == 1].astype(float).mean(axis=-1)
        assert not marked.size or np.abs(np.median(marked) - 128) > 30


@pytest.mark.parametrize("varied", [False, True])
def test_the_same_seed_gives_the_same_scenes_in_any_order(varied: bool) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    forth = scenes(GLYPH, DIGITS, photo, 6, seed=3, varied=varied)
    back = scenes(GLYPH, DIGITS, photo, 6, seed=3, varied=varied)
    last = [back[index] for index in (5, 4, 3, 2, 1, 0)]
    assert all(np.array_equal(first.image, other.image) for first, other in zip(forth, reversed(last), strict=True))
    assert not np.array_equal(forth[0].image, scenes(GLYPH, DIGITS, photo, 6, seed=4, varied=varied)[0].image)
    assert forth[-1] is forth[5] and len(forth) == 6
    with pytest.raises(IndexError):
        forth[6]
