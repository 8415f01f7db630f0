"""Single images from many threads, or from asyncio, gathered into batches."""

import os
import weakref
from dataclasses import replace
from functools import partial
from typing import Any

from .counters import prometheus
from .decoding import ImageSource
from .errors import ClosedError, InputError
from .model import Model
from .request_queue import Limits, Pending, RequestQueue


class Batcher:
    """Gathers single images into batches of one size, and hands each caller its own answer. Use it as a context, or `close` it.

    `batcher(image).result()` in a thread and `await batcher(image)` in asyncio give what `model(image)` gives. Images are decoded by threads
    of their own while the model runs. An image that cannot be read raises its ImageError for its caller alone.
    """

    def __init__(self, model: Model, limits: Limits) -> None:
        if not model.contract.takes_one_image:
            raise InputError("this model takes plain tensors, so there are no images to gather: use raw()")
        self._limits, self._make_queue, self._closed = limits, partial(RequestQueue, model, limits), False
        self._start()

    def _start(self) -> None:
        self._process, self._queue = os.getpid(), self._make_queue()
        self._finalizer = weakref.finalize(self, self._queue.refuse)
        self._finalizer.atexit = False  # see close_at_exit

    def __call__(self, image: ImageSource, *, deadline_ms: float | None = None, channels: str = "rgb") -> Pending:
        """Accept one image, as `Model.__call__` takes it; an array or a bytearray may be written over afterwards. `deadline_ms`: instead of the limit.

        Raises QueueFullError or ClosedError at once; what concerns the image comes with its answer.
        """
        if self._closed:
            raise ClosedError("this batcher was closed: make another one with model.batcher()")
        if self._process != os.getpid():
            self._finalizer.detach()
            self._start()  # a forked process has none of the threads; the parent answers what it has accepted
        limits = self._limits if deadline_ms is None else replace(self._limits, deadline_ms=deadline_ms)
        return self._queue.accept(image, limits.deadline_ms, channels)

    def counters(self) -> dict[str, Any]:
        """Counts since the start: "accepted", "answered", "failed", "refused" (queue full), "expired" (deadline), "canceled", "batches"; how many are
        "waiting" now; and "latency_ms", from the request to the answer.
        """
        return {**self._queue.counters.snapshot(), "waiting": self._queue.waiting}

    def prometheus(self, **labels: object) -> str:
        """The counters in Prometheus's text form, with these labels."""
        return prometheus(self.counters(), labels, prefix="edgeport_batcher", gauges=("waiting",))

    def close(self) -> None:
        """Accept nothing more, answer everything that was accepted, and end the threads. Not for signal handlers, which may interrupt a call of this."""
        self._closed = True
        if self._process == os.getpid():
            self._queue.close()

    def __enter__(self) -> "Batcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        raise InputError("a batcher belongs to its process: send the model, and make another one there with model.batcher()")
