"""Every part is run once, in order, whoever calls; failures are raised; nothing stays behind."""

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from edgeport_runtime.thread_pool import ThreadPool


def threads(name: str) -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith(name)]


def until(condition: Any, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return bool(condition())


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_answers_come_in_the_order_of_the_parts(size: int, parts: int) -> None:
    def slowest_first(part: int) -> int:
        time.sleep((parts - part) * 0.002)
        return part * part

    assert ThreadPool(size, "pool").map(slowest_first, range(parts)) == [part * part for part in range(parts)]


def test_the_caller_runs_the_first_part_while_the_pool_runs_the_others() -> None:
    meeting = threading.Barrier(3, timeout=10)  # broken, and the call with it, unless all three are under way at once

    def met(part: int) -> tuple[int, str]:
        meeting.wait()
        return part, threading.current_thread().name

    ran = ThreadPool(2, "met").map(met, [10, 11, 12])
    assert ran[0] == (10, threading.current_thread().name)
    assert {name for _, name in ran[1:]} == {"met-0", "met-1"} and [part for part, _ in ran] == [10, 11, 12]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_what_a_part_raises_is_raised_after_all_have_ended(failing: int) -> None:
    ended: list[int] = []

    def run(part: int) -> None:
        if part == failing:
            raise ZeroDivisionError(f"part {part}")
        time.sleep(0.05)
        ended.append(part)

    pool = ThreadPool(2, "pool")
    with pytest.raises(ZeroDivisionError, match=f"part {failing}"):
        pool.map(run, range(3))
    assert sorted(ended) == sorted({0, 1, 2} - {failing})
    assert pool.map(abs, [-1, -2, -3]) == [1, 2, 3]  # and the pool goes on


def test_the_first_of_several_failures_is_raised() -> None:
    def fail(part: int) -> None:
        time.sleep(0.02 * (3 - part))
        raise ValueError(str(part))

    with pytest.raises(ValueError, match=r"^0$"):
        ThreadPool(2, "pool").map(fail, range(3))


def test_callers_get_their_own_answers() -> None:
    pool = ThreadPool(2, "pool")
    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda caller: pool.map(lambda part: (caller, part), range(4)), range(100)))
    assert answers == [[(caller, part) for part in range(4)] for caller in range(100)]


def test_threads_end_with_the_pool() -> None:
    pool = ThreadPool(3, "ending")
    assert len(threads("ending")) == 3
    del pool
    gc.collect()
    assert until(lambda: not threads("ending"))


def test_nothing_of_a_call_is_kept() -> None:
    pool, array = ThreadPool(1, "pool"), np.zeros(1_000)
    parts = [array[:500], array[500:]]
    seen = [weakref.ref(array), *map(weakref.ref, pool.map(lambda part: part + 1, parts))]
    del array, parts
    assert until(lambda: all(each() is None for each in seen))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_has_threads_of_its_own() -> None:
    pool = ThreadPool(2, "pool")
    assert pool.map(abs, [-1, -2, -3]) == [1, 2, 3]
    child = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(pool.map(abs, [-1, -2, -3]) != [1, 2, 3]))
    child.start()
    child.join(20)
    child.kill()
    assert child.exitcode == 0
    assert pool.map(abs, [-4, -5]) == [4, 5]  # and the first one keeps its own


@pytest.mark.parametrize(
    "last_words",
    [
        "atexit.register(lambda: print(pool.map(abs, [-1, -2, -3])))\nfrom edgeport_runtime.thread_pool import ThreadPool\npool = ThreadPool(2, 'pool')",
        "from edgeport_runtime.thread_pool import ThreadPool\npool = ThreadPool(2, 'pool')\natexit.register(lambda: print(pool.map(abs, [-1, -2, -3])))",
        """
from edgeport_runtime.thread_pool import ThreadPool
class Last:
    pool = ThreadPool(2, "pool")
    def __del__(self, print=print): print(self.pool.map(abs, [-1, -2, -3]))
last = Last()
""",
    ],
    ids=["registered before", "registered after", "module is taken down"],
)
def test_a_call_while_python_exits(last_words: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import atexit\n{last_words}"], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "[1, 2, 3]\n"


def test_a_closed_pool_has_no_threads_and_takes_no_calls() -> None:
    pool = ThreadPool(2, "closing")
    assert pool.map(abs, [-1, -2]) == [1, 2] and len(threads("closing")) == 2
    pool.close()
    pool.close()  # once more does no harm
    assert until(lambda: not threads("closing"))
    with pytest.raises(RuntimeError, match="the thread pool was closed"):
        pool.map(abs, [-1, -2])
