"""Timing engines against each other fairly: one process for each engine, one awake at a time, in turns.

Thread pools of engines in one process steal from each other, and a shared machine drifts. So every round visits every engine; reports quote
medians over rounds, and ratios between engines of one benchmark.
"""

import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from edgeport_export.crowding import BUSY
from edgeport_export.errors import ExportError

WORKER = Path(__file__).with_name("worker.py")
ROUND_SECONDS = 0.25
SPLIT_BATCH = " split batch"  # appended to the precision in the name of an engine in which each thread runs images of its own
MOST_REPEATS = 3  # of a comparison that does not decide
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23, 11: 2.20}  # degrees of freedom -> 95 %
UNSTEADY = 1.3  # upper over lower quartile of one engine's rounds: mostly below 1.1, and 1.4 to 1.7 if a rented machine's slow phase fell into them


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """One engine.

    `kind`: "onnx" (`path`: a model file of a bundle) or "torch" (`path`: a checkpoint; `factory`: the my.package:factory that
    builds the network, with the contract of `bundle`, if the checkpoint does not name it). `mode`: for torch "eager", "channels_last" or "compile".
    `split_batch`, `spinning`: of a model file, as in SessionOptions. `threads`: None takes as many as this machine allows.
    """

    kind: str
    path: str | None
    factory: str | None = None
    bundle: str | None = None
    mode: str = "eager"
    threads: int | None = None
    split_batch: bool = False
    spinning: bool = False


@dataclass(frozen=True, kw_only=True)
class LatencyStats:
    """Milliseconds per call of one engine: the median over rounds of each round's median, and every round.

    `load_ms`: from the file to a session. `peak_bytes`: the most memory its process held, Python and inputs included.
    `waited`: share of its threads' time, 0..1, in which they waited for processors that other programs held (Linux; elsewhere, and if more
    threads were asked for than there are processors, None). None is what was not measured.
    """

    median_ms: float
    rounds_ms: tuple[float, ...]
    load_ms: float | None = None
    peak_bytes: int | None = None
    waited: float | None = None

    @property
    def lower_quartile_ms(self) -> float:
        """Of the rounds, for decisions: on a shared machine others only ever add time, sometimes to half of all rounds."""
        return sorted(self.rounds_ms)[len(self.rounds_ms) // 4]

    @property
    def quartile_ratio(self) -> float:
        """The upper quartile of the rounds over the lower one."""
        return sorted(self.rounds_ms)[3 * len(self.rounds_ms) // 4] / self.lower_quartile_ms


def benchmark(engines: Mapping[str, EngineSpec], *, batch: int, size_px: tuple[int, int] | None = None, rounds: int = 5) -> dict[str, LatencyStats]:
    """Time every engine on the same random inputs. Raises ExportError with an engine's last words if it does not start."""
    with ExitStack() as stack:
        processes = {name: _start(stack, engine, batch, size_px) for name, engine in engines.items()}
        ready = {name: _require_ready(name, process) for name, process in processes.items()}  # all are asleep before the first turn
        turns: dict[str, list[_Turn]] = {name: [] for name in processes}
        for _ in range(rounds):
            for name, process in processes.items():
                turns[name].append(_turn(name, process))
    return {name: _stats(turns[name], ready[name]) for name in processes}


def _stats(turns: list["_Turn"], ready: Mapping[str, Any]) -> LatencyStats:
    times = tuple(each.ms for each in turns)
    waited = [each.waited for each in turns if each.waited is not None]
    return LatencyStats(median_ms=statistics.median(times), rounds_ms=times, waited=round(statistics.median(waited), 3) if waited else None, **ready)


def disturbance(measured: Iterable[LatencyStats]) -> str | None:
    """A sentence if other programs held the processors, or if rounds differ; None if neither is so by much.

    A rented machine may slow down for seconds on end while nothing on it waits: then rounds differ.
    """
    stats = list(measured)
    waited, ratio = max((each.waited or 0.0 for each in stats), default=0.0), max((each.quartile_ratio for each in stats), default=1.0)
    if waited > BUSY:
        return f"the machine was busy: threads waited for a processor {waited:.0%} of their time, so measure again when it is quiet"
    return f"the machine was unsteady: some rounds of one engine took {ratio:.1f} times as long as others, so measure again" if ratio > UNSTEADY else None


class PairTimes(NamedTuple):
    """Milliseconds per call of two files, the shortest of their turns. `low`, `high`: the 95 % interval of the second's time over the first's."""

    first_ms: float
    second_ms: float
    low: float
    high: float

    @classmethod
    def of(cls, first_ms: float, second_ms: float) -> "PairTimes":
        """Times that are known."""
        return cls(first_ms, second_ms, second_ms / first_ms, second_ms / first_ms)

    def decides(self, bar: float) -> bool:
        """Whether the second surely takes less than `bar` times as long as the first, or surely does not."""
        return self.high < bar or self.low >= bar


def _pair_times(turns: Sequence[tuple[float, float]]) -> PairTimes:
    """Of pairs of turns. A pair was timed in one process, so what makes that process slow is in both, and not in their ratio."""
    logarithms = [math.log(second / first) for first, second in turns]
    middle, sure = statistics.fmean(logarithms), float("inf")
    if len(turns) > 1:
        sure = STUDENT[min(len(turns) - 1, max(STUDENT))] * statistics.stdev(logarithms) / math.sqrt(len(turns))
    return PairTimes(min(first for first, _ in turns), min(second for _, second in turns), math.exp(middle - sure), math.exp(min(middle + sure, 99.0)))


class PairTimer:
    """Times one model file against another, again and again, in two processes that stay: importing takes longer than most models run.

    Each file runs in both processes, and its shortest time counts. A process may run everything slowly for all its life: one in three took
    0.25 ms for what took the others 0.16. A search whose challengers all ran in such a one found no product that pays.

    Once threads wait for processors that other programs hold, the clock on the wall tells more of those than of the files. From then on the time that
    the threads themselves ran is compared, without spinning, which would count as work.

    A difference that is small beside the noise is timed again, so that chance decides as little as can be.

    Use it as a context. `batch`: of every call. `rounds`: in which the two take turns, before and after they change places.
    """

    def __init__(self, *, batch: int, rounds: int = 2) -> None:
        self.batch = batch
        self.rounds = rounds
        self.crowded = False  # whether other programs were found to hold processors
        self._stack = ExitStack()
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "PairTimer":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def compare(self, first: Path, second: Path, bar: float = 1.0) -> PairTimes:
        """Both, until it is decided whether the second takes less than `bar` times as long as the first, or MOST_REPEATS did not decide it.

        Raises ExportError if one does not start.
        """
        turns: list[_PairOfTurns] = []
        while True:
            turns += self._in_both(first, second)
            if not self.crowded and statistics.median(each.waited or 0.0 for pair in turns for each in pair) > BUSY:
                self.crowded = True
                turns = self._in_both(first, second)
            found = _pair_times([(ours.processor_ms, theirs.processor_ms) if self.crowded else (ours.ms, theirs.ms) for ours, theirs in turns])
            if found.decides(bar) or len(turns) >= MOST_REPEATS * 2 * self.rounds:
                return found

    def _in_both(self, first: Path, second: Path) -> "list[_PairOfTurns]":
        """Turns of both files, each pair in one process."""
        here, there = (self._turns(*pair) for pair in ((first, second), (second, first)))
        return [*zip(here[0], there[0], strict=True), *zip(there[1], here[1], strict=True)]

    def _turns(self, *files: Path) -> "tuple[list[_Turn], list[_Turn]]":
        """The turns of one file in each process."""
        engines = [EngineSpec(kind="onnx", path=str(path), spinning=not self.crowded) for path in files]
        if not self._processes:
            self._processes = [_start(self._stack, engine, self.batch, None) for engine in engines]
        else:
            for process, engine in zip(self._processes, engines, strict=True):
                _send(process, _request(engine, self.batch, None))
        for process in self._processes:
            _require_ready("a candidate", process)
        turns = [[_turn("a candidate", process) for process in self._processes] for _ in range(self.rounds)]
        return [turn[0] for turn in turns], [turn[1] for turn in turns]


def _request(engine: EngineSpec, batch: int, size_px: tuple[int, int] | None) -> str:
    return json.dumps({**asdict(engine), "batch": batch, "size_px": size_px, "seconds": ROUND_SECONDS})


def _start(stack: ExitStack, engine: EngineSpec, batch: int, size_px: tuple[int, int] | None) -> "subprocess.Popen[str]":
    command = [sys.executable, str(WORKER), _request(engine, batch, size_px)]
    process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    stack.callback(process.kill)
    return process


def _require_ready(name: str, process: "subprocess.Popen[str]") -> dict[str, Any]:
    """What the engine reports of itself once it has run. Raises ExportError with its last words."""
    line = _pipe(process.stdout).readline()
    if not line.startswith("{"):
        words = [line for line in _pipe(process.stderr).read().strip().splitlines() if line.strip()]
        last = re.sub(r"^[\w.]+Error: ", "", words[-1]) if words else "its process ended without a word"
        raise ExportError(f"{name} could not be timed: {last}")
    return {key: value for key, value in json.loads(line).items() if key != "ready"}


def _send(process: "subprocess.Popen[str]", line: str) -> None:
    stdin = _pipe(process.stdin)
    try:
        stdin.write(line + "\n")
        stdin.flush()
    except BrokenPipeError:  # the process has ended, and whoever waits for its answer finds none
        with suppress(BrokenPipeError):
            stdin.close()


class _Turn(NamedTuple):
    ms: float
    waited: float | None
    processor_ms: float = 0.0


_PairOfTurns = tuple[_Turn, _Turn]


def _turn(name: str, process: "subprocess.Popen[str]") -> _Turn:
    _send(process, "go")
    line = _pipe(process.stdout).readline()
    if not line:
        raise ExportError(f"{name} stopped while it was timed; is there enough memory for batch and size?")
    return _Turn(**json.loads(line))


def _pipe(pipe: IO[Any] | None) -> IO[Any]:
    if pipe is None:
        raise RuntimeError("the process was started without this pipe")
    return pipe
