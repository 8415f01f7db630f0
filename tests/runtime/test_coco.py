"""COCO's annotations as true boxes."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgeport_runtime import InputError
from edgeport_runtime.coco import ANNOTATIONS, coco_examples, coco_labels

GOOD: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "b.png"}, {"id": 3, "file_name": "a.png"}],
    "categories": [{"id": 90, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
        {"image_id": 3, "category_id": 90, "bbox": [1, 2, 3, 4]},
        {"image_id": 3, "category_id": 2, "bbox": [0.5, 0, 1, 1], "iscrowd": 1},
    ],
}


def folder(tmp_path: Path, found: Any, *, where: str = ".") -> Path:
    (tmp_path / where).mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / where / name)
    (tmp_path / ANNOTATIONS).write_text(found if isinstance(found, str) else json.dumps(found))
    return tmp_path


@pytest.mark.parametrize("where", [".", "images"])
def test_boxes_by_name_of_their_category(tmp_path: Path, where: str) -> None:
    first, second = coco_examples(folder(tmp_path, GOOD, where=where), ("bird", "cat", "dog"))
    assert first[0] == tmp_path / where / "b.png" and len(first[1].boxes) == 0  # an image in which nothing is
    assert second[1].boxes.tolist() == [[1, 2, 4, 6], [0.5, 0, 1.5, 1]] and second[1].classes.tolist() == [2, 1] and second[1].crowd.tolist() == [False, True]
    assert coco_labels(tmp_path) == ("cat", "dog")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("{", "no annotations in COCO's form"),
        ([], "no annotations in COCO's form"),
        ({"images": []}, "no annotations in COCO's form .KeyError: 'categories'"),
        (GOOD | {"images": [{"id": 3, "file_name": "gone.png"}, {"id": 7, "file_name": "b.png"}]}, "the image gone.png of the annotations"),
        (GOOD | {"categories": [{"id": 90, "name": "cow"}, {"id": 2, "name": "cat"}]}, "the category 'cow' is no label of the model, which has cat, dog"),
        (GOOD | {"annotations": [{"image_id": 3, "category_id": 2, "bbox": [1, 2, 3]}]}, "annotation 0 needs an image_id and a category_id that are listed"),
        (GOOD | {"annotations": [{"image_id": 3, "category_id": 2, "bbox": ["1", "2", "3", "4"]}]}, "annotation 0 .* a bbox of four numbers"),
        (GOOD | {"annotations": [{"image_id": 77, "category_id": 2, "bbox": [1, 2, 3, 4]}]}, "annotation 0 needs an image_id"),
        (
            GOOD | {"images": [{"id": 3, "file_name": "a.png"}, {"id": 3, "file_name": "b.png"}], "annotations": []},
            "two images or two categories have the same id",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, found: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        coco_examples(folder(tmp_path, found), ("cat", "dog"))


def test_without_annotations(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"annotations\.json: expected COCO's annotations beside the images"):
        coco_examples(tmp_path, ())


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("[" * 200_000, "these are no annotations in COCO's form"),
        ({**GOOD, "annotations": [{"image_id": 3, "category_id": 90, "bbox": [1, 2, 10**400, 4]}]}, "annotation 0 needs .* a bbox of four numbers"),
        ({**GOOD, "annotations": [{"image_id": 3, "category_id": 90, "bbox": [1, 2, 1e300, 4]}]}, "annotation 0 needs .* a bbox of four numbers"),
        ({**GOOD, "images": [{"id": 3, "file_name": "/etc/passwd"}]}, "the image /etc/passwd of the annotations is neither there nor in its folder images"),
        ({**GOOD, "images": [{"id": 3, "file_name": "../outside.png"}]}, r"the image \.\./outside\.png of the annotations is neither there"),
    ],
    ids=["deep", "huge", "infinite", "absolute", "outside"],
)
def test_annotations_of_strangers_name_nothing_else(found: Any, message: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match=message):
        coco_examples(folder(tmp_path / "data", found if isinstance(found, str) else {**found, "annotations": found["annotations"]}), ("dog", "cat"))


@pytest.mark.skipif(os.name == "nt", reason="pipes are Unix's")
def test_annotations_from_a_pipe_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ANNOTATIONS)
    with pytest.raises(InputError, match=r"they cannot be read \(it is a pipe, not a file\)"):
        coco_examples(tmp_path, ("dog",))
