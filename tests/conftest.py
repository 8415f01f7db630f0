"""Hypothesis without a clock, because a shared machine may be slow at any moment, and with the same examples in every run.

`pytest --hypothesis-profile=new` looks for new ones: one that fails is then found by whoever looks, and not by an unrelated change.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True)
settings.register_profile("new", deadline=None)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CNN that has seen the digits for one epoch."""
    from edgeport_export.cli.train_command import TrainingJob, run_training  # not above: tests/runtime passes without torch
    from edgeport_export.progress import no_progress

    path = tmp_path_factory.mktemp("checkpoints") / "cnn.safetensors"
    run_training(TrainingJob(name="cnn", out=path, changes={"epochs": 1}), no_progress)
    return path


@pytest.fixture(scope="session")
def fix_latencies() -> Callable[[pytest.MonkeyPatch], None]:
    """Speed is measured by `make bench`, not by tests: here int8 takes half as long, every integer product pays, and no process is started."""
    from edgeport_export.benchmark import runner
    from edgeport_export.benchmark.runner import SPLIT_BATCH, EngineSpec, LatencyStats

    stats = {"fp32": LatencyStats(median_ms=2.0, rounds_ms=(2.0,)), "int8": LatencyStats(median_ms=1.0, rounds_ms=(1.0,))}

    measure = runner.benchmark

    def fixed(engines: Mapping[str, EngineSpec], **given: Any) -> dict[str, LatencyStats]:
        variants = {name: name.removesuffix(SPLIT_BATCH) for name in engines}
        return {name: stats[each] for name, each in variants.items()} if set(variants.values()) <= set(stats) else measure(engines, **given)

    def fix(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(runner, "benchmark", fixed)
        patch.setattr(runner, "PairTimer", FixedPairTimer)

    return fix


class FixedPairTimer:
    """A timer for which every product with int8 weights saves a millisecond of 100, and less of what is left after the fiftieth."""

    def __init__(self, **_: object) -> None: ...

    def __enter__(self) -> "FixedPairTimer":
        return self

    def __exit__(self, *_: object) -> None: ...

    def compare(self, first: Path, second: Path, bar: float = 1.0) -> Any:
        from edgeport_export.benchmark.runner import PairTimes

        return PairTimes.of(self._time(first), self._time(second))

    def _time(self, path: Path) -> float:
        import onnx

        weights = [each for each in onnx.load(path).graph.initializer if each.data_type == onnx.TensorProto.INT8 and each.dims]
        return 100.0 - len(weights) if len(weights) < 50 else 2500.0 / len(weights)
