"""A crew's threads: every part once, in order, whoever calls; what fails is told; nothing stays behind."""

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

from edgeport_runtime.crew import Crew


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

    assert Crew(size, "crew").map(slowest_first, range(parts)) == [part * part for part in range(parts)]


def test_the_caller_runs_the_first_part_while_the_crew_runs_the_others() -> None:
    meeting = threading.Barrier(3, timeout=10)  # broken, and the call with it, unless all three are under way at once

    def met(part: int) -> tuple[int, str]:
        meeting.wait()
        return part, threading.current_thread().name

    ran = Crew(2, "met").map(met, [10, 11, 12])
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

    crew = Crew(2, "crew")
    with pytest.raises(ZeroDivisionError, match=f"part {failing}"):
        crew.map(run, range(3))
    assert sorted(ended) == sorted({0, 1, 2} - {failing})
    assert crew.map(abs, [-1, -2, -3]) == [1, 2, 3]  # and the crew goes on


def test_the_first_of_several_failures_is_told() -> None:
    def fail(part: int) -> None:
        time.sleep(0.02 * (3 - part))
        raise ValueError(str(part))

    with pytest.raises(ValueError, match=r"^0$"):
        Crew(2, "crew").map(fail, range(3))


def test_callers_get_their_own_answers() -> None:
    crew = Crew(2, "crew")
    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda caller: crew.map(lambda part: (caller, part), range(4)), range(100)))
    assert answers == [[(caller, part) for part in range(4)] for caller in range(100)]


def test_threads_end_with_the_crew() -> None:
    crew = Crew(3, "ending")
    assert len(threads("ending")) == 3
    del crew
    gc.collect()
    assert until(lambda: not threads("ending"))


def test_nothing_of_a_call_is_kept() -> None:
    crew, array = Crew(1, "crew"), np.zeros(1_000)
    parts = [array[:500], array[500:]]
    seen = [weakref.ref(array), *map(weakref.ref, crew.map(lambda part: part + 1, parts))]
    del array, parts
    assert until(lambda: all(each() is None for each in seen))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_has_threads_of_its_own() -> None:
    crew = Crew(2, "crew")
    assert crew.map(abs, [-1, -2, -3]) == [1, 2, 3]
    child = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(crew.map(abs, [-1, -2, -3]) != [1, 2, 3]))
    child.start()
    child.join(20)
    child.kill()
    assert child.exitcode == 0
    assert crew.map(abs, [-4, -5]) == [4, 5]  # and the first one keeps its own


@pytest.mark.parametrize(
    "last_words",
    [
        "atexit.register(lambda: print(crew.map(abs, [-1, -2, -3])))\nfrom edgeport_runtime.crew import Crew\ncrew = Crew(2, 'crew')",
        "from edgeport_runtime.crew import Crew\ncrew = Crew(2, 'crew')\natexit.register(lambda: print(crew.map(abs, [-1, -2, -3])))",
        """
from edgeport_runtime.crew import Crew
class Last:
    crew = Crew(2, "crew")
    def __del__(self, print=print): print(self.crew.map(abs, [-1, -2, -3]))
last = Last()
""",
    ],
    ids=["registered before", "registered after", "module is taken down"],
)
def test_a_call_while_python_exits(last_words: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import atexit\n{last_words}"], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "[1, 2, 3]\n"
