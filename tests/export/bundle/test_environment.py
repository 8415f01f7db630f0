import platform
from pathlib import Path

import numpy
import onnxruntime
import torch

from edgeport_export.bundle.environment import machine, processor, versions
from edgeport_runtime import __version__
from edgeport_runtime.threads import usable_threads


def test_the_processors_name(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast CPU 9000\n")
    assert processor(tmp_path / "cpuinfo") == "Fast CPU 9000"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")  # as on ARM
    assert processor(tmp_path / "cpuinfo") == (platform.processor() or "unknown")
    assert processor(tmp_path / "nothing")


def test_the_versions_are_those_that_run() -> None:
    found = versions()
    assert (found["edgeport"], found["numpy"], found["onnxruntime"]) == (__version__, numpy.__version__, onnxruntime.__version__)
    assert torch.__version__.startswith(found["torch"])  # without its suffix, such as +cu128


def test_the_machine() -> None:
    found = machine()
    assert found["threads"] == usable_threads() and found["python"] == platform.python_version()
    assert found["system"] == f"{platform.system()} {platform.machine()}"
