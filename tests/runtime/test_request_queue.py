"""What deadlines, callbacks and closing do to requests that wait; test_batcher.py has the answers."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeport_runtime import ImageError, Model, load, request_queue
from edgeport_runtime.errors import DeadlineError, QueueFullError
from edgeport_runtime.request_queue import RUNNERS

WAIT_S = 10.0
PHOTO = np.full((16, 16, 3), 30, np.uint8)


@pytest.fixture
def model(classifier: Path) -> Iterator[Model]:
    with load(classifier, precision="fp32", threads=1) as loaded:
        yield loaded


def test_a_deadline_shorter_than_the_wait_is_met(model: Model) -> None:
    """A batch waits no longer than half of the time that its requests have."""
    with model.batcher(max_wait_ms=60_000) as batcher:
        start = time.monotonic()
        assert batcher(PHOTO, deadline_ms=2000).result(WAIT_S)
        assert time.monotonic() - start < 30


def test_places_are_free_again_when_deadlines_pass(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while every runner is busy."""
    opened, entered, real = threading.Event(), threading.Semaphore(0), model.raw

    def raw(pixels: NDArray[np.uint8]) -> object:
        entered.release()
        assert opened.wait(WAIT_S)
        return real(pixels)

    monkeypatch.setattr(model, "raw", raw)
    with model.batcher(max_batch=1, max_wait_ms=0, max_queue=3) as batcher:
        running = []
        for _ in range(RUNNERS):
            running.append(batcher(PHOTO))
            assert entered.acquire(timeout=WAIT_S)
        late = [batcher(PHOTO, deadline_ms=20) for _ in range(3)]
        with pytest.raises(QueueFullError):
            batcher(PHOTO)
        time.sleep(0.05)
        after = batcher(PHOTO)
        for each in late:
            with pytest.raises(DeadlineError):
                each.result(0)  # at once, though nothing has run
        opened.set()
        assert after.result(WAIT_S) and all(each.result(WAIT_S) for each in running)
        assert batcher.counters()["expired"] == 3


@pytest.mark.parametrize("error", [SystemExit, ValueError])
def test_a_callback_that_raises_costs_nobody_his_answer(model: Model, error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: object) -> None:
        raise error("mine")

    with caplog.at_level(logging.CRITICAL), model.batcher(max_wait_ms=50) as batcher:
        pending = [batcher(PHOTO) for _ in range(6)]
        pending[0].add_done_callback(fail)
        assert all(each.result(WAIT_S) for each in pending)
        torn = [batcher(b"torn") for _ in range(4)]
        with suppress(error):  # it may have ended already, and then this thread calls back
            torn[0].add_done_callback(fail)
        assert all(each.exception(WAIT_S) for each in torn)
        assert batcher(PHOTO).result(WAIT_S)  # every thread is alive


def test_a_callback_may_close_the_batcher(model: Model) -> None:
    batcher, closed = model.batcher(max_wait_ms=20), threading.Event()

    def close(_: object) -> None:
        batcher.close()
        closed.set()

    pending = [batcher(PHOTO) for _ in range(5)]
    pending[0].add_done_callback(close)
    assert closed.wait(WAIT_S) and all(each.result(WAIT_S) for each in pending)
    batcher.close()


def test_a_buffer_may_be_written_over(model: Model) -> None:
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.fromarray(PHOTO).save(file, "PNG")
    buffer = bytearray(file.getvalue())
    with model.batcher(max_wait_ms=20) as batcher:
        pending = batcher(buffer)
        buffer[:] = bytes(len(buffer))
        assert pending.result(WAIT_S).label == "dark"  # type: ignore[union-attr]


def test_a_torn_image_whose_deadline_passes_while_it_is_decoded_is_answered_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A soak found it: the thread that decoded it died of the second answer, and all waited for ever."""
    real, decoding = request_queue.prepared, threading.Event()

    def slowly(*given: object) -> object:
        decoding.set()
        time.sleep(0.1)
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(request_queue, "prepared", slowly)
    with model.batcher(max_wait_ms=1, max_queue=4) as batcher:
        torn = batcher(b"torn", deadline_ms=20)
        assert decoding.wait(WAIT_S)
        time.sleep(0.05)
        assert batcher(PHOTO).result(WAIT_S)  # wakes a runner, which finds the deadline passed
        with pytest.raises(DeadlineError):
            torn.result(WAIT_S)
        after = [batcher(b"torn") for _ in range(4)]
        assert all(isinstance(each.exception(WAIT_S), ImageError) for each in after)
        found = batcher.counters()
    assert (found["expired"], found["failed"], found["answered"]) == (1, 4, 1)
