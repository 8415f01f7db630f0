from pathlib import Path

import pytest

from edgeport_export import ExportError
from edgeport_export.race import Contender, Heat, race

STORED = Path(__file__).parents[1] / "fixtures" / "format1" / "classifier"


def test_every_engine_runs_in_a_process_of_its_own(checkpoint: Path) -> None:
    lanes = {"onnx": Contender(kind="onnx", path=str(STORED / "model.onnx"), threads=1)}
    heats = race(lanes, batch=2, size_px=(8, 12), rounds=3)
    assert len(heats["onnx"].rounds_ms) == 3 and 0 < min(heats["onnx"].rounds_ms) <= heats["onnx"].median_ms <= max(heats["onnx"].rounds_ms)
    heats = race({"torch": Contender(kind="torch", path=str(checkpoint), mode="channels_last")}, batch=2, rounds=1)
    assert heats["torch"].median_ms > 0


def test_an_engine_that_does_not_start_says_why() -> None:
    with pytest.raises(ExportError, match=r"lost could not be timed: .*there\.onnx: the model cannot be read"):
        race({"lost": Contender(kind="onnx", path="there.onnx")}, batch=1)
    with pytest.raises(ExportError, match=r"cannot run at batch 99"):
        race({"big": Contender(kind="onnx", path=str(STORED / "model.onnx"))}, batch=99)


def test_a_stopwatch_times_one_pair_after_another() -> None:
    from edgeport_export.race import Stopwatch

    fp32, int8 = STORED / "model.onnx", STORED / "model.int8.onnx"
    with Stopwatch(batch=2, rounds=1) as clock:
        first, second = clock.compare(fp32, int8), clock.compare(int8, fp32)
        assert all(0 < each < 1000 for each in (*first, *second))
        with pytest.raises(ExportError, match=r"a candidate could not be timed: .*gone\.onnx"):
            clock.compare(fp32, STORED / "gone.onnx")


def test_the_quiet_time_is_the_lower_quartile_of_the_rounds() -> None:
    disturbed = Heat(median_ms=6.0, rounds_ms=(3.9, 6.0, 3.7, 6.1, 5.9, 3.8, 7.5, 6.2))
    assert disturbed.quiet_ms == 3.9 and Heat(median_ms=2.0, rounds_ms=(2.0,)).quiet_ms == 2.0
