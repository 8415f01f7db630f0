"""Options that are none, or contradict each other, are refused by name before anything is read."""

from pathlib import Path
from typing import Any

import pytest

from edgeport_runtime import InputError, load


@pytest.mark.parametrize("bound", [0, -1.0, float("nan"), float("inf"), "many", None])
def test_a_bound_of_memory_is_a_number(bound: object, classifier: Path) -> None:
    with pytest.raises(InputError, match="max_memory_mb is a number of MB above 0"):
        load(classifier, max_memory_mb=bound)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, r"device must be one of \['auto', 'cpu', 'cuda'\], got 'gpu'"),
        ({"latency": "low"}, r"latency must be one of \['normal', 'lowest'\], got 'low'"),
        ({"tf32": True}, "so there is none on cpu"),
        ({"max_batch": 0}, "max_batch is a whole number of images, at least 1, got 0"),
        ({"session": "session"}, "session is a function from the model's bytes"),
        ({"session": lambda model: None}, "session must return an onnxruntime.InferenceSession, got NoneType"),
        ({"device": "auto", "tf32": "yes"}, "tf32 must be True or False, got 'yes'"),
        ({"max_memory_mb": True}, "max_memory_mb is a number of MB above 0, got True"),
        ({"manifest_sha256": "abc"}, "manifest_sha256 is a hash of 64 hexadecimal digits, got 'abc'"),
        ({"manifest_sha256": 5}, "64 hexadecimal digits, got 5"),
        ({"image_limits": None}, "image_limits are ImageLimits, got NoneType"),
        ({"session": lambda model: None, "device": "cuda"}, "a session of your own brings its device"),
        ({"session": lambda model: None, "threads": 2}, "a session of your own brings its device"),
    ],
)
def test_options_that_contradict_each_other(classifier: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(classifier, **options)
