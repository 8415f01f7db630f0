"""Single images from many threads, or from asyncio, gathered into batches."""

import asyncio
import math
import os
import time
import weakref
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Condition, Thread
from typing import Any

import numpy as np

from .contract import is_whole
from .counters import Counters, prometheus
from .decoding import ImageSource, describe, in_rgb
from .engine import Arrays
from .errors import ClosedError, DeadlineError, InputError, QueueFullError
from .images import Pixel, is_prepared, prepare, require_size
from .model import Model
from .predictions import Answer
from .tasks import Interpret, find_task
from .threads import close_at_exit, usable_threads

RUNNERS = 2  # one gathers and stacks while the other's batch runs: 93 % of what direct batches give, instead of 90
COUNTS = ("accepted", "answered", "failed", "refused", "expired", "canceled", "batches", "waiting")


class Pending(Future[Answer]):
    """An answer to come: `await` it, or ask for its `result(timeout)`. `cancel` gives a request back that is not running yet."""

    def __await__(self) -> Generator[Any, None, Answer]:
        return asyncio.wrap_future(self).__await__()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`max_batch`: images of one run, within the bounds of the model. `max_wait_ms`: how long the first image of a batch waits for others.

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
            if value is not None and (not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf):
                raise InputError(f"{name} is a number of milliseconds of at least 0, got {value!r}")


class Batcher:
    """Gathers single images into batches of one size, and hands each caller its own answer. Use it as a context, or `close` it.

    `batcher(image).result()` in a thread and `await batcher(image)` in asyncio give what `model(image)` gives. Images are decoded by threads
    of their own while the model runs. An image that cannot be read raises its ImageError for its caller alone.
    """

    def __init__(self, model: Model, limits: Limits) -> None:
        interpret = find_task(model.contract.task).interpret
        if interpret is None:
            raise InputError("this model takes plain tensors, so there are no images to gather: use raw()")
        self._limits, self._make_queue = limits, partial(_Queue, model, interpret, limits)
        self._start()

    def _start(self) -> None:
        self._process, self._queue = os.getpid(), self._make_queue()
        self._finalizer = weakref.finalize(self, self._queue.refuse)
        self._finalizer.atexit = False  # see close_at_exit

    def __call__(self, image: ImageSource, *, deadline_ms: float | None = None, channels: str = "rgb") -> Pending:
        """Accept one image, as `Model.__call__` takes it; an array may be written over afterwards. `deadline_ms`: instead of the batcher's own.

        Raises QueueFullError or ClosedError at once; what concerns the image comes with its answer.
        """
        if self._process != os.getpid():
            self._finalizer.detach()
            self._start()  # a forked process has none of the threads; the parent answers what it has accepted
        limits = self._limits if deadline_ms is None else replace(self._limits, deadline_ms=deadline_ms)
        return self._queue.accept(image, limits.deadline_ms, channels)

    def counters(self) -> dict[str, Any]:
        """Counts since the start: "accepted", "answered", "failed", "refused" (queue full), "expired" (deadline), "canceled", "batches"; how many are
        "waiting" now; and "latency_ms", from the request to the answer.
        """
        return self._queue.counters.snapshot()

    def prometheus(self, **labels: str) -> str:
        """The counters in Prometheus's text form, with these labels."""
        return prometheus(self.counters(), prefix="edgeport_batcher", gauges=("waiting",), **labels)

    def close(self) -> None:
        """Accept nothing more, answer everything that was accepted, and end the threads."""
        self._queue.close()

    def __enter__(self) -> "Batcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(kw_only=True, eq=False)
class _Request:
    source: ImageSource
    channels: str
    expires: float
    arrived: float = field(default_factory=time.monotonic)
    pending: Pending = field(default_factory=Pending)
    pixels: Pixel | None = None
    waits: bool = True


class _Queue:
    """The requests and the threads of one batcher in one process. It does not know its Batcher, so that one that is dropped ends."""

    def __init__(self, model: Model, interpret: Interpret, limits: Limits) -> None:
        self.model, self.interpret, self.limits, self.counters = model, interpret, limits, Counters(COUNTS)
        self._changed = Condition()
        self._groups: dict[tuple[int, ...], deque[_Request]] = {}  # prepared, by the shape of their pixels
        self._waiting, self._unprepared, self._closed = 0, 0, False
        self._decoders = ThreadPoolExecutor(usable_threads(), "edgeport-decode")
        self._runners = [Thread(target=self._run, name="edgeport-batcher", daemon=True) for _ in range(RUNNERS)]
        for each in self._runners:
            each.start()
        close_at_exit(self)

    def accept(self, source: ImageSource, deadline_ms: float | None, channels: str) -> Pending:
        ready = isinstance(source, np.ndarray) and channels == "rgb" and is_prepared(source, self.model.contract.pixels)
        if isinstance(source, np.ndarray):
            source = source.copy()
        request = _Request(source=source, channels=channels, expires=math.inf)
        if deadline_ms is not None:
            request.expires = request.arrived + deadline_ms / 1e3
        with self._changed:
            if self._closed:
                raise ClosedError("this batcher was closed: make another one with model.batcher()")
            if self._waiting >= self.limits.max_queue:
                self.counters.add(refused=1)
                raise QueueFullError(f"{self._waiting} requests wait already, which is max_queue: try again later, or allow more")
            try:
                if not ready:
                    self._decoders.submit(self._prepare, request)
            except RuntimeError as error:  # the interpreter is ending
                raise ClosedError("this process is ending, so nothing more is answered") from error
            self._waiting += 1
            self._unprepared += 1
            self.counters.add(accepted=1, waiting=1)
        if ready:  # no thread has to decode it
            self._prepare(request)
        request.pending.add_done_callback(lambda _: self._withdraw(request))
        return request.pending

    def refuse(self) -> None:
        """Accept nothing more; the threads end when all is answered."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self) -> None:
        self.refuse()
        for each in self._runners:
            each.join()
        self._decoders.shutdown()

    def _withdraw(self, request: _Request) -> None:
        """After a cancellation: the place is free again, and no work is done."""
        if not request.pending.cancelled():
            return
        with self._changed:
            self._take_out(request)
            self.counters.add(canceled=1)

    def _take_out(self, request: _Request) -> None:
        """It waits no longer, in its group or for its decoding; once more does no harm."""
        if not request.waits:
            return
        request.waits = False
        self._waiting -= 1
        self.counters.add(waiting=-1)
        if request.pixels is not None:
            group = self._groups[request.pixels.shape]
            group.remove(request)
            if not group:
                del self._groups[request.pixels.shape]

    def _prepare(self, request: _Request) -> None:
        """On a thread of the decoders."""
        fault: BaseException | None = None
        pixels = None
        if self._is_due(request):
            try:
                pixels = prepare(in_rgb(request.source, request.channels), self.model.contract.pixels)
                require_size(pixels.shape, self.model.contract, describe(request.source))
            except BaseException as error:  # of whatever kind: its caller waits for an answer
                fault = error
        with self._changed:
            self._unprepared -= 1
            if pixels is not None and fault is None and request.waits:
                request.pixels = pixels
                self._groups.setdefault(pixels.shape, deque()).append(request)
            else:
                self._take_out(request)
            self._changed.notify_all()
        if fault is not None:
            self._fail(request, fault)

    def _is_due(self, request: _Request) -> bool:
        """Whether there is still something to do for a request; one whose deadline has passed is told so."""
        if request.pending.cancelled():
            return False
        if time.monotonic() <= request.expires:
            return True
        if request.pending.set_running_or_notify_cancel():
            self.counters.add(expired=1)
            waited_ms = (time.monotonic() - request.arrived) * 1e3
            request.pending.set_exception(DeadlineError(f"the request waited {waited_ms:.0f} ms, longer than its deadline allows, and was not run"))
        return False

    def _fail(self, request: _Request, error: BaseException) -> None:
        if request.pending.running() or request.pending.set_running_or_notify_cancel():
            self.counters.add(failed=1)
            request.pending.set_exception(error)

    def _run(self) -> None:
        """A runner's thread: one batch after the other, until the queue is closed and empty."""
        while (taken := self._next_batch()) is not None:
            due = [each for each in taken if self._is_due(each) and each.pending.set_running_or_notify_cancel()]
            if due:
                self._answer(due)

    def _next_batch(self) -> list[_Request] | None:
        """Requests of one size: those of the oldest one if it has waited long enough or if there are no more to come, or else a full batch."""
        with self._changed:
            while True:
                if not self._groups and self._closed and not self._unprepared:
                    return None
                groups = sorted(self._groups.values(), key=lambda group: group[0].arrived)
                left_s = self.limits.max_wait_ms / 1e3 - (time.monotonic() - groups[0][0].arrived) if groups else None
                if left_s is not None and (left_s <= 0 or self._closed):
                    return self._taken(groups[0])
                full = next((group for group in groups if len(group) >= self._most(group[0])), None)
                if full is not None:
                    return self._taken(full)
                self._changed.wait(left_s)

    def _most(self, request: _Request) -> int:
        assert request.pixels is not None  # only prepared ones are in groups
        return min(self.limits.max_batch, self.model.bounds.images(*request.pixels.shape[:2]))

    def _taken(self, group: deque[_Request]) -> list[_Request]:
        taken = list(group)[: self._most(group[0])]
        for each in taken:
            self._take_out(each)
        return taken

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
        try:  # the next batch runs meanwhile
            self._decoders.submit(self._hand_out, requests, outputs)
        except RuntimeError:  # the interpreter is ending
            self._hand_out(requests, outputs)

    def _hand_out(self, requests: list[_Request], outputs: Arrays) -> None:
        self.counters.add(batches=1)
        try:
            answers = self.interpret(outputs[self.model.contract.outputs[0].name], self.model.contract.labels, self.limits.top)
        except BaseException as error:
            for each in requests:
                self._fail(each, error)
            return
        for each, answer in zip(requests, answers, strict=True):
            self.counters.observe((time.monotonic() - each.arrived) * 1e3, answered=1)
            each.pending.set_result(answer)
