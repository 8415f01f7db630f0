"""`edgeport bench`: a bundle's variants, and PyTorch beside them, timed in turns."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from edgeport_export.benchmark.runner import EngineSpec, LatencyStats, benchmark
from edgeport_export.progress import ProgressCallback
from edgeport_export.sources import source_of_bundle
from edgeport_runtime import Bundle, InputError

from . import console


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchJob:
    """The command's options. `batch`: None is 16, or the largest that the contract allows. `size_px`: (height, width); None is the contract's."""

    bundle: Path
    against: str | None
    checkpoint: Path | None
    model: str | None
    batch: int | None
    size_px: tuple[int, int] | None
    threads: int | None
    rounds: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """`name`: of the bundle. `engines`: what was measured, by engine."""

    name: str
    batch: int
    engines: Mapping[str, LatencyStats]


def run_bench(job: BenchJob, progress: ProgressCallback) -> Measured:
    """One process for each engine, one awake at a time. Raises InputError, and what its parts raise."""
    if job.against not in (None, "torch"):
        raise InputError(f"expected --against torch, or nothing, got {job.against!r}")
    bundle = Bundle(job.bundle)
    batch = min(16, bundle.manifest.contract.largest_batch) if job.batch is None else job.batch
    variants = bundle.manifest.variants
    engines = {f"edgeport {each.precision}": EngineSpec(kind="onnx", path=str(bundle.folder / each.file), threads=job.threads) for each in variants}
    if job.against == "torch":
        source_of_bundle(bundle, job.checkpoint, job.model)  # one sentence now, instead of a process that does not start
        path = None if job.checkpoint is None else str(job.checkpoint)
        torch = EngineSpec(kind="torch", path=path, factory=job.model, bundle=str(job.bundle), threads=job.threads)
        engines |= {f"torch {mode}": dataclasses.replace(torch, mode=mode) for mode in ("eager", "channels_last", "compile")}
    progress(f"{len(engines)} engines", 0, 1)
    return Measured(name=bundle.manifest.name, batch=batch, engines=benchmark(engines, batch=batch, size_px=job.size_px, rounds=job.rounds))


def show_measured(measured: Measured) -> None:
    """As a table, the fastest first."""
    best, batch = min(stats.median_ms for stats in measured.engines.values()), measured.batch
    rows = [
        [name, f"{stats.median_ms:.3f}", f"{stats.median_ms / batch:.3f}", f"{stats.median_ms / best:.2f}x"]
        for name, stats in sorted(measured.engines.items(), key=lambda each: each[1].median_ms)
    ]
    console.table(["engine", f"ms per batch of {batch}", "ms per image", "time over the best"], rows, measured.name)
