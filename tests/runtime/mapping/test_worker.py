"""A worker: a row for every image, whatever is wrong with it; what ends processes is found and given up."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeport_runtime import load
from edgeport_runtime.errors import BundleError, InputError
from edgeport_runtime.many_files import fingerprint

pytest.importorskip("pyarrow")
answers = pytest.importorskip("edgeport_runtime.mapping.answers")
job = pytest.importorskip("edgeport_runtime.mapping.job")
worker = pytest.importorskip("edgeport_runtime.mapping.worker")

pytestmark = pytest.mark.usefixtures("on_x86")
LEVELS = [30, 225, 30, 225, 225, 30]
NAMES = ["dark" if level == 30 else "bright" for level in LEVELS]


class Killed(BaseException):
    """In the place of a signal that ends the process: nothing that runs afterwards may matter."""


@pytest.fixture
def begun(classifier: Path, tmp_path: Path) -> Any:
    for index, level in enumerate(LEVELS):
        Image.fromarray(np.full((20, 30, 3), level, np.uint8)).save(tmp_path / f"{index}.png")
    model = load(classifier)
    answering = job.Answering(model=fingerprint(model), task="classification", top=1, min_score=None, base=".")
    found = job.find_job(tmp_path / "out", [str(tmp_path)], answering, resume=False)
    found.save()
    return Begun(worker.Worker(model, answering), found.parts[0])


class Begun:
    """A worker and the only part of a job."""

    def __init__(self, one: Any, part: Any) -> None:
        self.worker, self.part = one, part

    def answer(self) -> Any:
        return self.worker.answer(self.part)


def rows(begun: Begun) -> list[str]:
    found = answers.read_rows(begun.part.place)
    assert [Path(each["path"]).name for each in found] == [f"{index}.png" for index in range(6)]
    return [each["answer"]["label"] if each["error"] is None else each["error"] for each in found]


def test_every_image_has_a_row_and_errors_are_tried_again(begun: Any, tmp_path: Path) -> None:
    good = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(good[:40])
    (tmp_path / "5.png").unlink()
    assert begun.answer() == worker.Done(number=0, rows=6, errors=2)
    first = rows(begun)
    assert first[:2] + first[3:5] == NAMES[:2] + NAMES[3:5] and "the content is not one" in first[2] and "there is no such file" in first[5]
    (tmp_path / "2.png").write_bytes(good)
    (tmp_path / "0.png").unlink()  # its row is kept
    assert begun.answer() == worker.Done(number=0, rows=6, errors=1) and rows(begun)[:5] == NAMES[:5]
    Image.fromarray(np.full((20, 30, 3), 30, np.uint8)).save(tmp_path / "5.png")
    assert begun.answer() == worker.Done(number=0, rows=6, errors=0) and rows(begun) == NAMES
    before = begun.part.place.stat().st_mtime_ns
    assert begun.answer().rows == 6 and begun.part.place.stat().st_mtime_ns == before  # nothing to do
    assert list(begun.part.notes.parent.iterdir()) == []


def test_an_image_that_ends_its_process_costs_four_processes_and_then_its_own_row(begun: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = begun.worker._model.batch

    def deadly(images: Sequence[str], **options: Any) -> Any:
        if any(Path(image).name == "3.png" for image in images):
            raise Killed
        return batch(images, **options)

    monkeypatch.setattr(begun.worker._model, "batch", deadly)
    with monkeypatch.context() as dying:
        dying.setattr(worker.Deaths, "__exit__", lambda *_: None)  # which a dead process never reaches
        for _ in range(4):
            with pytest.raises(Killed):
                begun.answer()
            assert begun.part.rows() is None
    assert begun.answer() == worker.Done(number=0, rows=6, errors=1)
    found = rows(begun)
    assert found[:3] + found[4:] == NAMES[:3] + NAMES[4:] and "2 processes ended while they answered this image alone" in found[3]
    assert begun.answer().errors == 1  # at once, and nobody dies of it again


def test_what_no_single_image_is_to_blame_for_is_tried_one_by_one(begun: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, called = begun.worker._model.batch, []

    def short_of_memory(images: Sequence[str], **options: Any) -> Any:
        called.append(len(images))
        if len(images) > 1 or images[0].endswith("4.png"):
            raise MemoryError("no more")
        return batch(images, **options)

    monkeypatch.setattr(begun.worker._model, "batch", short_of_memory)
    assert begun.answer().errors == 1 and called == [6, 1, 1, 1, 1, 1, 1]
    assert rows(begun)[4].endswith("4.png: it cannot be answered (no more)")


def test_another_model_than_the_jobs_is_refused(begun: Any, classifier: Path) -> None:
    with pytest.raises(BundleError, match=r"here it would be .* int8"):
        worker.Worker(load(classifier, precision="int8"), begun.worker._answering)


def test_a_full_disk_ends_the_work_and_not_the_images(begun: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(answers.pq, "ParquetWriter", full)
    with pytest.raises(InputError, match=r"No space left on device.*free some space there"):
        begun.answer()
    assert begun.part.rows() is None and not begun.part.notes.exists()
