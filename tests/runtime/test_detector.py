"""Decoding by hand, and against the plain way: activate everything, then threshold."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeport_runtime import DetectionHead, InputError
from edgeport_runtime.detector import detect

BOX = [[10.0, 20.0, 30.0, 60.0]]  # corners, in an input of 100 x 200 (HxW)
SURE = np.array([[[9.0, -9.0]]], np.float32)


@pytest.mark.parametrize(
    ("given_box", "head", "more"),
    [
        (BOX[0], {}, {}),
        ([20, 40, 20, 40], {"box_format": "center"}, {}),
        ([0.1, 0.4, 0.1, 0.4], {"box_format": "center", "unit": "share"}, {}),
        ([0.05, 0.2, 0.15, 0.6], {"unit": "share"}, {}),
        ([5, 10, 15, 30], {"box_format": "distances"}, {"points": np.array([[[15, 30]]], np.float32)}),
    ],
)
def test_box_formats(given_box: list[float], head: dict[str, Any], more: dict[str, Any]) -> None:
    outputs = {"boxes": np.array([[given_box]], np.float32), "scores": SURE, **more}
    (found,) = detect(outputs, DetectionHead(**head), (100, 200))
    np.testing.assert_allclose(found.boxes, BOX, rtol=1e-6)
    assert found.classes.tolist() == [0] and found.scores[0] == pytest.approx(1 / (1 + np.exp(-9.0)))
    joined = np.concatenate([outputs["boxes"], SURE], axis=2)
    for axis, table in ((1, joined), (2, np.ascontiguousarray(joined.transpose(0, 2, 1)))):
        (same,) = detect({"joined": table, **more}, DetectionHead(**head, anchors_axis=axis), (100, 200))
        np.testing.assert_array_equal(same.boxes, found.boxes)


def test_boxes_are_clipped_or_not() -> None:
    outputs = {"boxes": np.array([[[-5, -5, 300, 50]]], np.float32), "scores": SURE}
    assert detect(outputs, DetectionHead(), (100, 200))[0].boxes.tolist() == [[0, 0, 200, 50]]
    assert detect(outputs, DetectionHead(clip=False), (100, 200))[0].boxes.tolist() == [[-5, -5, 300, 50]]


@pytest.mark.parametrize(
    ("head", "scores", "objectness", "expected"),
    [
        ({"activation": "none"}, [0.25, 0.5], None, [0.25, 0.5]),
        ({"activation": "softmax"}, [np.log(1.0), np.log(3.0)], None, [0.25, 0.75]),
        ({"activation": "softmax", "background": 0}, [np.log(1.0), np.log(3.0)], None, [0.0, 0.75]),
        ({"activation": "none", "objectness": "product"}, [0.25, 0.5], 0.5, [0.125, 0.25]),
        ({"activation": "none", "objectness": "root"}, [0.25, 1.0], 0.25, [0.25, 0.5]),
        ({"objectness": "product"}, [0.0, 0.0], 0.0, [0.25, 0.25]),
        ({"best_class": True, "activation": "none"}, [0.25, 0.5], None, [0.0, 0.5]),
        ({"best_class": True, "activation": "none", "background": 1}, [0.25, 0.5], None, [0.25, 0.0]),
        ({"score_threshold": 0.3, "activation": "none"}, [0.3, 0.5], None, [0.0, 0.5]),  # above, not at
    ],
)
def test_scores_by_hand(head: dict[str, Any], scores: list[float], objectness: float | None, expected: list[float]) -> None:
    outputs = {"boxes": np.array([BOX], np.float32), "scores": np.array([[scores]], np.float32)}
    if objectness is not None:
        outputs["objectness"] = np.array([[[objectness]]], np.float32)
    (found,) = detect(outputs, DetectionHead(**{"score_threshold": 0.1, **head}), (100, 200))
    assert dict(zip(found.classes.tolist(), found.scores.tolist(), strict=True)) == pytest.approx(
        {index: score for index, score in enumerate(expected) if score}
    )


@pytest.mark.parametrize(("offset", "background", "classes"), [(0, None, [0, 1, 2]), (-1, 0, [0, 1]), (5, None, [5, 6, 7])])
def test_a_column_becomes_a_class(offset: int, background: int | None, classes: list[int]) -> None:
    outputs = {"boxes": np.array([BOX], np.float32), "scores": np.array([[[0.9, 0.8, 0.7]]], np.float32)}
    (found,) = detect(outputs, DetectionHead(activation="none", label_offset=offset, background=background), (100, 200))
    assert found.classes.tolist() == classes


@pytest.mark.parametrize(
    ("per", "kept"),
    [
        ("image", [0.9, 0.8, 0.7]),
        ("class", [0.9, 0.8, 0.7, 0.6, 0.5]),
        ("level", [0.9, 0.8, 0.7, 0.4]),
    ],
)
def test_candidates(per: Any, kept: list[float]) -> None:
    """Five anchors that do not overlap; the fourth and fifth are of class 1, the last is of level 1."""
    boxes = np.array([[[20 * index, 0, 20 * index + 10, 10] for index in range(6)]], np.float32)
    scores = np.zeros((1, 6, 2), np.float32)
    for index, (column, score) in enumerate([(0, 0.9), (0, 0.8), (0, 0.7), (1, 0.6), (1, 0.5), (0, 0.4)]):
        scores[0, index, column] = score
    outputs = {"boxes": boxes, "scores": scores, "levels": np.array([[0, 0, 0, 0, 0, 1]])}
    outputs = outputs if per == "level" else {name: outputs[name] for name in ("boxes", "scores")}
    (found,) = detect(outputs, DetectionHead(activation="none", candidates=3, candidates_per=per), (100, 200))
    assert found.scores.tolist() == pytest.approx(kept)


def test_most_and_suppression_between_classes() -> None:
    boxes = np.array([BOX * 3], np.float32)
    scores = np.array([[[0.9, 0.0], [0.8, 0.0], [0.0, 0.7]]], np.float32)
    outputs = {"boxes": boxes, "scores": scores}

    def count(**head: Any) -> list[float]:
        found: list[float] = detect(outputs, DetectionHead(activation="none", **head), (100, 200))[0].scores.round(1).tolist()
        return found

    assert count() == pytest.approx([0.9, 0.7]) and count(class_aware=False) == pytest.approx([0.9])
    assert count(iou_threshold=None) == pytest.approx([0.9, 0.8, 0.7]) and count(iou_threshold=None, most=2) == pytest.approx([0.9, 0.8])


@pytest.mark.parametrize("place", ["boxes", "scores"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_no_answer(place: str, value: float) -> None:
    outputs = {"boxes": np.array([BOX * 2], np.float32), "scores": np.array([[[0.9], [0.8]]], np.float32)}
    outputs[place][0, 0, 0] = value
    (found,) = detect(outputs, DetectionHead(activation="none", iou_threshold=None, clip=False), (100, 200))
    assert found.scores.tolist() == pytest.approx([0.8]) and found.boxes.tolist() == BOX


def test_outputs_of_different_anchors_are_refused() -> None:
    with pytest.raises(InputError, match="one row for each anchor, got 1, 2 rows"):
        detect({"boxes": np.array([BOX], np.float32), "scores": np.ones((1, 2, 1), np.float32)}, DetectionHead(), (100, 200))


def test_nothing_found() -> None:
    (found,) = detect({"boxes": np.array([BOX], np.float32), "scores": -SURE * 0 - 9}, DetectionHead(), (100, 200))
    assert found.boxes.shape == (0, 4) and found.scores.shape == found.classes.shape == (0,)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    threshold=st.sampled_from([0.0, 1e-6, 0.01, 0.3, 0.5, 0.9, 0.999999, 1.0]),
    activation=st.sampled_from(["sigmoid", "softmax", "none"]),
    objectness=st.sampled_from(["none", "product", "root"]),
    axis=st.sampled_from([1, 2]),
)
def test_comparing_raw_scores_loses_nothing(seed: int, threshold: float, activation: Any, objectness: Any, axis: int) -> None:
    """The same pairs as if every score were activated first, in float64; within a millionth of the threshold either is right."""
    draw = np.random.default_rng(seed)
    raw = draw.normal(0, 6, (40, 5)).astype(np.float32) if activation != "none" else draw.random((40, 5)).astype(np.float32)
    there = draw.normal(0, 6, (40, 1)).astype(np.float32) if activation != "none" else draw.random((40, 1)).astype(np.float32)
    table = activated(raw, activation)
    if objectness != "none":
        table = table * activated(there, "sigmoid" if activation != "none" else "none")
        table = np.sqrt(table) if objectness == "root" else table
    parts = [np.tile(np.array(BOX, np.float32), (40, 1)), *([there] if objectness != "none" else []), raw]
    joined = np.concatenate(parts, axis=1)[None]
    head = DetectionHead(
        activation=activation, objectness=objectness, score_threshold=threshold, candidates=None, iou_threshold=None, most=10**6, anchors_axis=axis
    )
    (found,) = detect({"joined": joined if axis == 1 else np.ascontiguousarray(joined.transpose(0, 2, 1))}, head, (100, 200))
    expected = np.sort(table[table > threshold])[::-1]
    close = int((np.abs(table - threshold) < 1e-6).sum())
    assert abs(len(found.scores) - len(expected)) <= close
    shared = min(len(found.scores), len(expected)) - close
    np.testing.assert_allclose(found.scores[: max(0, shared)], expected[: max(0, shared)], atol=1e-6)


def activated(raw: NDArray[np.float32], activation: str) -> NDArray[np.float64]:
    values = raw.astype(np.float64)
    if activation == "sigmoid":
        return 1 / (1 + np.exp(-values))
    if activation == "softmax":
        odds = np.exp(values - values.max(axis=1, keepdims=True))
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))
    return values
