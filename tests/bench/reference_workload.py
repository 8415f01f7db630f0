"""How fast the machine is right now, told by a product that never changes.

A rented machine may have slow phases in which every product takes half as long again, for seconds on end, while nothing on it tells of them
(no steal, no waiting for a processor). Measured on two processors: a 256x256 float32 product took 183 to 195 us or 270 to 317, and an int8
convnext_tiny 24 or 40 ms beside it, in turns of about ten seconds, while one thread's sum over memory stayed as it was. Why is not known from
here; a neighbor on the other half of each core would do it.
Medians of engines that take turns say little then: one is timed in a good phase, the next in a bad one.
"""

import math
import statistics
import time
from collections.abc import Callable

import numpy as np

SIDE, PRODUCTS = 256, 60  # some 12 ms
REST_SECONDS = 0.1  # the library's threads spin for a while after a product
OBSERVED_SECONDS = 20.0  # in which the fastest phase should have come along


class ReferenceWorkload:
    """`slowest_allowed`: times its own fastest that the product may take in a steady phase. `patience_seconds`: how long one turn may wait for such."""

    def __init__(self, *, slowest_allowed: float = 1.15, patience_seconds: float = 60.0) -> None:
        self.slowest_allowed = slowest_allowed
        self.patience_seconds = patience_seconds
        self._factor = np.random.default_rng(0).random((SIDE, SIDE), dtype=np.float32)
        self._fastest = math.inf
        deadline = time.monotonic() + OBSERVED_SECONDS
        while time.monotonic() < deadline:
            self.slowness()

    def slowness(self) -> float:
        """Times its fastest that the product takes now: 1 in a steady phase."""
        now = self._median()
        self._fastest = min(self._fastest, now)
        return now / self._fastest

    def steady(self, turn: Callable[[], float]) -> tuple[float, bool]:
        """What `turn` measured in a phase that was steady before and after it, and whether there was one; else of the steadiest it saw."""
        seen: list[tuple[float, float]] = []
        deadline = time.monotonic() + self.patience_seconds
        before = self.slowness()
        while not seen or time.monotonic() < deadline:
            while before > self.slowest_allowed and time.monotonic() < deadline:
                before = self.slowness()
            measured, after = turn(), self.slowness()
            seen.append((max(before, after), measured))
            if seen[-1][0] <= self.slowest_allowed:
                return measured, True
            before = after
        return min(seen)[1], False

    def _median(self) -> float:
        times = []
        for _ in range(PRODUCTS):
            start = time.perf_counter()
            self._factor @ self._factor
            times.append(time.perf_counter() - start)
        time.sleep(REST_SECONDS)
        return statistics.median(times)
