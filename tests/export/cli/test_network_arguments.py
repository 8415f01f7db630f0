"""How a network is described in a shell, and the contract that comes of it."""

from typing import Any

import pytest

from edgeport_export import ImageTask
from edgeport_export.cli.network_arguments import NetworkArguments, described_contract
from edgeport_runtime import ContractError, DetectionHead

SIZE = {"size_px": (32, 48)}


def described(**given: Any) -> ImageTask:
    found = described_contract(NetworkArguments(**{**SIZE, **given}), None)
    assert isinstance(found, ImageTask)
    return found


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("", DetectionHead()),
        ("box_format=center,unit=share", DetectionHead(box_format="center", unit="share")),
        (
            "activation=softmax, background=91, iou_threshold=none, candidates=None",
            DetectionHead(activation="softmax", background=91, iou_threshold=None, candidates=None),
        ),
        ("score_threshold=0.25,most=300,best_class=true,class_aware=False", DetectionHead(score_threshold=0.25, most=300, best_class=True, class_aware=False)),
    ],
)
def test_how_a_detector_is_read(text: str, head: DetectionHead) -> None:
    assert described(task="detection", detection=text).detection == head


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "detection", "detection": "boxes=center"}, "expected name=value with a name among box_format, unit, .*, got 'boxes=center'"),
        ({"task": "detection", "detection": "center"}, "got 'center'"),
        ({"task": "detection", "detection": "most=3,most=4"}, "--detection: most is given twice"),
        ({"task": "detection"}, "--task detection needs --detection"),
        ({"task": "segmentation", "detection": "unit=share"}, "--detection is for --task detection"),
        ({"detection": "unit=share"}, "--detection is for --task detection"),
        ({"task": "segmentation", "output_range": "0,1"}, "--output-range is for --task image-to-image and map"),
        ({"task": "map", "output_range": "1,0"}, "expected two numbers, black and white"),
        ({"size_px": None}, "name the size in pixels"),
        ({"resize": "letterbox:5"}, "only crop takes a number of pixels"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        described(**given)


def test_a_map_has_a_range() -> None:
    found = described(task="map", output_range="0,80")
    assert (found.task, found.output_range, found.pixels.height, found.pixels.width) == ("map", (0.0, 80.0), 32, 48)
