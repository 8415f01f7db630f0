"""A head that contradicts itself or its outputs is refused with every fault in words."""

from dataclasses import asdict
from typing import Any

import pytest

from edgeport_runtime import Contract, ContractError, DetectionHead, Output, Pixels
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import pixel_input

FIVE: dict[str, tuple[int | str, ...]] = {"boxes": ("batch", 5, 4), "scores": ("batch", 5, 3)}
AXES = image_axes(smallest_px=32, largest_px=64)


def contract(*, labels: tuple[str, ...] = ("a", "b", "c"), outputs: dict[str, tuple[int | str, ...]] | None = None, **head: Any) -> Contract:
    shapes = outputs or {"boxes": ("batch", "?", 4), "scores": ("batch", "?", 3)}
    described = tuple(Output(name=kind, dtype="float32", shape=shape, kind=kind) for kind, shape in shapes.items())  # type: ignore[arg-type]
    return Contract(
        task="detection", inputs=(pixel_input(Pixels(height=32, width=32)),), outputs=described, axes=AXES, labels=labels, detection=DetectionHead(**head)
    )


def test_it_travels_as_json_and_other_contracts_say_nothing_of_it() -> None:
    made = contract(box_format="center", iou_threshold=None, background=0)
    assert Contract.from_json(made.to_json()) == made
    assert made.to_dict()["detection"] == asdict(made.detection)  # type: ignore[arg-type]
    broken = made.to_dict() | {"detection": {"box_format": "center"}}
    with pytest.raises(ContractError, match="missing or unknown"):
        Contract.from_dict(broken)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"box_format": "polar"}, r"box_format must be one of \['corners', 'center', 'distances'\], got 'polar'"),
        ({"unit": "inch", "activation": "relu"}, "unit must be one of .*; detection.activation must be one of"),
        ({"anchors_axis": 3}, "anchors_axis must be 1 or 2, got 3"),
        ({"score_threshold": 2}, r"score_threshold must be in 0\.\.1, got 2"),
        ({"score_threshold": None}, r"score_threshold must be in 0\.\.1, got None"),
        ({"iou_threshold": -0.1}, r"iou_threshold must be in 0\.\.1"),
        ({"most": 0}, "most must be a whole number of at least 1, got 0"),
        ({"candidates": 0.5}, "candidates must be a whole number of at least 1 or None, got 0.5"),
        ({"clip": 1}, "clip must be true or false, got 1"),
        ({"background": 3}, "the background is one of their columns, got 3 columns and 3"),
        ({"label_offset": 1}, "column 2 of the scores with label_offset 1 is none of the 3 labels"),
        ({"label_offset": -1}, "column 0 of the scores with label_offset -1"),
        (
            {"objectness": "product"},
            "kinds boxes, objectness, scores, got 'boxes' of kind boxes, .*; a network returns them in a dict",
        ),
        ({"box_format": "distances"}, "boxes, points, scores, got 'boxes'"),
        ({"candidates_per": "level"}, "boxes, levels, scores"),
        ({"anchors_axis": 2}, r"'boxes' of kind boxes has the shape \('batch', '\?', 4\), which is none of those"),
        (
            {"outputs": {"joined": ("batch", "?", 7), "boxes": ("batch", "?", 4)}},
            "each of the kinds joined, got 'joined' of kind joined, 'boxes'",
        ),
        ({"outputs": {"joined": ("batch", "?", 4)}}, "scores for at least one class"),
        ({"outputs": {"boxes": ("batch", "?", 5), "scores": ("batch", "?", 3)}}, r"'boxes' of kind boxes has the shape \('batch', '\?', 5\)"),
        ({"outputs": {"boxes": ("batch", 3, 4), "scores": ("batch", 5, 3)}}, "one row for each anchor, got 3 in 'boxes', 5 in 'scores'"),
        (
            {"outputs": {"boxes": ("batch", 5, 4), "scores": ("batch", 5, 3), "objectness": ("batch", 5, 2)}, "objectness": "root"},
            "'objectness' of kind objectness",
        ),
        (
            {"outputs": {"boxes": ("batch", 5, 4), "scores": ("batch", 5, 3), "levels": ("batch", 5)}, "candidates_per": "level"},
            "the dtype float32, expected int64",
        ),
        ({"labels": ("a", "b", "c", "d")}, "4 labels for 3 columns of scores with label_offset 0: each label needs a column"),
        ({"labels": ("a", "b", "c"), "background": 0, "label_offset": -1}, "3 labels for 3 columns of scores with label_offset -1"),
    ],
)
def test_faults_are_named(head: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        contract(**head)


@pytest.mark.parametrize(
    "head",
    [
        {"label_offset": -1, "background": 0, "labels": ("a", "b")},
        {"labels": ()},
        {"outputs": {"joined": ("batch", "?", 7)}},
        {"outputs": {"joined": ("batch", 8, "?")}, "anchors_axis": 2, "objectness": "product"},
    ],
)
def test_and_these_are_sound(head: dict[str, Any]) -> None:
    assert contract(**head).detection is not None


def test_a_detector_needs_a_head_and_no_other_task_has_one() -> None:
    made = contract()
    with pytest.raises(ContractError, match="and no other, needs `detection`"):
        Contract(task="detection", inputs=made.inputs, outputs=made.outputs, axes=AXES)
    with pytest.raises(ContractError, match="and no other, needs `detection`"):
        Contract(task="tensors", inputs=made.inputs, outputs=made.outputs, axes=AXES, detection=DetectionHead())
