import numpy as np
import pytest

from edgeport_runtime import InputError, Quality
from edgeport_runtime.tasks import TASKS, AccuracyScorer, MeanIouScorer, PsnrScorer, find_task, format_metric, margin, metric_unit, psnr_db


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


@pytest.mark.parametrize(
    ("name", "images", "shape", "labels", "faults"),
    [
        ("classification", [True], ("batch", 3), ("a", "b", "c"), 0),
        ("classification", [True], ("batch", 3), (), 0),
        ("classification", [True], ("batch", 3), ("a", "b"), 1),
        ("classification", [True, True], ("batch", 3), ("a", "b", "c"), 1),
        ("classification", [False], ("batch", 3), ("a",), 2),
        ("segmentation", [True], ("batch", 2, "height", "width"), ("a", "b"), 0),
        ("segmentation", [True], ("batch", 2, "height", "width"), ("a", "b", "c"), 1),
        ("segmentation", [True], ("batch",), ("a", "b"), 1),
        ("image-to-image", [True], ("batch", "height", "width", 3), (), 0),
        ("embedding", [True], ("batch", 9), (), 0),
        ("tensors", [False, True], ("batch", 9), (), 0),
    ],
)
def test_a_contract_fits_its_task_or_not(name: str, images: list[bool], shape: tuple[int | str, ...], labels: tuple[str, ...], faults: int) -> None:
    assert len(list(find_task(name).faults(images, shape, labels))) == faults


def test_a_task_with_a_metric_can_score_and_answer() -> None:
    for task in TASKS.values():
        assert (task.metric is None) == (task.scorer is None)
        assert task.metric is None or task.interpret is not None


def test_an_unknown_task_is_refused_with_the_names() -> None:
    with pytest.raises(InputError, match=r"task must be one of \['classification', .*\], got 'poetry'"):
        find_task("poetry")
