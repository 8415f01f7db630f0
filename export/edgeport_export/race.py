"""Timing engines against each other fairly: one process per engine, one awake at a time, turn by turn.

Thread pools of engines in one process steal from each other, and a shared machine drifts: so every round visits every engine,
and what is quoted are medians over rounds, and ratios between engines of one race.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from .errors import ExportError

ROUND_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One engine.

    `kind`: "onnx" (`path`: a model file of a bundle) or "torch" (`path`: a checkpoint; `target`: the my.package:factory that
    builds the network, with the contract of `bundle`, where the checkpoint does not say). `mode`: for torch "eager", "channels_last" or "compile".
    """

    kind: str
    path: str
    target: str = ""
    bundle: str = ""
    mode: str = "eager"
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class Heat:
    """Milliseconds per call of one engine: the median over rounds of each round's median, and every round."""

    median_ms: float
    rounds_ms: tuple[float, ...]


def race(contenders: Mapping[str, Contender], *, batch: int, size_px: tuple[int, int] | None = None, rounds: int = 5) -> dict[str, Heat]:
    """Time every contender on the same random inputs. Raises ExportError, with its last words, where one does not start."""
    with ExitStack() as stack:
        lanes = {name: _start(stack, contender, batch, size_px) for name, contender in contenders.items()}
        for name, lane in lanes.items():  # they import and load side by side, and are asleep before the first turn
            _require_ready(name, lane)
        spent: dict[str, list[float]] = {name: [] for name in lanes}
        for _ in range(rounds):
            for name, lane in lanes.items():
                spent[name].append(_turn(name, lane))
    return {name: Heat(median_ms=statistics.median(times), rounds_ms=tuple(times)) for name, times in spent.items()}


def _start(stack: ExitStack, contender: Contender, batch: int, size_px: tuple[int, int] | None) -> "subprocess.Popen[str]":
    order = json.dumps({**asdict(contender), "batch": batch, "size_px": size_px, "seconds": ROUND_SECONDS})
    command = [sys.executable, str(Path(__file__).with_name("race_worker.py")), order]
    process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    stack.callback(_end, process)
    return process


def _require_ready(name: str, process: "subprocess.Popen[str]") -> None:
    if _pipe(process.stdout).readline().strip() != "ready":
        words = [line for line in _pipe(process.stderr).read().strip().splitlines() if line.strip()]
        raise ExportError(f"{name} could not be timed: {words[-1] if words else 'its process ended without a word'}")


def _turn(name: str, process: "subprocess.Popen[str]") -> float:
    _pipe(process.stdin).write("go\n")
    _pipe(process.stdin).flush()
    line = _pipe(process.stdout).readline()
    if not line:
        raise ExportError(f"{name} stopped while it was timed; is there enough memory for batch and size?")
    return float(line)


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()


def _pipe(pipe: IO[Any] | None) -> IO[Any]:
    if pipe is None:
        raise RuntimeError("the process was started without this pipe")
    return pipe
