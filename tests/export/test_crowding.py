"""PyTorch's threads are kept from waiting for each other beside other programs; on a quiet machine nothing changes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgeport_export import crowding
from edgeport_export.crowding import considerate_threads, processor_seconds, share_waited


def test_the_kernel_is_asked_how_long_threads_ran_and_waited(tmp_path: Path) -> None:
    for thread, line in (("7", "3000000000 500000000 20\n"), ("8", "1000000000 500000000 20\n")):  # ns that it ran, ns that it waited, turns
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(line)
    assert processor_seconds(tmp_path) == (4.0, 1.0)
    assert processor_seconds(tmp_path / "none") == (0.0, 0.0)


@pytest.mark.parametrize(
    ("comes_first", "waited", "threads"),
    [
        (False, 0.5, 1),  # PyTorch was imported before, with threads that wait actively, and others hold the processors
        (False, 0.1, 2),
        (True, 0.5, 2),  # its threads sleep
    ],
)
def test_one_thread_is_left_to_pytorch_if_nothing_else_helps(comes_first: bool, waited: float, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(crowding, "COMES_FIRST", comes_first)
    monkeypatch.setattr(crowding, "share_waited", lambda: waited)
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), considerate_threads():
            assert torch.get_num_threads() == threads
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_share_is_what_the_kernel_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([(10.0, 5.0), (13.0, 6.0), (1.0, 1.0), (1.0, 1.0)])
    monkeypatch.setattr(crowding, "processor_seconds", lambda: next(told))
    assert share_waited() == 0.25 and share_waited() == 0.0


@pytest.mark.parametrize(
    ("first", "environment", "expected"),
    [
        ("edgeport_export", {}, "1000"),
        ("edgeport_export", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("edgeport_export", {"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
        ("torch", {}, "None"),  # too late to tell it anything
    ],
)
def test_threads_are_told_to_sleep_before_pytorch_is_imported(first: str, environment: dict[str, str], expected: str) -> None:
    code = f"import {first}, edgeport_export, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**clean, **environment})
    assert done.stdout.strip() == expected
