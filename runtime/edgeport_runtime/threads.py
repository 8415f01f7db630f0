"""How many threads this process may use, and how the models in it share them."""

import atexit
import os
import sys
import threading
import weakref
from collections import deque
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from threading import Lock, get_ident
from typing import Protocol


def cgroup_cpus(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPUs that the cgroup quotas allow (version 2, then 1); None if there is none. A process in a group of its own is bound by those above it, too."""
    try:
        own = next((line[3:].strip("/") for line in groups.read_text().splitlines() if line.startswith("0::")), "")
    except OSError:
        own = ""
    places = [root / own, *(root / own).parents][: len(Path(own).parts) + 1]
    quotas = [quota for quota in map(_quota, places) if quota is not None]
    return min(quotas, default=None)


def _quota(root: Path) -> float | None:
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return None
    return int(quota) / int(period) if quota not in ("max", "-1") else None


def usable_threads() -> int:
    """CPUs this process may use: affinity, bounded by the cgroup quota. onnxruntime's own default counts the host's cores."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cpus()
    return max(1, allowed if quota is None else min(allowed, int(quota)))


class RunQueue:
    """At most `places` runs at once, whichever models they belong to; others wait in the order in which they came. Use it as a context.

    More runs than processors only take memory and wait for each other: docs/application.md has figures. `threading.Semaphore` lets newcomers pass.
    """

    def __init__(self, places: int) -> None:
        self._places, self._running = places, set[int]()  # which threads: one whose exit a signal cut short is found by its next entry
        self._waiting = deque[tuple[int, Lock]]()
        self._holds, self._quiet = 0, list[Lock]()
        self._lock = Lock()

    def __enter__(self) -> None:
        """A thread that has a place already, because its session runs another model, waits for no other."""
        with self._lock:
            thread = get_ident()
            if thread in self._running:
                return
            if len(self._running) < self._places and not self._waiting and not self._holds:
                self._running.add(thread)
                return
            self._waiting.append((thread, turn := _taken_lock()))
        try:
            turn.acquire()
        except BaseException:  # interrupted while waiting
            with self._lock:
                with suppress(ValueError):  # its turn had come at that moment
                    self._waiting.remove((thread, turn))
                self._end(thread)
            raise

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._end(get_ident())

    def hold(self) -> None:
        """Wait until nothing runs; whoever comes meanwhile waits for `go_on`. The caller's own thread runs nothing."""
        with self._lock:
            self._holds += 1
            self._end(get_ident())
            if not self._running:
                return
            self._quiet.append(quiet := _taken_lock())
        quiet.acquire()

    def go_on(self) -> None:
        """Admit those who wait."""
        with self._lock:
            self._holds -= 1
            self._admit()

    def _end(self, thread: int) -> None:
        self._running.discard(thread)
        self._admit()

    def _admit(self) -> None:
        if not self._running:
            while self._quiet:
                self._quiet.pop().release()
        while self._waiting and len(self._running) < self._places and not self._holds:
            thread, turn = self._waiting.popleft()
            self._running.add(thread)
            turn.release()


def _taken_lock() -> Lock:
    lock = Lock()
    lock.acquire()
    return lock


def _queues() -> dict[str, RunQueue]:
    return {"cpu": RunQueue(usable_threads()), "cuda": RunQueue(sys.maxsize)}  # a card has any number of places


class Closable(Protocol):
    """What ends with its process."""

    def close(self) -> None:
        """End the threads."""


class _Process:
    """What all models of this process share."""

    def __init__(self) -> None:
        self.queues = _queues()
        self.locks: weakref.WeakSet[Lock] = weakref.WeakSet()
        self.open: weakref.WeakSet[Closable] = weakref.WeakSet()
        self.is_ending = False

    def hold(self) -> None:
        for queue in self.queues.values():
            queue.hold()

    def go_on(self) -> None:
        for queue in self.queues.values():
            queue.go_on()

    def begin_in_child(self) -> None:
        """The child has no thread but the one that forked, so nothing runs, and no other thread gives a lock back."""
        self.queues = _queues()
        self.open.clear()  # their threads are the parent's
        for lock in list(self.locks):
            if lock.locked():
                lock.release()

    def end(self) -> None:
        """At the exit. A daemon thread that comes back from onnxruntime after Python has ended its threads ends the process by a signal."""
        for each in list(self.open):
            each.close()
        self.is_ending = True
        self.hold()


_process = _Process()
atexit.register(_process.end)
if hasattr(os, "register_at_fork"):
    # A fork in the middle of a run would copy onnxruntime's locks as they are, held by threads that the child does not have.
    os.register_at_fork(before=_process.hold, after_in_parent=_process.go_on, after_in_child=_process.begin_in_child)


def run_queue(device: str) -> AbstractContextManager[None]:
    """The queue that all models of this process share on a device, "cpu" or "cuda"."""
    if _process.is_ending and threading.current_thread() is threading.main_thread():
        return nullcontext()  # nobody else runs any more
    return _process.queues[device]


def close_at_exit(each: Closable) -> None:
    """While Python still has its threads, and not in a forked process."""
    _process.open.add(each)


def fork_safe_lock() -> Lock:
    """A lock that is free in a forked process, whoever held it at that moment."""
    lock = Lock()
    _process.locks.add(lock)
    return lock
