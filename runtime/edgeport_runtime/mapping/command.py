"""`edgeport-run map`: all of a job, by workers on Ray or by this process alone."""

import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgeport_runtime.bundle import Bundle
from edgeport_runtime.errors import BundleError, InputError
from edgeport_runtime.loading import load
from edgeport_runtime.many_files import fingerprint, require_answers, signature
from edgeport_runtime.model import Model
from edgeport_runtime.selection import choose
from edgeport_runtime.tasks import find_task

from .answers import read_rows
from .job import Answering, Job, Part, find_job, held
from .worker import Done, Worker


@dataclass(frozen=True, kw_only=True)
class MapRequest:
    """`options`: of `load`. `ray`: the address of a cluster, "local", or None for this process alone. `workers`: on Ray, None for as many as fit."""

    bundle: Path
    sources: Sequence[str]
    out: Path
    options: Mapping[str, Any]
    top: int = 3
    min_score: float | None = None
    resume: bool = False
    ray: str | None = None
    workers: int | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How many images have a row in `out`, how many of these are errors, and one of them in words."""

    images: int
    errors: int
    first_error: str = ""


def map_images(request: MapRequest, progress: Callable[[int, int], None] = lambda done, total: None) -> Outcome:
    """Answer every image of the sources once, into Parquet files in `out`. `progress`: how many of how many.

    Raises InputError, BundleError or DeviceError; what was answered until then is kept, and `resume` goes on.
    """
    _require(request)
    out = request.out.absolute()
    with held(out), nullcontext() if request.ray is not None else load(request.bundle, **request.options) as here:
        answering = _answering(request, here)
        job = find_job(out, request.sources, answering, resume=request.resume)
        answer = _workers(request, here, answering)
        job.save()
        left = {part.number: part for part in job.left()}
        done, faults = job.images - sum(part.chunk.count for part in left.values()), []
        progress(done, job.images)
        for each in answer(list(left.values())):
            faults += [each.fault] if each.fault else []
            done += each.rows if left.pop(each.number, None) else 0  # a part may be told twice if its worker died at that moment
            progress(done, job.images)
        if faults:
            raise InputError(f"{faults[0]}; what was answered is kept: go on with --resume")
        return _outcome(job)


def _require(request: MapRequest) -> None:
    """Raises BundleError or InputError for what can be told before anything begins."""
    if not request.bundle.is_dir():
        raise BundleError(f"{request.bundle}: expected the folder of a bundle, by whose hash all workers know that they have the same")
    if request.ray is None:
        if request.workers is not None:
            raise InputError("--workers are on Ray: name its address with --ray, or leave them out")
        return
    for option, count in (("workers", request.workers), ("threads", request.options["threads"])):
        if count is not None and count < 1:
            raise InputError(f"--{option}: expected a whole number of at least 1, got {count}")
    if request.options["device"] == "auto":
        raise InputError("workers on Ray are given what they ask for: name the device, cpu or cuda, with --device")
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise InputError(f'--ray needs Ray, which cannot be imported ({error}): pip install "ray[data]"') from error


def _answering(request: MapRequest, here: Model | None) -> Answering:
    """Whose answers these are. The precision is decided once, and not by each worker."""
    bundle = Bundle(request.bundle, request.options["manifest_sha256"])
    contract, task = bundle.manifest.contract, find_task(bundle.manifest.contract.task)
    if not contract.takes_one_image:
        raise InputError("this model takes plain tensors, so there is no image to predict from")
    require_answers(contract, top=request.top, min_score=request.min_score)
    if here is not None:
        model = fingerprint(here)
    else:
        model = signature(bundle, choose(bundle, request.options["device"], request.options["precision"], platform.machine(), request.options["batch"])[0])
    return Answering(model=model, task=task.name, top=request.top, min_score=request.min_score, base=str(Path.cwd()))


def _workers(request: MapRequest, here: Model | None, answering: Answering) -> Callable[[Sequence[Part]], Iterator[Done]]:
    """Who answers parts: this process, or a cluster that could be reached."""
    if here is not None:
        return partial(map, Worker(here, answering).answer)
    from .cluster import Pool, answer_on_ray, connect

    threads = request.options["threads"] or 1
    pool = Pool(address=str(request.ray), workers=request.workers, threads=threads, cuda=request.options["device"] == "cuda")
    options = {**request.options, "threads": threads}
    size = connect(pool)

    def answer(parts: Sequence[Part]) -> Iterator[Done]:
        with redirect_stdout(sys.stderr):  # where Ray prints what became of its processes
            yield from answer_on_ray(pool, size, str(request.bundle.absolute()), options, answering, parts) if parts else ()

    return answer


def _outcome(job: Job) -> Outcome:
    """From the files. Raises InputError if one is missing, or one is there that belongs to no image."""
    rows = [part.rows() for part in job.parts]
    missing = [part for part, found in zip(job.parts, rows, strict=True) if found is None]
    if missing:
        raise InputError(f"{missing[0].place}: these answers are missing, and {len(missing) - 1} more such files; go on with --resume")
    job.tidy()
    if strangers := job.strangers():
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise InputError(f"{strangers[0]}{more}: of no image of this job, but readers would take it for answers; move it away")
    found = [each for each in rows if each is not None]
    wrong = next((part for part, each in zip(job.parts, found, strict=True) if each[1]), None)
    error = next((str(row["error"]) for row in read_rows(wrong.place) if row["error"] is not None), "") if wrong else ""
    return Outcome(images=sum(each[0] for each in found), errors=sum(each[1] for each in found), first_error=error)
