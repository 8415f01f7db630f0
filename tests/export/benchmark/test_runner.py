import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from edgeport_export import ExportError
from edgeport_export.benchmark import runner
from edgeport_export.benchmark.runner import EngineSpec, LatencyStats, PairTimer, benchmark, disturbance

STORED = Path(__file__).parents[2] / "fixtures" / "format1" / "classifier"
FP32 = EngineSpec(kind="onnx", path=str(STORED / "model.onnx"))


def test_every_engine_runs_in_a_process_of_its_own(checkpoint: Path) -> None:
    measured = benchmark({"onnx": replace(FP32, threads=1)}, batch=2, size_px=(8, 12), rounds=3)["onnx"]
    assert len(measured.rounds_ms) == 3 and 0 < min(measured.rounds_ms) <= measured.median_ms <= max(measured.rounds_ms)
    assert measured.load_ms > 0 and measured.peak_bytes > 20e6  # Python and numpy alone take more
    assert benchmark({"torch": EngineSpec(kind="torch", path=str(checkpoint), mode="channels_last")}, batch=2, rounds=1)["torch"].median_ms > 0


def test_a_batch_is_split_if_asked_for() -> None:
    split = replace(FP32, threads=2, split_batch=True)
    assert benchmark({"split": split}, batch=4, rounds=1)["split"].median_ms > 0
    with pytest.raises(ExportError, match="strange could not be timed: split_batch must be True, False"):  # so the process was told
        benchmark({"strange": replace(split, split_batch="perhaps")}, batch=4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "engine, batch, message",
    [
        (EngineSpec(kind="onnx", path="there.onnx"), 1, r"lost could not be timed: .*there\.onnx: the model cannot be read"),
        (FP32, 99, r"lost could not be timed: cannot run at batch 99"),
    ],
)
def test_an_engine_that_does_not_start_says_why(engine: EngineSpec, batch: int, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        benchmark({"lost": engine}, batch=batch)


def test_one_pair_is_timed_after_another() -> None:
    fp32, int8 = STORED / "model.onnx", STORED / "model.int8.onnx"
    with PairTimer(batch=2, rounds=1) as timer:
        first, second = timer.compare(fp32, int8), timer.compare(int8, fp32)
        assert all(0 < each < 1000 for each in (*first, *second))
        with pytest.raises(ExportError, match=r"a candidate could not be timed: .*gone\.onnx"):
            timer.compare(fp32, STORED / "gone.onnx")


def scripted(folder: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each engine's process print these lines: the first at once, one more for each line that it is sent, and then end."""
    script = folder / "worker.py"
    script.write_text(f"import sys\nlines = {lines!r}\nprint(lines[0], flush=True)\nfor line, _ in zip(lines[1:], sys.stdin):\n    print(line, flush=True)\n")
    monkeypatch.setattr(runner, "WORKER", script)


def answering(folder: Path, opening: str, turn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a process run `opening` and answer each round with the expression `turn`, of its `request`."""
    script = folder / "worker.py"
    script.write_text(
        f"import json, pathlib, sys\n{opening}\n"
        "request = json.loads(sys.argv[1])\n"
        "print('{}', flush=True)\n"
        "for line in sys.stdin:\n"
        "    if line.startswith('{'): request = json.loads(line); print('{}', flush=True); continue\n"
        f"    print(json.dumps({turn}), flush=True)\n"
    )
    monkeypatch.setattr(runner, "WORKER", script)


def times(timer: PairTimer, *files: Path) -> tuple[float, float]:
    return timer.compare(*files)[:2]


def test_a_process_that_runs_everything_slowly_harms_neither_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first_comes = "try:\n    pathlib.Path(__file__).with_name('taken').touch(exist_ok=False); slowness = 3.0\nexcept FileExistsError:\n    slowness = 1.0"
    answering(tmp_path, first_comes, "{'ms': slowness * {'fp32.onnx': 2.0, 'int8.onnx': 1.5}[request['path']], 'waited': None}", monkeypatch)
    with PairTimer(batch=1, rounds=1) as timer:
        assert times(timer, Path("fp32.onnx"), Path("int8.onnx")) == (2.0, 1.5)
        assert times(timer, Path("int8.onnx"), Path("fp32.onnx")) == (1.5, 2.0)
        found = timer.compare(Path("fp32.onnx"), Path("int8.onnx"))
        assert found.low == pytest.approx(0.75) and found.high == pytest.approx(0.75)  # both turns of a pair ran in one process


def test_beside_other_programs_the_time_that_threads_ran_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock on the wall, the second file would win. From the first comparison in which threads waited on, their own time counts, without spinning."""
    known = "waited = {'quiet': 0.1, 'busy': 0.6}; ms = {'first': 2.0, 'second': 1.0}; ran = {'first': 3.0, 'second': 4.0}; spun = {True: 100.0, False: 0.0}"
    place, name = "request['path'].split('.')[0]", "request['path'].split('.')[1]"
    answering(tmp_path, known, f"{{'ms': ms[{name}], 'waited': waited[{place}], 'processor_ms': ran[{name}] + spun[request['spinning']]}}", monkeypatch)
    with PairTimer(batch=1, rounds=1) as timer:
        assert times(timer, Path("quiet.first"), Path("quiet.second")) == (2.0, 1.0) and not timer.crowded
        assert times(timer, Path("busy.first"), Path("busy.second")) == (3.0, 4.0) and timer.crowded
        assert times(timer, Path("quiet.first"), Path("quiet.second")) == (3.0, 4.0)  # one measure for the rest of a search


@pytest.mark.parametrize(
    ("ratios", "low", "high"),
    [
        ([0.5, 0.5, 0.5, 0.5], 0.5, 0.5),
        ([0.9, 1.1], 0.277, 3.57),  # exp(-0.00503 -+ 12.71 * 0.1419 / sqrt 2), by hand
        ([0.90, 0.92, 0.94, 0.96], 0.889, 0.972),  # exp(-0.0728 -+ 3.18 * 0.0278 / 2)
        ([0.7], 0.0, math.exp(99)),  # one pair tells nothing
    ],
)
def test_the_interval_of_a_ratio_is_students(ratios: list[float], low: float, high: float) -> None:
    found = runner._pair_times([(2.0, 2.0 * ratio) for ratio in ratios])
    assert (found.low, found.high) == (pytest.approx(low, rel=0.005), pytest.approx(high, rel=0.005))
    assert found[:2] == (2.0, 2.0 * min(ratios))


@pytest.mark.parametrize(("low", "high", "decides"), [(0.90, 0.97, True), (0.99, 1.20, True), (0.98, 1.0, True), (0.97, 0.99, False), (0.5, 0.98, False)])
def test_a_bar_inside_the_interval_is_not_decided(low: float, high: float, decides: bool) -> None:
    assert runner.PairTimes(1.0, 1.0, low, high).decides(0.98) is decides


@pytest.mark.parametrize(("noise", "turns"), [(0.0, 4), (0.3, 12)])  # two rounds in two processes, three times if that does not decide
def test_what_noise_hides_is_timed_again(noise: float, turns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = f"import itertools; log = open({str(tmp_path / 'log')!r}, 'a'); steps = itertools.cycle((1 - {noise}, 1, 1 + {noise}))"
    answer = "{'ms': {'first': 2.0, 'second': 1.9}[request['path']] * next(steps), 'waited': log.write(request['path'] + ';') and log.flush()}"
    answering(tmp_path, opening, answer, monkeypatch)
    with PairTimer(batch=1) as timer:
        found = timer.compare(Path("first"), Path("second"), bar=0.98)
    asked = (tmp_path / "log").read_text().split(";")
    assert asked.count("first") == asked.count("second") == turns and found.decides(0.98) == (noise == 0)


def test_the_median_of_the_rounds_is_reported_with_the_time_that_threads_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [{"ms": ms, "waited": waited} for ms, waited in ((3.0, 0.5), (9.0, 0.4), (2.0, 0.1))]
    scripted(tmp_path, [json.dumps({"ready": True, "load_ms": 7.5, "peak_bytes": 8}), *map(json.dumps, turns)], monkeypatch)
    measured = benchmark({"onnx": FP32}, batch=1, rounds=3)["onnx"]
    assert measured == LatencyStats(median_ms=3.0, rounds_ms=(3.0, 9.0, 2.0), load_ms=7.5, peak_bytes=8, waited=0.4)
    assert (disturbance([measured]) or "").startswith("the machine was busy: threads waited for a processor 40% of their time")


@pytest.mark.parametrize(
    "lines, message",
    [
        ([json.dumps({"ready": True, "load_ms": 1.0, "peak_bytes": 1})], "onnx stopped while it was timed; is there enough memory"),
        (["Segmentation fault"], "onnx could not be timed: its process ended without a word"),
    ],
)
def test_a_process_that_ends_too_early_is_named(lines: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(tmp_path, lines, monkeypatch)
    with pytest.raises(ExportError, match=message):
        benchmark({"onnx": FP32}, batch=1)


def test_threads_that_wait_for_a_processor_are_told_of() -> None:
    quiet, busy = (LatencyStats(median_ms=1.0, rounds_ms=(1.0,), waited=share) for share in (0.19, 0.41))
    assert disturbance([]) is disturbance([quiet]) is None
    assert (disturbance([quiet, busy]) or "").startswith("the machine was busy: threads waited for a processor 41% of their time")


def test_rounds_that_differ_are_told_of_and_one_outlier_is_not() -> None:
    steady, unsteady = (LatencyStats(median_ms=2.0, rounds_ms=rounds) for rounds in ((2.0, 2.1, 2.0, 9.0, 2.5), (2.0, 3.1, 2.1, 3.4, 2.0)))
    assert (steady.quartile_ratio, unsteady.quartile_ratio) == (pytest.approx(1.25), pytest.approx(1.55))
    assert disturbance([steady]) is None
    assert disturbance([steady, unsteady]) == "the machine was unsteady: some rounds of one engine took 1.6 times as long as others, so measure again"


def test_decisions_take_the_lower_quartile_of_the_rounds() -> None:
    disturbed = LatencyStats(median_ms=6.0, rounds_ms=(3.9, 6.0, 3.7, 6.1, 5.9, 3.8, 7.5, 6.2))
    assert disturbed.lower_quartile_ms == 3.9 and LatencyStats(median_ms=2.0, rounds_ms=(2.0,)).lower_quartile_ms == 2.0
