"""Fixtures for the device side: the stored bundles, copied where a test alters them. Nothing here needs torch or onnx."""

import multiprocessing.util
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

STORED = Path(__file__).parents[1] / "fixtures" / "format1"


@pytest.fixture(scope="session")
def classifier() -> Path:
    return STORED / "classifier"


@pytest.fixture(scope="session")
def generator() -> Path:
    return STORED / "generator"


@pytest.fixture
def on_x86(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored bundles were made for x86; wherever these tests run, their int8 is what such a machine takes."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


@pytest.fixture
def altered(classifier: Path, tmp_path: Path) -> Path:
    """A copy of the classifier's bundle that a test may change."""
    return Path(shutil.copytree(classifier, tmp_path / "bundle"))


@pytest.fixture(autouse=True)
def without_child_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make aarch64`: qemu-user emulates one program (its fork fails with threads), and what that starts would run on this machine."""
    if "EDGEPORT_EMULATED" in os.environ:

        def left_out(*_: Any, **__: Any) -> None:
            pytest.skip("starts another process, which the emulator cannot")

        monkeypatch.setattr(os, "fork", left_out)
        monkeypatch.setattr(subprocess, "Popen", left_out)
        monkeypatch.setattr(multiprocessing.util, "spawnv_passfds", left_out)
