import numpy as np
import pytest

from edgeport_runtime import Detections, InputError, Quality
from edgeport_runtime.scorers import AccuracyScorer, MeanApScorer, MeanIouScorer, PsnrScorer, format_metric, margin, metric_unit, psnr_db


def test_psnr_by_hand() -> None:
    assert psnr_db(255.0**2 * 4, 4) == 0.0
    assert psnr_db(4 * 25.0, 4) == pytest.approx(20 * np.log10(255 / 5))
    assert psnr_db(0.0, 4) == float("inf")


@pytest.mark.parametrize(
    ("logits", "expected"),
    [([0.0, 1.0], 1.0), ([0.0, 3.0, 4.0], 0.25), ([2.0, 2.0], 0.0), ([5.0], 0.0), ([4.0, 0.0, 3.0], 0.25)],
)
def test_the_margin_is_a_share_of_the_range(logits: list[float], expected: float) -> None:
    assert margin(np.array(logits, np.float32)) == pytest.approx(expected)


def test_answers_are_counted_in_any_order() -> None:
    scorer = AccuracyScorer(3)
    for index, logits, truth in ((2, [0.0, 1.0], 1), (0, [0.0, 1.0], 0), (1, [3.0, 1.0], 0)):
        scorer.add(index, np.array(logits), truth, "an image")
    assert scorer.quality() == Quality(metric="accuracy", value=2 / 3, count=3, answers=(1, 0, 1), margins=(1.0, 1.0, 1.0))


def test_errors_of_images_of_any_size_are_pooled() -> None:
    scorer = PsnrScorer(2)
    scorer.add(0, np.full((2, 2, 3), 10, np.uint8), np.full((2, 2, 3), 0, np.uint8), "first")  # 12 values, 10 off
    scorer.add(1, np.full((4, 6, 3), 0, np.uint8), np.full((4, 6, 3), 5, np.uint8), "second")  # 72 values, 5 off: bytes do not wrap around
    assert scorer.quality().value == pytest.approx(10 * np.log10(255**2 * 84 / (12 * 100 + 72 * 25))) and scorer.quality().count == 2
    with pytest.raises(InputError, match=r"third: the output is \(2, 2, 3\), but its target image is \(2, 3, 3\)"):
        scorer.add(2, np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3, 3), np.uint8), "third")


def scores(classes: list[list[int]], count: int) -> np.ndarray:
    return np.moveaxis(np.eye(count, dtype=np.float32)[np.array(classes)], -1, 0)


def test_mean_iou_by_hand() -> None:
    """Class 0: 2 right of 4 positions in either; class 1: 2 of 4; class 2 is answered at ignored positions alone; class 3 never occurs."""
    scorer = MeanIouScorer(2)
    scorer.add(0, scores([[0, 0, 1], [1, 1, 2]], 4), np.array([[0, 0, 0], [1, 1, 255]]), "first")
    scorer.add(1, scores([[0], [2]], 4), np.array([[1], [255]]), "second")
    assert scorer.quality() == Quality(metric="mean_iou", value=(2 / 4 + 2 / 4) / 2, count=2)
    scorer.add(1, scores([[2]], 4), np.array([[0]]), "third")
    assert scorer.quality().value == pytest.approx((2 / 5 + 2 / 4 + 0) / 3)
    with pytest.raises(InputError, match=r"wide: the output is \(1, 1\) \(HxW\), but its mask is \(1, 2\)"):
        scorer.add(0, scores([[0]], 4), np.array([[0, 0]]), "wide")
    with pytest.raises(InputError, match=r"odd: its mask has the class 7, but the model has the classes 0 to 3 \(255 is ignored\)"):
        scorer.add(0, scores([[0]], 4), np.array([[7]]), "odd")


def test_masks_of_0_and_255_judge_nothing() -> None:
    """A binary mask as programs for drawing store it: 255 would count for nothing."""
    scorer = MeanIouScorer(1)
    scorer.add(0, scores([[0, 1], [1, 1]], 2), np.array([[0, 255], [255, 255]]), "a")
    with pytest.raises(InputError, match=r"the masks hold 0 and 255 alone, and 255 counts for nothing: store the classes as 0, 1 and so on"):
        scorer.quality()
    scorer.add(0, scores([[0, 1], [1, 1]], 2), np.array([[0, 1], [255, 1]]), "b")
    assert scorer.quality().value == 1.0


@pytest.mark.parametrize(
    ("truth", "taken"), [(2, True), (np.int64(0), True), (3, False), (-1, False), ("a", False), (1.0, False), (np.array([1, 0, 0]), False)]
)
def test_the_truth_of_a_classifier_is_an_index(truth: object, taken: bool) -> None:
    scorer = AccuracyScorer(1)
    if taken:
        scorer.add(0, np.array([0.0, 1.0, 2.0]), truth, "a")
        assert scorer.quality().value == (1.0 if truth == 2 else 0.0)
    else:
        with pytest.raises(InputError, match="a: its truth must be the index of its class, 0 to 2, got"):
            scorer.add(0, np.array([0.0, 1.0, 2.0]), truth, "a")


def test_mean_iou_without_a_counted_position() -> None:
    scorer = MeanIouScorer(1)
    scorer.add(0, scores([[0]], 2), np.array([[255]]), "void")
    assert scorer.quality().value == 0.0


@pytest.mark.parametrize(
    ("metric", "value", "text", "unit", "quality"),
    [
        ("accuracy", 0.98055, "98.06%", "points", "98.06% accuracy"),
        ("psnr_db", 30.214, "30.21 dB", "dB", "30.21 dB PSNR"),
        ("mean_iou", 0.51234, "51.23%", "points", "51.23% mean IoU"),
        ("my:own", 0.123456, "0.1235", None, "0.1235 my:own"),
    ],
)
def test_a_metric_is_written_with_its_unit(metric: str, value: float, text: str, unit: str | None, quality: str) -> None:
    assert format_metric(metric, value) == text and metric_unit(metric) == unit
    assert str(Quality(metric=metric, value=value, count=1)) == quality


def test_mean_ap_counts_boxes_of_the_answer() -> None:
    """One of two true boxes is found, exactly; the other class has none: precision 1 up to recall 0.5, 51 of 101 points."""
    scorer = MeanApScorer(1)
    answer = Detections(boxes=np.array([[0, 0, 10, 10]], np.float32), scores=np.array([0.9], np.float32), classes=np.array([1]), labels=("cat", "dog"))
    scorer.add(0, answer, ([[0, 0, 10, 10], [20, 20, 30, 30]], [1, 1]), "photo")
    quality = scorer.quality()
    assert (quality.metric, quality.count) == ("mean_ap", 1) and [quality.value, quality.at_50] == pytest.approx([51 / 101] * 2)
    assert str(quality) == "50.50% mAP, 50.50% mAP@50"
    with pytest.raises(InputError, match="photo: its true boxes have classes 7 to 7, but the model has 0 to 1"):
        scorer.add(0, answer, ([[0, 0, 1, 1]], [7]), "photo")
