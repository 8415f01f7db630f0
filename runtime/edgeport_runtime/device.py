"""Where a model runs: a session on the device that was asked for, or an error that says why not."""

import ctypes
import os
import sys
import warnings
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .axes import is_whole
from .errors import BundleError, DeviceError, InputError, first_line
from .installation import onnxruntime, owners, version_numbers
from .threads import usable_threads

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
DEVICES = ("auto", "cpu", "cuda")
MOST_THREADS = 64  # that may be asked for, unless there are more processors
SPIN_US = 20  # bridges the time between operators: within 5 % of waiting without end, and nothing is burned between calls (docs/runtime.md)
FOLDED_BYTES = "optimization.constant_folding_max_output_size_in_bytes"
LEAST_FOLDED_BYTES = 64 * 2**20  # a file of 77 bytes took 825 MB at load: one ConstantOfShape, computed beforehand
BOUNDED_SPIN = (1, 32)  # the first onnxruntime that knows it; earlier ones do not spin


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """How a session is opened.

    `device`: "cpu" or "cuda", never anything else than asked.
    `threads`: of one operator; None takes as many as the CPU affinity and the cgroup quota allow.
    `spinning`: threads wait actively for the next call without end, instead of for 20 microseconds: see docs/runtime.md for what that costs.
    `split_batch`: on a CPU, each thread runs images of its own if a batch divides evenly among the threads, instead of a part of each operator.
    `exact_int8`: on x86 CPUs whose int8 products saturate, take onnxruntime's slower exact ones; elsewhere it changes nothing.
    `tf32`: let CUDA round float32 products to 10 bits; off, because it costs parity (microsoft/onnxruntime#19288).
    """

    device: str = "cpu"
    threads: int | None = None
    spinning: bool = False
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
        for name in ("spinning", "split_batch", "tf32"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.split_batch and self.device != "cpu":
            raise InputError(f"split_batch divides a batch among the threads of a CPU, so there is none on {self.device}: leave it out")
        if self.tf32 and self.device != "cuda":
            raise InputError(f"tf32 is a way in which CUDA multiplies, so there is none on {self.device}: leave it out")


def open_session(model: bytes, options: SessionOptions) -> Any:
    """Open a session from bytes (which also refuses external data). Raises DeviceError or BundleError; never falls back."""
    ort = onnxruntime()
    provider = PROVIDERS[options.device]
    if options.device == "cuda":
        require_cuda(ort)
    providers: list[Any] = [provider]
    if options.device == "cuda":
        # EXHAUSTIVE searches again for each new shape: 634 ms against 1.9 ms (PaddlePaddle/PaddleX#5057).
        providers = [(provider, {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": int(options.tf32)}), PROVIDERS["cpu"]]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of, a session on another provider, is an error below
            settings = session_settings(ort, options)
            settings.add_session_config_entry(FOLDED_BYTES, str(max(LEAST_FOLDED_BYTES, len(model))))
            settings.add_session_config_entry("session.load_model_format", "ONNX")  # else bytes may be read as another format, whose outline nobody has seen
            session = ort.InferenceSession(model, settings, providers=providers)
    except Exception as error:  # its exceptions derive from Exception directly
        raise BundleError(f"onnxruntime {ort.__version__} cannot load the model: {first_line(error)}") from error
    if session.get_providers()[0] != provider:
        raise DeviceError(
            f"asked for {options.device}, but onnxruntime could only start {session.get_providers()[0]}; `edgeport-run doctor` says what is missing, "
            "or ask for device='cpu'"
        )
    return session


def session_settings(ort: ModuleType, options: SessionOptions) -> Any:
    """onnxruntime's own SessionOptions for ours; what a bare script needs to be as fast."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads or usable_threads()
    settings.enable_mem_pattern = False  # sizes vary from call to call
    settings.log_severity_level = 4  # what it logs at 3 is in the exception that it raises as well
    bounded = version_numbers(ort.__version__) >= BOUNDED_SPIN
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spinning or bounded else "0")
    if bounded and not options.spinning:
        settings.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")  # for `placement`; it costs nothing that can be measured
    if options.exact_int8:
        settings.add_session_config_entry("session.x64quantprecision", "1")
    return settings


def placement(session: Any) -> dict[str, int]:
    """How many nodes each provider was given, the most first; it may join some later. Raises DeviceError if the session does not tell."""
    try:
        assigned = session.get_provider_graph_assignment_info()
    except Exception as error:  # of an older onnxruntime, or of a session that was opened without the record
        raise DeviceError(
            f"this session does not tell where its nodes run ({first_line(error)}); it takes one opened with session.record_ep_graph_assignment_info=1"
        ) from error
    counts: Counter[str] = Counter()
    for each in assigned:
        counts[each.ep_name] += len(each.get_nodes())
    return dict(counts.most_common())


def require_cuda(ort: ModuleType) -> None:
    """Raises DeviceError, with what to install, if the onnxruntime that is imported has no CUDA."""
    installed = owners()
    if len(installed) > 1:
        raise DeviceError(
            f"{' and '.join(installed)} are installed into one folder and overwrite each other; uninstall both, then install edgeport-runtime[gpu]"
        )
    if PROVIDERS["cuda"] not in ort.get_available_providers():
        raise DeviceError(
            f"asked for cuda, but {', '.join(installed) or 'this onnxruntime'} has no CUDA; install edgeport-runtime[gpu] instead, or ask for device='cpu'"
        )
    missing = missing_library(ort)
    if missing is not None:
        raise DeviceError(f"asked for cuda, but {missing}; or ask for device='cpu'")


def missing_library(ort: ModuleType) -> str | None:
    """The first library that CUDA's provider lacks, in the words of the system's loader, and what to install; None if it loads."""
    with redirect_stdout(sys.stderr):  # it prints whatever it does not find
        ort.preload_dlls()  # the libraries of the nvidia-* wheels
    suffix, prefix = (".dll", "") if os.name == "nt" else (".so", "lib")
    folder = Path(str(ort.__file__)).parent / "capi"
    try:
        for name in ("shared", "cuda"):  # the second needs the first
            ctypes.CDLL(str(folder / f"{prefix}onnxruntime_providers_{name}{suffix}"), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        wanted = "NVIDIA's driver" if "libcuda.so" in str(error) else "edgeport-runtime[gpu] with all that it needs"
        return f"a library is missing ({error}): install {wanted}"
    return None
