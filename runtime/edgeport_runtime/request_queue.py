"""The requests of one batcher in one process, and the threads that answer them."""

import asyncio
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from threading import Condition, RLock, Thread
from typing import Any

import numpy as np

from .axes import is_whole
from .counters import Counters
from .decoding import ImageSource, describe, in_rgb
from .engine import Arrays
from .errors import ClosedError, DeadlineError, InputError, QueueFullError
from .images import Pixel, is_prepared, prepared, require_size
from .model import Model
from .predictions import Answer
from .threads import close_at_exit, usable_threads

RUNNERS = 2  # one gathers and stacks while the other's batch runs: 93 % of what direct batches give, instead of 90
COUNTS = ("accepted", "answered", "failed", "refused", "expired", "canceled", "batches")
MOST_MS = 1e9  # twelve days: Python's clocks do not wait for ever
logger = logging.getLogger(__name__)


class Pending(Future[Answer]):
    """An answer to come: `await` it, or ask for its `result(timeout)`. `cancel` gives a request back that is not running yet."""

    def __await__(self) -> Generator[Any, None, Answer]:
        return asyncio.wrap_future(self).__await__()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`max_batch`: images of one run, within the bounds of the model. `max_wait_ms`: how long the first image of a batch waits for others, at most half of
    the time until its deadline.

    `max_queue`: requests that may wait; one more raises QueueFullError at once. `deadline_ms`: a request that has not begun to run by then raises
    DeadlineError, and no work is done for it; one that has begun is answered. `top`: see `Model.__call__`.
    """

    max_batch: int = 16
    max_wait_ms: float = 2.0
    max_queue: int = 256
    deadline_ms: float | None = None
    top: int = 5

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_queue", "top"):
            if not is_whole(getattr(self, name)) or getattr(self, name) < 1:
                raise InputError(f"{name} is a whole number of at least 1, got {getattr(self, name)!r}")
        for name in ("max_wait_ms", "deadline_ms"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (name == "deadline_ms" and value is None) and not (number and 0 <= value <= MOST_MS):
                raise InputError(f"{name} is a number of milliseconds from 0 to {MOST_MS:g}, got {value!r}")


@dataclass(kw_only=True, eq=False)
class _Request:
    source: ImageSource
    channels: str
    expires: float
    arrived: float
    due: float  # when it is run, however many came with it
    pending: Pending = field(default_factory=Pending)
    pixels: Pixel | None = None
    source_px: tuple[int, int] = (0, 0)


class RequestQueue:
    """It does not know its Batcher, so that one that is dropped ends.

    Sets hold what is to be done, so that a step that a signal cut short can be undone; no callback of a caller runs while `_lock` is held.
    """

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model, self.limits, self.counters = model, limits, Counters(COUNTS)
        self._process, self._lock, self._closed = os.getpid(), RLock(), False
        self._changed = Condition(self._lock)  # not entered itself: a signal in its Python code would leave the lock taken
        self._waiting, self._undecoded = set[_Request](), set[_Request]()
        self._groups: dict[tuple[int, ...], deque[_Request]] = {}  # prepared, by the shape of their pixels
        # A ThreadPoolExecutor's own locks stay taken if a signal's handler raises in the middle of `submit`.
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._decoders = [Thread(target=_work, args=(self._jobs,), name="edgeport-decode", daemon=True) for _ in range(usable_threads())]
        self._runners = [Thread(target=self._run, name="edgeport-batcher", daemon=True) for _ in range(RUNNERS)]
        self._runs = RUNNERS  # how many of them have not ended
        for each in (*self._decoders, *self._runners):
            each.start()
        close_at_exit(self)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def accept(self, source: ImageSource, deadline_ms: float | None, channels: str) -> Pending:
        now, left_s = time.monotonic(), math.inf if deadline_ms is None else deadline_ms / 1e3
        due = now + min(self.limits.max_wait_ms / 1e3, left_s / 2)
        request = _Request(source=source, channels=channels, arrived=now, expires=now + left_s, due=due)
        if isinstance(source, np.ndarray):
            request.source = source.copy()
            pixels = self.model.contract.pixels
            if channels == "rgb" and pixels.resize != "keep" and is_prepared(source, pixels):
                request.pixels, request.source_px = request.source, source.shape[:2]  # no thread has to decode it
        elif isinstance(source, bytearray):
            request.source = bytes(source)
        request.pending.add_done_callback(lambda _: self._withdraw(request))  # before another thread knows it, since it takes a lock
        late: list[_Request] = []
        try:
            with self._lock:
                late = self._late() if len(self._waiting) >= self.limits.max_queue else []
                self._enqueue(request)
        finally:
            self._expire(late)
        self.counters.add(accepted=1)
        return request.pending

    def _enqueue(self, request: _Request) -> None:
        if self._closed:
            raise ClosedError("this batcher was closed: make another one with model.batcher()")
        if len(self._waiting) >= self.limits.max_queue:
            self.counters.add(refused=1)
            raise QueueFullError(f"{len(self._waiting)} requests wait already, which is max_queue: try again later, or allow more")
        try:
            self._waiting.add(request)
            if request.pixels is not None:
                self._groups.setdefault(request.pixels.shape, deque()).append(request)
                self._changed.notify()
            else:
                self._undecoded.add(request)
                self._jobs.put(partial(self._prepare, request))
        except BaseException:  # of a signal's handler
            self._take_out(request)
            raise

    def refuse(self) -> None:
        """Accept nothing more; the threads end when all is answered."""
        if self._process == os.getpid():  # a forked process has none of them, and another thread may have held the lock
            with self._lock:
                self._closed = True
                self._changed.notify_all()

    def close(self) -> None:
        self.refuse()
        with suppress(RuntimeError):  # in a callback, one of these threads is this one
            for each in (*self._runners, *self._decoders):
                each.join()

    def _withdraw(self, request: _Request) -> None:
        """After a cancellation: the place is free again, and no work is done."""
        if request.pending.cancelled():
            with self._lock:
                self._take_out(request)
            self.counters.add(canceled=1)

    def _take_out(self, request: _Request) -> None:
        """It waits no longer, in its group or for its decoding; once more does no harm."""
        self._undecoded.discard(request)
        self._waiting.discard(request)
        group = self._groups.get(request.pixels.shape) if request.pixels is not None else None
        if group is not None and request in group:
            group.remove(request)
            if not group:
                del self._groups[request.pixels.shape]  # type: ignore[union-attr]

    def _prepare(self, request: _Request) -> None:
        """On a thread of the decoders."""
        fault: BaseException | None = None
        made = None
        if time.monotonic() <= request.expires and not request.pending.cancelled():
            try:
                made = prepared(in_rgb(request.source, request.channels), self.model.contract.pixels, None, self.model.image_limits)
                require_size(made.pixels.shape, self.model.contract, describe(request.source))
            except BaseException as error:  # of whatever kind: its caller waits for an answer
                fault = error
        with self._lock:
            self._undecoded.discard(request)
            waits = request in self._waiting  # whoever takes it out answers it, and nobody else
            if waits and fault is not None:
                self._take_out(request)
            elif waits and made is not None:
                request.pixels, request.source_px = made
                self._groups.setdefault(made.pixels.shape, deque()).append(request)
            self._changed.notify_all()
        if waits and fault is not None:
            self._fail(request, fault)

    def _late(self) -> list[_Request]:
        """Taken out, because their deadlines have passed."""
        now = time.monotonic()
        late = [each for each in self._waiting if each.expires < now]
        for each in late:
            self._take_out(each)
        return late

    def _expire(self, late: list[_Request]) -> None:
        for each in late:
            waited_ms = (time.monotonic() - each.arrived) * 1e3
            self._fail(each, DeadlineError(f"the request waited {waited_ms:.0f} ms, longer than its deadline allows, and was not run"), "expired")

    def _fail(self, request: _Request, error: BaseException, count: str = "failed") -> None:
        if request.pending.running() or request.pending.set_running_or_notify_cancel():
            self.counters.add(**{count: 1})
            _safely(partial(request.pending.set_exception, error))

    def _run(self) -> None:
        """A runner's thread: one batch after the other, until the queue is closed and empty."""
        while (taken := self._next_batch()) is not None:
            batch, late = taken
            self._expire(late)
            begun = [each for each in batch if each.pending.set_running_or_notify_cancel()]
            if begun:
                _safely(partial(self._answer, begun))
        with self._lock:
            self._runs -= 1
            if not self._runs:
                for _ in self._decoders:
                    self._jobs.put(None)

    def _next_batch(self) -> tuple[list[_Request], list[_Request]] | None:
        """Requests of one size, those that are due or a full batch; and those whose deadline has passed. None if there will be no more."""
        with self._lock:
            while True:
                late = self._late()
                if late or not (self._groups or self._undecoded or not self._closed):
                    return ([], late) if late else None
                groups = sorted(self._groups.values(), key=lambda group: min(each.due for each in group))
                left_s = min(each.due for each in groups[0]) - time.monotonic() if groups else None
                full = next((group for group in groups if len(group) >= self._most(group[0])), None)
                if left_s is not None and (left_s <= 0 or self._closed):
                    full = groups[0]
                if full is not None:
                    taken = list(full)[: self._most(full[0])]
                    for each in taken:
                        self._take_out(each)
                    return taken, []
                self._changed.wait(left_s)

    def _most(self, request: _Request) -> int:
        assert request.pixels is not None  # only prepared ones are in groups
        return min(self.limits.max_batch, self.model.bounds.images(*request.pixels.shape[:2]))

    def _answer(self, requests: list[_Request]) -> None:
        """Run them together; if that fails, each alone, so that no caller pays for another's image."""
        try:
            outputs = self.model.raw(np.stack([each.pixels for each in requests if each.pixels is not None]))
        except BaseException as error:  # of whatever kind: callers wait for an answer
            if len(requests) == 1:
                return self._fail(requests[0], error)
            for each in requests:
                self._answer([each])
            return None
        return self._jobs.put(partial(self._hand_out, requests, outputs))  # the next batch runs meanwhile

    def _hand_out(self, requests: list[_Request], outputs: Arrays) -> None:
        self.counters.add(batches=1)
        try:
            assert requests[0].pixels is not None  # they were run
            answers = self.model.interpret(outputs, [each.source_px for each in requests], requests[0].pixels.shape[:2], self.limits.top)
        except BaseException as error:
            for each in requests:
                self._fail(each, error)
            return
        for each, answer in zip(requests, answers, strict=True):
            self.counters.observe((time.monotonic() - each.arrived) * 1e3, answered=1)
            _safely(partial(each.pending.set_result, answer))


def _work(jobs: "SimpleQueue[Callable[[], None] | None]") -> None:
    """A decoder's thread."""
    while (job := jobs.get()) is not None:
        _safely(job)
        del job  # its arrays may be large


def _safely(call: Callable[[], object]) -> None:
    """Whatever a caller's callback raises, SystemExit say, the others get their answers."""
    try:
        call()
    except BaseException:
        logger.exception("a callback of a request raised, or a batcher is at fault")
