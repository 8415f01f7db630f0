import pytest

from edgeport_runtime import InputError
from edgeport_runtime.scorers import SCORERS
from edgeport_runtime.tasks import TASKS, find_task


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
        assert (task.metric is None) == (task.truth is None)
    assert {task.truth for task in TASKS.values()} - {None} == set(SCORERS) and all(each(1) for each in SCORERS.values())


def test_an_unknown_task_is_refused_with_the_names() -> None:
    with pytest.raises(InputError, match=r"task must be one of \['classification', .*\], got 'poetry'"):
        find_task("poetry")
