"""Workers on Ray: Ray Data deals the chunks out, begins dead workers again, and gives what they lost to others.

Ray Data is given the numbers of chunks and returns what became of them; the rows themselves go from a worker to their file. So nothing depends on
what Ray keeps. No task reads for the workers, which may then have all processors (ray-project/ray#44687). No block is dropped because of one image
(`max_errored_blocks`). What is left to do after a crash is told by the files.
"""

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError

from edgeport_runtime.errors import DeviceError, EdgeportError, first_line
from edgeport_runtime.loading import load
from edgeport_runtime.threads import usable_threads

from .job import Answering, Part
from .sources import Chunk
from .worker import Done, Worker

LOCAL, AUTO = "local", "auto"  # "auto": what Ray's own settings say
ADDRESSES = "expected HOST:PORT of a cluster, auto for the one that Ray's settings name, or local"
ANSWERS_S = 10  # in which a cluster must answer
MOST_CHUNKS = 16  # of a task: what Ray takes for a task is then small beside its work
TASKS = 8  # for each worker, if there are chunks enough: the last ones to work do not keep the others waiting for long


@dataclass(frozen=True, kw_only=True)
class Pool:
    """`address`: of a Ray cluster, or "local" for one that begins and ends with this process. `workers`: None for as many as fit."""

    address: str
    workers: int | None
    threads: int
    cuda: bool


class RayWorker:
    """A Worker in a process of Ray's. It begins at its first part, so that what is wrong with it is told as an answer."""

    def __init__(self, bundle: str, options: Mapping[str, Any], folder: Path, answering: Answering) -> None:
        self._bundle, self._options, self._folder, self._answering = bundle, options, folder, answering
        self._worker: Worker | None = None
        self._fault = ""

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Answer the chunks of these numbers; see Done for what is returned."""
        done = [self._answer(int(number), str(chunk)) for number, chunk in zip(batch["number"], batch["chunk"], strict=True)]
        return {name: [asdict(each)[name] for each in done] for name in ("number", "rows", "errors", "fault")}

    def _answer(self, number: int, chunk: str) -> Done:
        """After a fault nothing is tried any more: a job ends when all parts are told, and not in the middle of Ray's own work."""
        try:
            if self._worker is None and not self._fault:
                os.chdir(self._answering.base)  # where paths of images begin, in this process alone
                self._worker = Worker(load(self._bundle, **self._options), self._answering)
            if self._worker is not None and not self._fault:
                return self._worker.answer(Part(folder=self._folder, number=number, chunk=Chunk.from_json(chunk)))
        except EdgeportError as error:
            self._fault = str(error)
        except OSError as error:
            self._fault = f"{error.filename}: a worker cannot use this ({first_line(error)}); all nodes must see the same files"
        return Done(number=number, fault=self._fault)


def connect(pool: Pool) -> int:
    """Reach the cluster, or begin one here. Returns how many workers can begin at once. Raises InputError or DeviceError."""
    _require_reachable(pool.address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    local = {"num_cpus": usable_threads(), "include_dashboard": False} if pool.address == LOCAL else {}
    try:
        ray.init(address=pool.address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, RayError, RuntimeError, ValueError, OSError) as error:
        raise DeviceError(f"Ray at {pool.address}: it cannot be reached ({first_line(error)}); {ADDRESSES}") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    fitting = _fitting(pool)
    return fitting if pool.workers is None else min(pool.workers, fitting)


def answer_on_ray(pool: Pool, size: int, bundle: str, options: Mapping[str, Any], answering: Answering, parts: Sequence[Part]) -> Iterator[Done]:
    """What became of each part, in the order in which they end. `size`: workers to begin with; see `connect`. Raises DeviceError if the work ends."""
    first = min(size, len(parts))
    most = min(pool.workers or size, len(parts))
    tasks = max(-(-len(parts) // MOST_CHUNKS), min(len(parts), TASKS * size))
    chunks = ray.data.from_items([{"number": part.number, "chunk": part.chunk.to_json()} for part in parts], override_num_blocks=tasks)
    wanted: dict[str, Any] = {"num_cpus": pool.threads, **({"num_gpus": 1} if pool.cuda else {})}
    actors = ray.data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=first)
    done = chunks.map_batches(RayWorker, fn_constructor_args=(bundle, options, parts[0].folder, answering), batch_size=1, compute=actors, **wanted)
    try:
        for each in done.iter_rows():
            yield Done(**each)
    except RayError as error:
        raise DeviceError(f"Ray at {pool.address}: the work ended ({first_line(error)}); go on with --resume") from error
    ray.shutdown()  # of what ended otherwise Ray takes care when the process ends: its own threads still run


def _require_reachable(address: str) -> None:
    """Ray itself would try for minutes. Raises DeviceError."""
    if address in (LOCAL, AUTO):
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWERS_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise DeviceError(f"Ray at {address}: it cannot be reached ({first_line(error)}); {ADDRESSES}") from error


def _fitting(pool: Pool) -> int:
    """How many workers fit into the cluster as it is. Raises DeviceError if none does."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    places = [min(int(each.get("CPU", 0) // pool.threads), int(each.get("GPU", 0)) if pool.cuda else int(each.get("CPU", 0))) for each in nodes]
    if not sum(places):
        largest = max((int(each.get("CPU", 0)) for each in nodes), default=0)
        wanted = f"{pool.threads} processors{' and a card' if pool.cuda else ''}"
        raise DeviceError(f"Ray at {pool.address}: a worker needs {wanted} on one node, and no node has that (the largest has {largest} processors)")
    return sum(places)
