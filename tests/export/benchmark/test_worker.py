import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeport_export.benchmark import runner
from edgeport_export.benchmark.worker import _peak_bytes

STORED = Path(__file__).parents[2] / "fixtures" / "format1" / "classifier"


def answers(request: dict[str, object], *lines: str) -> list[dict[str, float]]:
    """What the worker prints for a request and these lines."""
    asked = {"kind": "onnx", "threads": 1, "split_batch": False, "spinning": True, "batch": 2, "size_px": None, "seconds": 0.0, **request}
    command = [sys.executable, str(runner.WORKER), json.dumps(asked)]
    done = subprocess.run(command, input="\n".join([*lines, ""]), capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_round_is_timed_for_every_line_and_a_request_changes_the_engine() -> None:
    other = {"kind": "onnx", "path": str(STORED / "model.int8.onnx"), "threads": 1, "split_batch": False, "spinning": False, "batch": 1}
    other |= {"size_px": [8, 12], "seconds": 0.0}
    ready, first, again, second = answers({"path": str(STORED / "model.onnx"), "seconds": 0.05}, "go", json.dumps(other), "go")
    assert ready["ready"] and again["ready"] and ready["load_ms"] > 0
    assert first["ms"] > 0 and second["ms"] > 0
    if sys.platform == "linux":
        assert 0 < first["processor_ms"] < 100


def test_threads_that_wait_for_each_other_do_not_count_as_waiting() -> None:
    crowd = 4 * (os.cpu_count() or 1)
    assert answers({"path": str(STORED / "model.onnx"), "threads": crowd, "seconds": 0.05}, "go")[1]["waited"] is None


@pytest.mark.parametrize("text, expected", [("Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t 9 kB\n", 2048 * 1024)])
def test_the_most_memory_is_the_high_water_mark(text: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "status").write_text(text)
    assert _peak_bytes(tmp_path / "status") == expected
    assert _peak_bytes(tmp_path / "none") > 1e6  # from getrusage, elsewhere than on Linux
