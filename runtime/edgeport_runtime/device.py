"""Where a model runs: threads, providers, and a session that is on the device asked for or is not opened at all."""

import importlib
import importlib.metadata
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .contract import is_whole
from .errors import BundleError, DeviceError, InputError, first_line

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
WHEELS = ("onnxruntime", "onnxruntime-gpu")
MOST_THREADS = 64  # that may be asked for, unless there are more processors


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """How a session is opened.

    `device`: "cpu" or "cuda", never anything else than asked.
    `threads`: of one operator; None takes as many as the CPU affinity and the cgroup quota allow.
    `spinning`: threads wait actively between operators: 10 to 30 % less latency, at the price of a busy CPU while others wait.
    `split_batch`: on a CPU, each thread runs images of its own if a batch divides evenly among the threads, instead of a part of each operator.
    `exact_int8`: on x86 CPUs whose int8 products saturate, take onnxruntime's slower exact ones; elsewhere it changes nothing.
    `tf32`: let CUDA round float32 products to 10 bits; off, because it costs parity (microsoft/onnxruntime#19288).
    """

    device: str = "cpu"
    threads: int | None = None
    spinning: bool = True
    split_batch: bool = False
    exact_int8: bool = False
    tf32: bool = False

    def __post_init__(self) -> None:
        if self.device not in PROVIDERS:
            raise InputError(f"device must be one of {list(PROVIDERS)}, got {self.device!r}")
        most = max(MOST_THREADS, os.cpu_count() or 1)  # thousands, each waiting actively, would not come to an end
        if self.threads is not None:
            if not is_whole(self.threads) or not 1 <= self.threads <= most:
                raise InputError(f"threads must be a whole number from 1 to {most}, or None for as many as this machine allows, got {self.threads!r}")
            object.__setattr__(self, "threads", int(self.threads))
        for name in ("spinning", "split_batch"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.split_batch and self.device != "cpu":
            raise InputError(f"split_batch divides a batch among the threads of a CPU, so there is none on {self.device}: leave it out")


def onnxruntime() -> ModuleType:
    """Import onnxruntime with its telemetry off. Raises DeviceError with the command that installs it.

    Linux wheels since 1.29 write a device id and a database under the user's cache unless this variable is set before
    the import (microsoft/onnxruntime#27379); calling disable_telemetry_events() afterwards is too late.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        module = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise DeviceError(
            f"onnxruntime cannot be imported ({error}); install edgeport-runtime with one extra: edgeport-runtime[cpu] or edgeport-runtime[gpu]"
        ) from error
    return module


def require_onnxruntime(lowest: str, path: Path) -> None:
    """Refuse a file that needs a newer onnxruntime than is installed. Raises BundleError."""
    installed: str = onnxruntime().__version__
    if _numbers(installed) < _numbers(lowest):
        raise BundleError(f"{path}: the model needs onnxruntime {lowest} or newer, but {installed} is installed; upgrade onnxruntime")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def wheels() -> dict[str, str]:
    """The onnxruntime distributions installed here, with their versions. Two of them share one import folder and break each other."""
    found = {}
    for name in WHEELS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cgroup_cpus(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs that the cgroup quota allows (version 2, then 1); None if there is no quota."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return None
    return int(quota) / int(period) if quota not in ("max", "-1") else None


def usable_threads() -> int:
    """CPUs this process may use: affinity, bounded by the cgroup quota. onnxruntime's own default counts the host's cores."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cpus()
    return max(1, allowed if quota is None else min(allowed, int(quota)))


def open_session(model: bytes, options: SessionOptions) -> Any:
    """Open a session from bytes (which also refuses external data). Raises DeviceError or BundleError; never falls back."""
    ort = onnxruntime()
    provider = PROVIDERS[options.device]
    if options.device == "cuda":
        _require_cuda(ort)
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads or usable_threads()
    settings.enable_mem_pattern = False  # sizes vary from call to call
    settings.log_severity_level = 4  # what it logs at 3 is in the exception that it raises as well
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spinning else "0")
    if options.exact_int8:
        settings.add_session_config_entry("session.x64quantprecision", "1")
    providers: list[Any] = [provider]
    if options.device == "cuda":
        # EXHAUSTIVE searches again for each new shape: 634 ms against 1.9 ms (PaddlePaddle/PaddleX#5057).
        providers = [(provider, {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": int(options.tf32)}), PROVIDERS["cpu"]]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of, a session on another provider, is an error below
            session = ort.InferenceSession(model, settings, providers=providers)
    except Exception as error:  # its exceptions derive from Exception directly
        raise BundleError(f"onnxruntime {ort.__version__} cannot load the model: {first_line(error)}") from error
    if session.get_providers()[0] != provider:
        raise DeviceError(
            f"asked for {options.device}, but onnxruntime could only start {session.get_providers()[0]}; run `edgeport-run doctor`, or ask for device='cpu'"
        )
    return session


def _require_cuda(ort: ModuleType) -> None:
    installed = wheels()
    if len(installed) > 1:
        raise DeviceError("onnxruntime and onnxruntime-gpu are both installed and overwrite each other; uninstall both, then install edgeport-runtime[gpu]")
    if PROVIDERS["cuda"] not in ort.get_available_providers():
        raise DeviceError(
            f"asked for cuda, but {', '.join(installed) or 'this onnxruntime'} has no CUDA; install edgeport-runtime[gpu], or ask for device='cpu'"
        )
    ort.preload_dlls()  # finds the libraries of the nvidia-* wheels; only prints if it fails, the session's provider tells
