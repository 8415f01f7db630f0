"""Timing engines against each other fairly: one process per engine, one awake at a time, turn by turn.

Thread pools of engines in one process steal from each other, and a shared machine drifts: so every round visits every engine,
and what is quoted are medians over rounds, and ratios between engines of one race.
"""

import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from .errors import ExportError

ROUND_SECONDS = 0.25
DATA_PARALLEL = " data-parallel"  # behind the precision in the name of a contender, where each thread runs images of its own
BUSY = 0.2  # of their time that threads wait for a processor: 0.08 on a quiet machine with two, 0.35 and more beside one program that computes
UNSTEADY = 1.3  # upper over lower quartile of one engine's rounds: mostly below 1.1, and 1.4 to 1.7 where a rented machine's slow phase fell into them


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One engine.

    `kind`: "onnx" (`path`: a model file of a bundle) or "torch" (`path`: a checkpoint; `target`: the my.package:factory that
    builds the network, with the contract of `bundle`, where the checkpoint does not say). `mode`: for torch "eager", "channels_last" or "compile".
    `data_parallel`: of a model file, as in SessionOptions.
    """

    kind: str
    path: str
    target: str = ""
    bundle: str = ""
    mode: str = "eager"
    threads: int = 0
    data_parallel: bool = False


@dataclass(frozen=True, kw_only=True)
class Heat:
    """Milliseconds per call of one engine: the median over rounds of each round's median, and every round.

    `load_ms`: from the file to a session. `peak_bytes`: the most memory its process held, Python and inputs included.
    `waited`: share of its threads' time, 0 to 1, in which they waited for processors that other programs held (Linux; elsewhere, and where more
    threads were asked for than there are processors, 0).
    """

    median_ms: float
    rounds_ms: tuple[float, ...]
    load_ms: float = 0.0
    peak_bytes: int = 0
    waited: float = 0.0

    @property
    def quiet_ms(self) -> float:
        """The lower quartile of the rounds, for decisions: on a shared machine others only ever add time, sometimes to half of all rounds."""
        return sorted(self.rounds_ms)[len(self.rounds_ms) // 4]

    @property
    def swing(self) -> float:
        """The upper quartile of the rounds over the lower one."""
        return sorted(self.rounds_ms)[3 * len(self.rounds_ms) // 4] / self.quiet_ms


def race(contenders: Mapping[str, Contender], *, batch: int, size_px: tuple[int, int] | None = None, rounds: int = 5) -> dict[str, Heat]:
    """Time every contender on the same random inputs. Raises ExportError, with its last words, where one does not start."""
    with ExitStack() as stack:
        lanes = {name: _start(stack, contender, batch, size_px) for name, contender in contenders.items()}
        ready = {name: _require_ready(name, lane) for name, lane in lanes.items()}  # all are asleep before the first turn
        turns: dict[str, list[_Turn]] = {name: [] for name in lanes}
        for _ in range(rounds):
            for name, lane in lanes.items():
                turns[name].append(_turn(name, lane))
    return {name: _heat(turns[name], ready[name]) for name in lanes}


def _heat(turns: list["_Turn"], ready: Mapping[str, Any]) -> Heat:
    times = tuple(each.ms for each in turns)
    return Heat(median_ms=statistics.median(times), rounds_ms=times, waited=round(statistics.median(each.waited for each in turns), 3), **ready)


def disturbance(heats: Iterable[Heat]) -> str:
    """That other programs held the processors while this was measured, or that its rounds differ; empty where neither is so by much.

    A rented machine may slow down for seconds on end while nothing on it waits: then rounds differ.
    """
    raced = list(heats)
    waited, swing = max((heat.waited for heat in raced), default=0.0), max((heat.swing for heat in raced), default=1.0)
    if waited > BUSY:
        return f"the machine was busy: threads waited for a processor {waited:.0%} of their time, so measure again when it is quiet"
    return f"the machine was unsteady: some rounds of one engine took {swing:.1f} times as long as others, so measure again" if swing > UNSTEADY else ""


class Stopwatch:
    """Times one model file against another, again and again, in two processes that stay: importing takes longer than most models run.

    Use it as a context. `batch`: of every call.
    """

    def __init__(self, *, batch: int, rounds: int = 3) -> None:
        self.batch = batch
        self.rounds = rounds
        self._stack = ExitStack()
        self._lanes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Stopwatch":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def compare(self, first: Path, second: Path) -> tuple[float, float]:
        """Milliseconds per call of each: the quietest of the rounds in which they take turns. Raises ExportError where one does not start."""
        contenders = [Contender(kind="onnx", path=str(path)) for path in (first, second)]
        if not self._lanes:
            self._lanes = [_start(self._stack, contender, self.batch, None) for contender in contenders]
        else:
            for lane, contender in zip(self._lanes, contenders, strict=True):
                _send(lane, _order(contender, self.batch, None))
        for lane in self._lanes:
            _require_ready("a candidate", lane)
        turns = [[_turn("a candidate", lane) for lane in self._lanes] for _ in range(self.rounds)]
        return min(turn[0].ms for turn in turns), min(turn[1].ms for turn in turns)


def _order(contender: Contender, batch: int, size_px: tuple[int, int] | None) -> str:
    return json.dumps({**asdict(contender), "batch": batch, "size_px": size_px, "seconds": ROUND_SECONDS})


def _start(stack: ExitStack, contender: Contender, batch: int, size_px: tuple[int, int] | None) -> "subprocess.Popen[str]":
    order = _order(contender, batch, size_px)
    command = [sys.executable, str(Path(__file__).with_name("race_worker.py")), order]
    process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    stack.callback(_end, process)
    return process


def _require_ready(name: str, process: "subprocess.Popen[str]") -> dict[str, Any]:
    """What the engine says of itself once it has run. Raises ExportError with its last words."""
    line = _pipe(process.stdout).readline()
    if not line.startswith("{"):
        words = [line for line in _pipe(process.stderr).read().strip().splitlines() if line.strip()]
        said = re.sub(r"^[\w.]+Error: ", "", words[-1]) if words else "its process ended without a word"
        raise ExportError(f"{name} could not be timed: {said}")
    return {key: value for key, value in json.loads(line).items() if key != "ready"}


def _send(process: "subprocess.Popen[str]", line: str) -> None:
    _pipe(process.stdin).write(line + "\n")
    _pipe(process.stdin).flush()


class _Turn(NamedTuple):
    ms: float
    waited: float


def _turn(name: str, process: "subprocess.Popen[str]") -> _Turn:
    _send(process, "go")
    line = _pipe(process.stdout).readline()
    if not line:
        raise ExportError(f"{name} stopped while it was timed; is there enough memory for batch and size?")
    return _Turn(**json.loads(line))


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()


def _pipe(pipe: IO[Any] | None) -> IO[Any]:
    if pipe is None:
        raise RuntimeError("the process was started without this pipe")
    return pipe
