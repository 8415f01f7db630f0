"""The engine: arrays in, arrays out, through onnxruntime sessions that share each operator among threads, or the images of a batch."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import Contract, Input, Output
from .device import SessionOptions, onnxruntime, open_session, usable_threads
from .errors import BundleError, DeviceError, InputError, first_line
from .thread_pool import ThreadPool

Arrays = dict[str, NDArray[Any]]


class Engine:
    """Runs one variant. Safe to call from several threads at once; inputs are never written to. Use it as a context, or `close` it.

    With `options.split_batch`, a batch that divides evenly among the threads is cut, and each thread runs its part alone, on one session of one
    thread. No thread waits for the others after each operator, and operators that onnxruntime runs on one thread hold no other up. Other batches
    run on a session that shares each operator, which is opened when the first of them comes.
    """

    def __init__(self, model: bytes, contract: Contract, options: SessionOptions) -> None:
        self.contract = contract
        self.options = options
        self._outputs = [each.name for each in contract.outputs]
        self._threads = options.threads or usable_threads()
        self._model, self._lock = b"", Lock()  # bytes from which a session may still be opened
        self._multi_thread_session: Any = None
        self._single_thread_session: Any = None
        self._pool: ThreadPool | None = None
        self._passed: tuple[Any, ...] = ()  # names, dtypes and shapes of the last call that the contract allowed
        if options.split_batch:
            _require_rows(contract)
        if options.split_batch and self._threads > 1:
            self._model = model
            self._single_thread_session = open_session(model, replace(options, threads=1))
            self._pool = ThreadPool(self._threads - 1, "edgeport")
        else:
            self._multi_thread_session = open_session(model, options)
        self._require_promised(self._single_thread_session or self._multi_thread_session)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the sessions with their threads and memory. A run that comes later raises DeviceError."""
        with self._lock:
            if self._pool is not None:
                self._pool.close()
            self._single_thread_session = self._multi_thread_session = self._pool = None
            self._model = b""

    def _require_promised(self, session: Any) -> None:
        graph = {each.name for each in session.get_inputs()}, {each.name for each in session.get_outputs()}
        promised = {each.name for each in self.contract.inputs}, set(self._outputs)
        if graph[0] != promised[0] or not promised[1] <= graph[1]:
            raise BundleError(
                f"the contract promises {sorted(promised[0])} -> {sorted(promised[1])}, but the graph has {sorted(graph[0])} -> {sorted(graph[1])}"
            )

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """One run at the shapes given. Raises InputError outside the contract, DeviceError if the run itself fails."""
        came = tuple((name, array.dtype, array.shape) for name, array in inputs.items())
        if came != self._passed:  # checking takes 3 % of a small network's call
            self.contract.require_arrays(inputs)
            self._passed = came
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        if self._pool is not None and divides(self.contract, len(next(iter(arrays.values()))), self._threads):
            return self._run_split(arrays)
        return self._run_on(self._shared_session(), arrays)

    def execution_modes(self) -> dict[str, Callable[[Arrays], Arrays]]:
        """Every way in which `run` may execute, by its name, for golden cases of any batch."""
        modes: dict[str, Callable[[Arrays], Arrays]] = {"": self.run}
        if self._pool is not None:
            modes = {"split batch": self._run_on_every_thread, "all threads for each operator": partial(self._run_on, self._shared_session())}
        if has_rows(self.contract) and 1 in self.contract.axes["batch"]:
            modes["image by image"] = self._run_one_by_one
        return modes

    def _run_one_by_one(self, arrays: Arrays) -> Arrays:
        """Each image as a batch of its own."""
        parts = [self.run({name: array[index : index + 1] for name, array in arrays.items()}) for index in range(len(next(iter(arrays.values()))))]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}

    def _run_on_every_thread(self, arrays: Arrays) -> Arrays:
        """All of the batch on each thread; the answer of the last one."""
        outputs = self._run_split({name: np.concatenate([array] * self._threads) for name, array in arrays.items()})
        return {name: np.split(value, self._threads)[-1] for name, value in outputs.items()}

    def _run_split(self, arrays: Arrays) -> Arrays:
        """Each thread, this one included, runs as many images."""
        pool, session = self._pool, self._single_thread_session
        if pool is None:
            raise DeviceError("this engine was closed: load the model again")
        part = len(next(iter(arrays.values()))) // self._threads
        cuts = [{name: array[start : start + part] for name, array in arrays.items()} for start in range(0, part * self._threads, part)]
        done = pool.map(partial(self._run_on, session), cuts)
        return {name: np.concatenate([part[name] for part in done]) for name in self._outputs}

    def _shared_session(self) -> Any:
        """The session that shares each operator among all threads."""
        with self._lock:
            if self._multi_thread_session is None and not self._model:
                raise DeviceError("this engine was closed: load the model again")
            if self._multi_thread_session is None:
                self._multi_thread_session, self._model = open_session(self._model, self.options), b""
            return self._multi_thread_session

    def _run_on(self, session: Any, arrays: Arrays) -> Arrays:
        try:
            values = session.run(self._outputs, arrays)
        except Exception as error:  # onnxruntime's exceptions derive from Exception directly
            shapes = {name: array.shape for name, array in arrays.items()}
            raise DeviceError(f"onnxruntime {onnxruntime().__version__} failed on {self.options.device} at {shapes}: {first_line(error)}") from error
        return dict(zip(self._outputs, values, strict=True))


def divides(contract: Contract, batch: int, threads: int) -> bool:
    """Whether a batch can be cut into one part for each of several threads, all of a size that the contract promises."""
    return threads > 1 and batch % threads == 0 and has_rows(contract) and batch // threads in contract.axes["batch"]


def has_rows(contract: Contract) -> bool:
    """Whether the first axis of all inputs and outputs is the batch: an export has compared images alone and among others there."""
    return all(each.shape[:1] == ("batch",) for each in _ends(contract))


def _ends(contract: Contract) -> tuple[Input | Output, ...]:
    return *contract.inputs, *contract.outputs


def _require_rows(contract: Contract) -> None:
    if not has_rows(contract):
        ends = ", ".join(f"{each.name} ({', '.join(map(str, each.shape))})" for each in _ends(contract))
        raise InputError(f"split_batch cuts along the first axis, which must be the batch of all inputs and outputs, but they are {ends}: leave it out")
