"""Mean average precision; pycocotools is the oracle."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeport_runtime import InputError
from edgeport_runtime.average_precision import FoundBoxes, TrueBoxes, mean_average_precision

coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is the oracle")
cocoeval = pytest.importorskip("pycocotools.cocoeval")


def oracle(found: list[FoundBoxes], truths: list[TrueBoxes]) -> tuple[float, float]:
    data: dict[str, Any] = {"info": {}, "images": [{"id": index} for index in range(len(truths))], "categories": [{"id": index} for index in range(1, 9)]}
    data["annotations"] = [
        {"id": 1 + number, "image_id": image, "category_id": int(index) + 1, "bbox": _bbox(box), "area": _area(box), "iscrowd": int(crowd)}
        for number, (image, box, index, crowd) in enumerate(
            (image, box, index, crowd) for image, truth in enumerate(truths) for box, index, crowd in zip(*truth, strict=True)
        )
    ]
    results = [
        {"image_id": image, "category_id": int(index) + 1, "bbox": _bbox(box), "score": float(score)}
        for image, each in enumerate(found)
        for box, score, index in zip(*each, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = data
        truth.createIndex()
        evaluation = cocoeval.COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def _bbox(box: Any) -> list[float]:
    return [float(box[0]), float(box[1]), float(box[2]) - float(box[0]), float(box[3]) - float(box[1])]


def _area(box: Any) -> float:
    return _bbox(box)[2] * _bbox(box)[3]


def scenes(seed: int, images: int, crowds: bool) -> tuple[list[FoundBoxes], list[TrueBoxes]]:
    """True boxes, and found ones near them, among false ones, of wrong classes, found twice or not at all."""
    draw = np.random.default_rng(seed)
    found, truths = [], []
    for _ in range(images):
        count = int(draw.integers(1, 7))
        corner, size = draw.uniform(0, 80, (count, 2)), draw.uniform(5, 40, (count, 2))
        true = np.concatenate([corner, corner + size], axis=1).round().astype(np.float32)
        classes = draw.integers(0, 3, count)
        truths.append(TrueBoxes(boxes=true, classes=classes, crowd=(draw.random(count) < 0.2) & crowds))
        near = np.repeat(true, 2, axis=0) + draw.normal(0, 3, (2 * count, 4)).round()
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        kept = draw.random(2 * count) < 0.8
        labels = np.where(draw.random(2 * count) < 0.85, np.repeat(classes, 2), draw.integers(0, 4, 2 * count))
        found.append((near[kept].astype(np.float32), draw.random(int(kept.sum())).astype(np.float32), labels[kept]))
    return found, truths


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 12), crowds=st.booleans())
def test_it_is_cocos(seed: int, images: int, crowds: bool) -> None:
    found, truths = scenes(seed, images, crowds)
    if not any(len(each[0]) for each in found) or all(truth.crowd.all() for truth in truths):
        return
    np.testing.assert_allclose(mean_average_precision(found, truths), oracle(found, truths), atol=1e-9)


def test_by_hand() -> None:
    """Two true boxes; the surest answer is right, the next one false, the third right with an overlap of 0.6."""
    truth = TrueBoxes.of(([[0, 0, 10, 10], [20, 0, 30, 10]], [0, 0]), "x")
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [20, 0, 30, 6]], np.float32)
    found = [(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.zeros(3, np.int64))]
    # precision 1 up to recall 0.5 (51 of 101 points), 2/3 up to 1 at overlaps 0.50, 0.55, 0.60; above them recall ends at 0.5
    at_50 = (51 + 50 * 2 / 3) / 101
    assert mean_average_precision(found, [truth]) == pytest.approx(((3 * at_50 + 7 * 51 / 101) / 10, at_50))


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        (5, "must be a pair"),
        (([[0, 0, 1, 1]], [0, 1]), "must be a pair"),
        (([0, 0, 1, 1], [0]), "must be a pair"),
        ((np.arange(8).reshape(4, 2), [0, 1]), "must be a pair"),  # (4, n), as some libraries have them
        (([[0, 0, 1, 1]], [0.7]), "must be a pair"),
        (([[0, 0, 1, 1]], ["3"]), "must be a pair"),
        (([[5, 0, 1, 1]], [0]), "left, top, right, bottom"),
        (([[0, 0, 1]], [0]), "must be a pair"),
    ],
)
def test_a_truth_of_another_kind_is_refused(truth: Any, words: str) -> None:
    with pytest.raises(InputError, match=f"photo.jpg: .*{words}"):
        TrueBoxes.of(truth, "photo.jpg")


def test_without_true_boxes_there_is_no_figure() -> None:
    with pytest.raises(InputError, match="no image has a true box"):
        mean_average_precision([(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))], [TrueBoxes.of(([], []), "x")])
