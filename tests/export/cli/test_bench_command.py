"""`edgeport bench` on a stored bundle."""

from pathlib import Path

import pytest

from edgeport_export.benchmark.runner import LatencyStats
from edgeport_export.cli import bench_command
from edgeport_export.cli.bench_command import BenchJob, Measured, run_bench, show_measured
from edgeport_export.progress import no_progress
from edgeport_runtime import InputError

BUNDLE = Path(__file__).parents[2] / "fixtures" / "format2" / "classifier"


def job(**changes: object) -> BenchJob:
    given = {"bundle": BUNDLE, "against": None, "checkpoint": None, "model": None, "batch": None, "size_px": None, "threads": 1, "rounds": 1}
    return BenchJob(**{**given, **changes})  # type: ignore[arg-type]


def test_each_variant_is_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def measured(engines: object, **options: object) -> dict[str, LatencyStats]:
        asked.update(options, engines=engines)
        return {}

    monkeypatch.setattr(bench_command, "benchmark", measured)
    found = run_bench(job(), no_progress)
    assert (found.name, found.batch) == ("tiny-classifier", 8)  # the largest of the contract, since that is less than 16
    assert list(asked["engines"]) == ["edgeport fp32", "edgeport int8"] and asked["rounds"] == 1  # type: ignore[call-overload]
    assert run_bench(job(batch=3, size_px=(8, 9)), no_progress).batch == 3 and asked["size_px"] == (8, 9)
    with pytest.raises(InputError, match="expected --against torch, or nothing, got 'jax'"):
        run_bench(job(against="jax"), no_progress)


def test_the_table_begins_with_the_fastest(capsys: pytest.CaptureFixture[str]) -> None:
    stats = {name: LatencyStats(median_ms=ms, rounds_ms=(ms,)) for name, ms in (("slow", 4.0), ("fast", 2.0))}
    show_measured(Measured(name="n", batch=2, engines=stats))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [line for line in lines if {"slow", "fast"} & set(line)]
    assert [row[0 if row[0] in stats else 1] for row in rows] == ["fast", "slow"] and "2.00x" in rows[1] and "1.000" in rows[0]
