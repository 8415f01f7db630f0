"""As many threads as affinity and quota allow, and as many runs at once, in the order in which they came."""

import os
import threading
import time
from pathlib import Path

import pytest

from edgeport_runtime import threads
from edgeport_runtime.threads import RunQueue, cgroup_cpus, fork_safe_lock, run_queue, usable_threads


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_cgroup_quota(tmp_path: Path, files: dict[str, str], cpus: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cgroup_cpus(tmp_path, tmp_path / "none") == cpus


@pytest.mark.parametrize(
    ("own", "quotas", "cpus"),
    [
        ("0::/system.slice/app.service\n", {"system.slice/app.service": "50000 100000"}, 0.5),  # systemd's CPUQuota=50%
        ("0::/system.slice/app.service\n", {"system.slice": "200000 100000", "system.slice/app.service": "400000 100000"}, 2.0),  # the least on the way counts
        ("0::/\n", {"": "300000 100000", "other": "100000 100000"}, 3.0),
        ("12:cpu:/x\n", {"": "max 100000"}, None),
        (None, {"": "150000 100000"}, 1.5),
    ],
)
def test_the_quota_of_a_group_of_its_own(own: str | None, quotas: dict[str, str], cpus: float | None, tmp_path: Path) -> None:
    for name, text in quotas.items():
        (tmp_path / "cgroup" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name / "cpu.max").write_text(text)
    if own is not None:
        (tmp_path / "own").write_text(own)
    assert cgroup_cpus(tmp_path / "cgroup", tmp_path / "own") == cpus


@pytest.mark.parametrize(("affinity", "quota", "expected"), [(8, None, 8), (8, 2.5, 2), (2, 4.0, 2), (4, 0.5, 1)])
def test_threads_are_what_affinity_and_quota_allow(monkeypatch: pytest.MonkeyPatch, affinity: int, quota: float | None, expected: int) -> None:
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(affinity)))
    monkeypatch.setattr(threads, "cgroup_cpus", lambda: quota)
    assert usable_threads() == expected


@pytest.mark.parametrize("places", [1, 2, 5])
def test_no_more_runs_at_once_than_places(places: int) -> None:
    queue, running, most, order = RunQueue(places), 0, 0, []
    lock, started = threading.Lock(), []

    def work(number: int) -> None:
        nonlocal running, most
        with queue:
            with lock:
                running += 1
                most = max(most, running)
                order.append(number)
            time.sleep(0.02)
            with lock:
                running -= 1

    for number in range(12):
        started.append(threading.Thread(target=work, args=(number,)))
        started[-1].start()
        time.sleep(0.002)  # so that they come in this order
    for each in started:
        each.join()
    assert most == places and (places > 1 or order == sorted(order))


def test_newcomers_do_not_pass_those_who_wait() -> None:
    """With `threading.Semaphore` the one who leaves and comes back at once is in again: others waited for 3 s."""
    queue, turns = RunQueue(1), dict.fromkeys(("one", "two"), 0)
    both_are_there = threading.Barrier(2)

    def greedy(name: str) -> None:
        both_are_there.wait(30)
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            with queue:
                turns[name] += 1
                time.sleep(0.001)

    both = [threading.Thread(target=greedy, args=(name,)) for name in turns]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert min(turns.values()) >= 0.8 * max(turns.values()) - 2


def test_a_place_is_free_again_after_an_error() -> None:
    queue = RunQueue(1)
    for _ in range(3):
        with pytest.raises(KeyError), queue:
            raise KeyError
    with queue:
        pass


def test_a_held_queue_waits_for_what_runs_and_admits_nobody() -> None:
    queue, events = RunQueue(2), list[str]()
    inside, leave = threading.Event(), threading.Event()

    def run(name: str, wait: threading.Event) -> None:
        with queue:
            inside.set()
            wait.wait(30)
            events.append(name)

    first = threading.Thread(target=run, args=("first", leave))
    first.start()
    assert inside.wait(30)
    holder = threading.Thread(target=lambda: (queue.hold(), events.append("held")))
    holder.start()
    time.sleep(0.01)
    second = threading.Thread(target=run, args=("second", leave))
    second.start()
    time.sleep(0.01)
    leave.set()
    first.join()
    holder.join()
    time.sleep(0.01)
    assert events == ["first", "held"]
    queue.go_on()
    second.join()
    assert events == ["first", "held", "second"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking with threads
def test_a_lock_is_free_in_a_child_whoever_held_it() -> None:
    lock = fork_safe_lock()
    with lock:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if lock.acquire(timeout=5) else 1)
        assert os.waitpid(pid, 0)[1] == 0 and lock.locked()


def test_one_queue_for_each_device_of_the_process() -> None:
    assert run_queue("cpu") is run_queue("cpu") and run_queue("cuda") is not run_queue("cpu")
