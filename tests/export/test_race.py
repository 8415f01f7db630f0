import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgeport_export import ExportError
from edgeport_export.race import Contender, Heat, disturbance, race
from edgeport_export.race_worker import processor_seconds
from edgeport_runtime.device import usable_threads

STORED = Path(__file__).parents[1] / "fixtures" / "format1" / "classifier"


def test_every_engine_runs_in_a_process_of_its_own(checkpoint: Path) -> None:
    lanes = {"onnx": Contender(kind="onnx", path=str(STORED / "model.onnx"), threads=1)}
    heats = race(lanes, batch=2, size_px=(8, 12), rounds=3)
    assert len(heats["onnx"].rounds_ms) == 3 and 0 < min(heats["onnx"].rounds_ms) <= heats["onnx"].median_ms <= max(heats["onnx"].rounds_ms)
    apart = Contender(kind="onnx", path=str(STORED / "model.onnx"), threads=2, data_parallel=True)
    assert race({"apart": apart}, batch=4, rounds=1)["apart"].median_ms > 0
    with pytest.raises(ExportError, match="strange could not be timed: data_parallel must be True, False"):  # so the process was told
        race({"strange": replace(apart, data_parallel="perhaps")}, batch=4)  # type: ignore[arg-type]
    heats = race({"torch": Contender(kind="torch", path=str(checkpoint), mode="channels_last")}, batch=2, rounds=1)
    assert heats["torch"].median_ms > 0


def test_an_engine_that_does_not_start_says_why() -> None:
    with pytest.raises(ExportError, match=r"lost could not be timed: .*there\.onnx: the model cannot be read"):
        race({"lost": Contender(kind="onnx", path="there.onnx")}, batch=1)
    with pytest.raises(ExportError, match=r"big could not be timed: cannot run at batch 99"):
        race({"big": Contender(kind="onnx", path=str(STORED / "model.onnx"))}, batch=99)


def test_a_stopwatch_times_one_pair_after_another() -> None:
    from edgeport_export.race import Stopwatch

    fp32, int8 = STORED / "model.onnx", STORED / "model.int8.onnx"
    with Stopwatch(batch=2, rounds=1) as clock:
        first, second = clock.compare(fp32, int8), clock.compare(int8, fp32)
        assert all(0 < each < 1000 for each in (*first, *second))
        with pytest.raises(ExportError, match=r"a candidate could not be timed: .*gone\.onnx"):
            clock.compare(fp32, STORED / "gone.onnx")


def test_threads_that_wait_for_a_processor_are_told_of(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "8").mkdir()
    (tmp_path / "7" / "schedstat").write_text("3000000000 500000000 20\n")  # ns that it ran, ns that it waited, turns
    (tmp_path / "8" / "schedstat").write_text("1000000000 500000000 20\n")
    assert processor_seconds(tmp_path) == (4.0, 1.0)
    assert processor_seconds(tmp_path / "none") == (0.0, 0.0)
    quiet, busy = (Heat(median_ms=1.0, rounds_ms=(1.0,), waited=share) for share in (0.19, 0.41))
    assert disturbance([]) == disturbance([quiet]) == ""
    assert disturbance([quiet, busy]).startswith("the machine was busy: threads waited for a processor 41% of their time")


def test_rounds_that_differ_are_told_of_and_one_outlier_is_not() -> None:
    steady, unsteady = (Heat(median_ms=2.0, rounds_ms=rounds) for rounds in ((2.0, 2.1, 2.0, 9.0, 2.5), (2.0, 3.1, 2.1, 3.4, 2.0)))
    assert (steady.swing, unsteady.swing) == (pytest.approx(1.25), pytest.approx(1.55))
    assert disturbance([steady]) == ""
    assert disturbance([steady, unsteady]) == "the machine was unsteady: some rounds of one engine took 1.6 times as long as others, so measure again"


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="only Linux tells how long threads wait")
def test_a_race_beside_programs_that_compute_is_told_of() -> None:
    lane = {"onnx": Contender(kind="onnx", path=str(STORED / "model.onnx"))}
    crowd = {"onnx": Contender(kind="onnx", path=str(STORED / "model.onnx"), threads=2 * usable_threads())}
    assert not disturbance(race(crowd, batch=2, rounds=1).values())  # they wait for one another
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * usable_threads())]
    try:
        assert disturbance(race(lane, batch=2, rounds=3).values())
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_the_quiet_time_is_the_lower_quartile_of_the_rounds() -> None:
    disturbed = Heat(median_ms=6.0, rounds_ms=(3.9, 6.0, 3.7, 6.1, 5.9, 3.8, 7.5, 6.2))
    assert disturbed.quiet_ms == 3.9 and Heat(median_ms=2.0, rounds_ms=(2.0,)).quiet_ms == 2.0
