"""Beside other programs: how long threads wait for processors, and PyTorch's threads kept from waiting for each other.

PyTorch's threads (libgomp's) wait for one another actively, for milliseconds. Beside a program that keeps all processors busy, each then waits for one
that does not run: an export of 8 s took 297. `GOMP_SPINCOUNT=1000` lets them wait for microseconds instead: 14 s, and a quiet machine sees no difference.
The package sets it when it is imported, but libgomp reads it once, when PyTorch is. If that came first, one thread is left to PyTorch: 12 s.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUSY = 0.2  # of their time that threads wait for a processor: 0.08 on a quiet machine with two, 0.35 and more beside one program that computes
SAMPLE_PRODUCTS, SAMPLE_SIDE = 200, 256  # some 50 ms on two threads


COMES_FIRST = "torch" not in sys.modules  # this package, which then decides how PyTorch's threads wait
if COMES_FIRST and "OMP_WAIT_POLICY" not in os.environ:  # whoever has a policy of his own keeps it
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


@contextmanager
def considerate_threads() -> Iterator[None]:
    """One thread for PyTorch, if its threads wait actively and other programs hold the processors at the beginning; afterwards as many as before."""
    import torch

    before = torch.get_num_threads()
    if before > 1 and not COMES_FIRST and share_waited() > BUSY:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def share_waited() -> float:
    """The share of their time, 0..1, in which this process's threads waited for a processor during a short computation; 0 if the system does not tell."""
    import torch

    side, first = torch.ones(SAMPLE_SIDE, SAMPLE_SIDE), processor_seconds()
    for _ in range(SAMPLE_PRODUCTS):
        side @ side
    ran, waited = (after - before for after, before in zip(processor_seconds(), first, strict=True))
    return waited / (ran + waited) if ran + waited else 0.0


def processor_seconds(tasks: Path = Path("/proc/self/task")) -> tuple[float, float]:
    """Seconds that all threads of this process have run, and waited for a processor that others held. Zeros if the system does not tell."""
    fields = [path.read_text().split() for path in tasks.glob("*/schedstat")]
    ran, waited = (sum(int(each[index]) for each in fields if len(each) == 3) / 1e9 for index in (0, 1))
    return ran, waited
