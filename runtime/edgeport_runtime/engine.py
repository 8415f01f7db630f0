"""The engine: arrays in, arrays out, through onnxruntime sessions that share each operator among threads, or the images of a batch."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import device
from .contract import Contract, Input, Output
from .device import SessionOptions, open_session, placement
from .errors import BundleError, DeviceError, InputError, first_line
from .installation import onnxruntime
from .memory import SpikeWatch
from .thread_pool import ClosedPoolError, ThreadPool
from .threads import fork_safe_lock, run_queue, usable_threads

Arrays = dict[str, NDArray[Any]]
CLOSED = "this engine was closed: load the model again"
OpenSession = Callable[[bytes, SessionOptions], Any]


class Engine:
    """Runs one variant. Safe to call from several threads at once; inputs are never written to. Use it as a context, or `close` it.

    With `options.split_batch`, a batch that divides evenly among the threads is cut, and each thread runs its part alone, on one session of one
    thread. No thread waits for the others after each operator, and operators that onnxruntime runs on one thread hold no other up. Other batches
    run on a session that shares each operator, which is opened when the first of them comes.

    `open_session`: for a caller who has a provider of his own; what it returns has `run`, `get_inputs` and `get_outputs` as onnxruntime's sessions do.
    """

    def __init__(self, model: bytes, contract: Contract, options: SessionOptions, open_session: OpenSession = open_session) -> None:
        self.contract = contract
        self.options = options
        self._open_session = open_session
        # each session keeps memory of its own, and one of the caller's may not manage any
        self._spikes = (SpikeWatch(), SpikeWatch()) if open_session is device.open_session else None
        self._outputs = [each.name for each in contract.outputs]
        self._threads = options.threads or usable_threads()
        self._model, self._lock = b"", fork_safe_lock()  # bytes from which a session may still be opened
        self._multi_thread_session: Any = None
        self._single_thread_session: Any = None
        self._pool: ThreadPool | None = None
        self._passed: tuple[Any, ...] | None = None  # names, dtypes and shapes of the last call that the contract allowed
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
        given = {each.name: each for each in (*session.get_inputs(), *session.get_outputs())}
        for each in _ends(self.contract):
            _require_alike(each, given[each.name])

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """One run at the shapes given; on a CPU, one of as many at once in this process as there are threads.

        Raises InputError outside the contract, DeviceError if the run itself fails.
        """
        came = tuple((name, array.dtype, array.shape) for name, array in inputs.items())
        if came != self._passed:  # checking takes 3 % of a small network's call
            self.contract.require_arrays(inputs)
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        with run_queue(self.options.device):
            if self._pool is not None and divides(self.contract, len(next(iter(arrays.values()))), self._threads):
                outputs = self._run_split(arrays)
            else:
                outputs = self._run_on(self._shared_session(), arrays)
        if came != self._passed:
            _require_promised_outputs(self.contract, arrays, outputs)
            self._passed = came
        return outputs

    def run_bound(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """One run whose outputs stay on the device, as onnxruntime's OrtValues by name. `inputs`: OrtValues on any device, or arrays.

        Nothing is copied for an OrtValue that is on the device already. Raises InputError or DeviceError.
        """
        ort = onnxruntime()
        values = {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(each)) if isinstance(each, np.ndarray) else each for name, each in inputs.items()}
        others = [type(each).__name__ for each in values.values() if not isinstance(each, ort.OrtValue)]
        if others:
            raise InputError(f"expected onnxruntime.OrtValue or arrays, got {', '.join(others)}")
        self.contract.require_arrays({name: _Described(dtype=_dtype(each), shape=tuple(each.shape())) for name, each in values.items()})
        session = self._shared_session()
        binding = session.io_binding()
        for name, each in values.items():
            binding.bind_ortvalue_input(name, each)
        for name in self._outputs:
            binding.bind_output(name, self.options.device)
        try:
            with run_queue(self.options.device):
                session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions derive from Exception directly
            raise self._failure(error, {name: tuple(each.shape()) for name, each in values.items()}) from error
        return dict(zip(self._outputs, binding.get_outputs(), strict=True))

    def require_open(self) -> None:
        """Raises DeviceError after `close`."""
        if self._single_thread_session is None and self._multi_thread_session is None:
            raise DeviceError(CLOSED)

    def placement(self) -> dict[str, int]:
        """See `device.placement`."""
        return placement(self._single_thread_session or self._shared_session())

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
            raise DeviceError(CLOSED)
        part = len(next(iter(arrays.values()))) // self._threads
        cuts = [{name: array[start : start + part] for name, array in arrays.items()} for start in range(0, part * self._threads, part)]
        try:
            done = pool.map(partial(self._run_on, session), cuts)
        except ClosedPoolError as error:
            raise DeviceError(CLOSED) from error
        return {name: np.concatenate([part[name] for part in done]) for name in self._outputs}

    def _shared_session(self) -> Any:
        """The session that shares each operator among all threads."""
        with self._lock:
            if self._multi_thread_session is None and not self._model:
                raise DeviceError(CLOSED)
            if self._multi_thread_session is None:
                self._multi_thread_session, self._model = self._open_session(self._model, self.options), b""
            return self._multi_thread_session

    def _run_on(self, session: Any, arrays: Arrays) -> Arrays:
        size, alone = sum(array.nbytes for array in arrays.values()), session is self._single_thread_session
        spike = self._spikes is not None and self._spikes[alone].seen(size)
        try:
            values = session.run(self._outputs, arrays, _freeing_memory(self.options.device)) if spike else session.run(self._outputs, arrays)
        except Exception as error:  # onnxruntime's exceptions derive from Exception directly
            raise self._failure(error, {name: array.shape for name, array in arrays.items()}) from error
        return dict(zip(self._outputs, values, strict=True))

    def _failure(self, error: Exception, shapes: Mapping[str, tuple[int, ...]]) -> Exception:
        """What to raise: an error of a signal's handler, a time limit say, is no failure of the run."""
        if (type(error).__module__ not in ("builtins", "numpy") and not type(error).__module__.startswith("onnxruntime")) or isinstance(error, OSError):
            return error
        return DeviceError(f"onnxruntime {onnxruntime().__version__} failed on {self.options.device} at {dict(shapes)}: {first_line(error)}")


def _require_alike(promised: Input | Output, given: Any) -> None:
    """Of one input or output: the dtype, the number of axes, and those that are fixed on both sides. Raises BundleError."""
    shape = given.shape if given.shape is not None else [None] * len(promised.shape)
    fits = len(shape) == len(promised.shape) and not any(
        isinstance(size, int) and isinstance(axis, int) and size != axis for size, axis in zip(shape, promised.shape, strict=True)
    )
    if not fits or not given.type.startswith("tensor(") or _numpy_name(given.type) != promised.dtype:
        wanted = f"{promised.dtype} ({', '.join(map(str, promised.shape))})"
        raise BundleError(f"the contract promises {promised.name!r} as {wanted}, but the graph has {given.type} {shape}: export the network again")


def _require_promised_outputs(contract: Contract, inputs: Arrays, outputs: Mapping[str, Any]) -> None:
    """What a graph does not say of its outputs before it runs. Raises DeviceError."""
    sizes = {axis: size for each in contract.inputs for axis, size in zip(each.shape, inputs[each.name].shape, strict=True) if isinstance(axis, str)}
    for each in contract.outputs:
        shape = tuple(getattr(outputs[each.name], "shape", ()))
        wanted = [sizes.get(axis) if isinstance(axis, str) else axis for axis in each.shape]
        if len(shape) != len(wanted) or any(size is not None and size != came for size, came in zip(wanted, shape, strict=True)):
            raise DeviceError(f"the contract promises {each.name!r} of shape {each.shape} at {sizes}, but the graph gave {shape}: export the network again")


def _freeing_memory(device: str) -> Any:
    """Options of a run that gives the memory of intermediate results back at its end. After every run that would take 2 to 60 % longer."""
    options = onnxruntime().RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0" if device == "cpu" else "gpu:0")
    return options


class _Described(NamedTuple):
    """What a contract asks of an array."""

    dtype: str
    shape: tuple[int, ...]


def _dtype(value: Any) -> str:
    """numpy's name of an OrtValue's type."""
    return _numpy_name(value.data_type())


def _numpy_name(kind: str) -> str:
    """Of onnxruntime's: "tensor(uint8)" is uint8."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


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
