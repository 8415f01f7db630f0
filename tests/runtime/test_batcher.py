"""Each caller gets the answer to its own image, whatever happens to the others; and every request ends in exactly one way."""

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from edgeport_runtime import BusyError, DeviceError, ImageError, InputError, Model, Prediction, load
from edgeport_runtime.batcher import Batcher
from edgeport_runtime.errors import ClosedError, DeadlineError, QueueFullError
from edgeport_runtime.request_queue import RUNNERS, Pending

WAIT_S = 10.0  # for an answer that must come
ENDS = ("answered", "failed", "expired", "canceled")


@pytest.fixture
def model(classifier: Path) -> Iterator[Model]:
    with load(classifier, precision="fp32", threads=1) as loaded:
        yield loaded


def photo(seed: int, height: int = 16, width: int = 16) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Gate:
    """Holds the model's runs until it is opened, and records their shapes."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.entered, self.shapes = threading.Event(), threading.Semaphore(0), list[tuple[int, ...]]()
        real = model.raw

        def raw(pixels: NDArray[np.uint8]) -> Any:
            self.shapes.append(pixels.shape)
            self.entered.release()
            assert self.opened.wait(WAIT_S)
            return real(pixels)

        monkeypatch.setattr(model, "raw", raw)

    def occupy(self, batcher: Batcher, height: int = 16) -> list[Pending]:
        """Every runner has a request that does not end before the gate is opened."""
        running = []
        for seed in range(RUNNERS):
            running.append(batcher(photo(seed, height, 16), deadline_ms=1e6))
            assert self.entered.acquire(timeout=WAIT_S)
        return running


@pytest.fixture
def gate(model: Model, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(model, monkeypatch)


def logits_of(answer: Any) -> float:
    assert isinstance(answer, Prediction)
    return answer.score


def settled(batcher: Batcher, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The counters, once a condition holds."""
    end = time.monotonic() + WAIT_S
    while not condition(batcher.counters()):
        assert time.monotonic() < end, batcher.counters()
        time.sleep(0.001)
    return batcher.counters()


def test_many_threads_get_the_answers_to_their_own_images(model: Model) -> None:
    photos = [photo(seed) for seed in range(60)]
    expected = [logits_of(model(each)) for each in photos]
    with model.batcher(max_batch=8) as batcher, ThreadPoolExecutor(12) as callers:
        answers = list(callers.map(lambda each: batcher(each).result(WAIT_S), photos))
        np.testing.assert_allclose([logits_of(each) for each in answers], expected, rtol=1e-5)
        found = batcher.counters()
    assert found["accepted"] == found["answered"] == 60 and found["waiting"] == 0 and found["latency_ms"]["count"] == 60


def test_asyncio_gets_the_answers_to_its_own_images(model: Model) -> None:
    photos = [photo(seed) for seed in range(40)]

    async def ask(batcher: Batcher) -> list[Any]:
        return await asyncio.gather(*(batcher(each) for each in photos))

    with model.batcher() as batcher:
        answers = asyncio.run(ask(batcher))
    np.testing.assert_allclose([logits_of(each) for each in answers], [logits_of(model(each)) for each in photos], rtol=1e-5)


@settings(max_examples=15)
@given(sizes=st.lists(st.tuples(st.integers(8, 24), st.integers(8, 24)), min_size=1, max_size=40), most=st.integers(1, 9))
def test_images_of_any_sizes_come_back_at_their_own(generator: Path, sizes: list[tuple[int, int]], most: int) -> None:
    with load(generator, precision="fp32", threads=1) as made, made.batcher(max_batch=most, max_wait_ms=0) as batcher:
        pending = [batcher(photo(seed, *size)) for seed, size in enumerate(sizes)]
        for seed, (size, each) in enumerate(zip(sizes, pending, strict=True)):
            np.testing.assert_array_equal(np.asarray(each.result(WAIT_S)), np.asarray(made(photo(seed, *size))))


def test_a_run_holds_one_size_and_no_more_than_it_may(model: Model, generator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(generator) as made:
        gate = Gate(made, monkeypatch)
        with made.batcher(max_batch=4, max_wait_ms=0) as batcher:
            first = gate.occupy(batcher, 8)
            later = [batcher(photo(seed, 8 + 8 * (seed % 2), 16)) for seed in range(20)]
            settled(batcher, lambda found: found["waiting"] == 20)
            time.sleep(0.05)  # all are prepared
            gate.opened.set()
            assert all(each.result(WAIT_S) for each in (*first, *later))
    assert max(shape[0] for shape in gate.shapes) == 4 and {shape[1] for shape in gate.shapes} == {8, 16}


def test_a_bad_image_fails_alone(model: Model, tmp_path: Path) -> None:
    Image.fromarray(photo(1)).save(tmp_path / "good.png")
    with model.batcher(max_wait_ms=20) as batcher:
        good, torn, none, after = batcher(tmp_path / "good.png"), batcher(b"torn"), batcher(tmp_path / "none.png"), batcher(photo(2))
        assert logits_of(good.result(WAIT_S)) == pytest.approx(logits_of(model(photo(1))), rel=1e-5) and after.result(WAIT_S)
        with pytest.raises(ImageError, match="an image of 4 bytes"):
            torn.result(WAIT_S)
        with pytest.raises(ImageError, match="there is no such file"):
            none.result(WAIT_S)
        assert batcher.counters()["failed"] == 2


def test_a_run_that_fails_is_tried_with_each_image_alone(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    real = model.raw

    def raw(pixels: NDArray[np.uint8]) -> Any:
        if (pixels == 255).all(axis=(1, 2, 3)).any():
            raise DeviceError("out of memory")
        return real(pixels)

    monkeypatch.setattr(model, "raw", raw)
    with model.batcher(max_wait_ms=50) as batcher:
        pending = [batcher(each) for each in (photo(0), np.full((16, 16, 3), 255, np.uint8), photo(1))]
        assert pending[0].result(WAIT_S) and pending[2].result(WAIT_S)
        with pytest.raises(DeviceError, match="out of memory"):
            pending[1].result(WAIT_S)


def test_a_full_queue_refuses_at_once_and_takes_more_later(model: Model, gate: Gate) -> None:
    with model.batcher(max_batch=1, max_queue=3, max_wait_ms=0) as batcher:
        running = gate.occupy(batcher)
        waiting = [batcher(photo(seed)) for seed in range(3)]
        with pytest.raises(QueueFullError, match="3 requests wait already, which is max_queue"):
            batcher(photo(9))
        assert waiting[1].cancel()
        last = batcher(photo(4))
        gate.opened.set()
        assert all(each.result(WAIT_S) for each in (*running, waiting[0], waiting[2], last))
        found = batcher.counters()
    assert (found["accepted"], found["refused"], found["canceled"], found["answered"], found["waiting"]) == (4 + RUNNERS, 1, 1, 3 + RUNNERS, 0)


def test_a_deadline_that_passes_while_waiting_costs_no_work(model: Model, gate: Gate) -> None:
    with model.batcher(max_batch=1, max_wait_ms=0, deadline_ms=10_000) as batcher:
        running = gate.occupy(batcher)
        late, patient = batcher(photo(1), deadline_ms=1), batcher(photo(2))
        time.sleep(0.02)
        gate.opened.set()
        with pytest.raises(DeadlineError, match="longer than its deadline allows, and was not run"):
            late.result(WAIT_S)
        assert all(each.result(WAIT_S) for each in (*running, patient))
        assert batcher.counters()["expired"] == 1
    assert len(gate.shapes) == RUNNERS + 1


def test_a_request_that_was_canceled_is_not_run(model: Model, gate: Gate) -> None:
    async def leave(batcher: Batcher) -> None:
        task = asyncio.ensure_future(batcher(photo(1)))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with model.batcher(max_batch=1, max_wait_ms=0) as batcher:
        running = gate.occupy(batcher)
        asyncio.run(leave(batcher))
        thrown = batcher(photo(2))
        assert thrown.cancel() and not running[0].cancel()
        gate.opened.set()
        assert all(each.result(WAIT_S) for each in running)
        with pytest.raises(CancelledError):
            thrown.result(WAIT_S)
        settled(batcher, lambda found: found["canceled"] == 2 and found["waiting"] == 0)
    assert len(gate.shapes) == RUNNERS


def test_a_lone_request_does_not_wait_for_a_full_batch(model: Model) -> None:
    with model.batcher(max_batch=16, max_wait_ms=5) as batcher:
        start = time.monotonic()
        batcher(photo(0)).result(WAIT_S)
        assert time.monotonic() - start < 5  # and not until the batch is full, which would be never


def test_close_answers_what_was_accepted_and_refuses_the_rest(model: Model, gate: Gate) -> None:
    batcher = model.batcher(max_batch=4, max_wait_ms=10_000)
    pending = [batcher(photo(seed)) for seed in range(10)]
    threading.Timer(0.05, gate.opened.set).start()
    batcher.close()
    assert all(each.done() and each.result() for each in pending)
    with pytest.raises(ClosedError, match="this batcher was closed"):
        batcher(photo(0))
    batcher.close()  # once more does no harm


def test_a_batcher_that_is_dropped_ends_its_threads(model: Model) -> None:
    batcher = model.batcher()
    runners, pending = batcher._queue._runners, [batcher(photo(seed)) for seed in range(5)]
    del batcher
    gc.collect()
    assert all(each.result(WAIT_S) for each in pending)
    for each in runners:
        each.join(WAIT_S)
        assert not each.is_alive()


def test_a_closed_model_fails_its_requests_and_the_batcher_lives(classifier: Path) -> None:
    model = load(classifier)
    with model.batcher() as batcher:
        model.close()
        with pytest.raises(DeviceError, match="this engine was closed"):
            batcher(photo(0)).result(WAIT_S)


def test_an_array_may_be_written_over_after_the_call(model: Model, gate: Gate) -> None:
    """A camera's buffer is filled again while the last picture still waits."""
    buffer = photo(7)
    expected = logits_of(load_answer(model, buffer))
    with model.batcher(max_wait_ms=0) as batcher:
        gate.occupy(batcher)
        pending = batcher(buffer)
        buffer[:] = 0
        gate.opened.set()
        assert logits_of(pending.result(WAIT_S)) == pytest.approx(expected, rel=1e-6)


def load_answer(model: Model, pixels: NDArray[np.uint8]) -> Any:
    """The answer without `raw`, which the gate holds."""
    return model.interpret(model.engine.run({"pixels": pixels[None]}), [pixels.shape[:2]], pixels.shape[:2], 1)[0]


@settings(max_examples=10)
@given(plan=st.lists(st.sampled_from(["good", "bad", "cancel", "late"]), min_size=1, max_size=60), most=st.integers(1, 8), queue=st.integers(1, 20))
def test_every_request_ends_in_exactly_one_way(classifier: Path, plan: list[str], most: int, queue: int) -> None:
    with load(classifier, threads=1) as model:
        batcher = model.batcher(max_batch=most, max_queue=queue, max_wait_ms=1)
        pending, refused = [], 0
        for seed, kind in enumerate(plan):
            try:
                pending.append(batcher(b"torn" if kind == "bad" else photo(seed), deadline_ms=1e-3 if kind == "late" else None))
            except BusyError:
                refused += 1
                continue
            if kind == "cancel":
                pending[-1].cancel()
        batcher.close()
        found = batcher.counters()
    assert all(each.done() for each in pending)
    assert (found["accepted"], found["refused"], found["waiting"]) == (len(pending), refused, 0)
    assert sum(found[end] for end in ENDS) == len(pending)
    assert found["canceled"] == sum(each.cancelled() for each in pending)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "max_batch is a whole number of at least 1, got 0"),
        ({"max_queue": True}, "max_queue is a whole number of at least 1, got True"),
        ({"max_wait_ms": -1}, "max_wait_ms is a number of milliseconds from 0 to 1e\\+09, got -1"),
        ({"max_wait_ms": float("nan")}, "max_wait_ms is a number of milliseconds from 0 to 1e\\+09, got nan"),
        ({"deadline_ms": -1}, "deadline_ms is a number of milliseconds from 0 to 1e\\+09, got -1"),
        ({"max_wait_ms": None}, "max_wait_ms is a number of milliseconds from 0 to 1e\\+09, got None"),
        ({"max_wait_ms": 1e300}, "max_wait_ms is a number of milliseconds from 0 to"),
        ({"top": 0}, "top is a whole number of at least 1, got 0"),
    ],
)
def test_options_are_checked(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.batcher(**options)


def test_the_text_for_prometheus_names_every_count(model: Model) -> None:
    with model.batcher() as batcher:
        batcher(photo(0)).result(WAIT_S)
        text = batcher.prometheus(model="digits")
    assert 'edgeport_batcher_answered_total{model="digits"} 1\n' in text and 'edgeport_batcher_waiting{model="digits"} 0\n' in text
    assert "# TYPE edgeport_batcher_waiting gauge" in text and 'edgeport_batcher_latency_seconds_count{model="digits"} 1\n' in text
