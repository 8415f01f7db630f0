import importlib.metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgeport_runtime import BundleError, DeviceError, InputError, SessionOptions, device, load
from edgeport_runtime.device import cgroup_cpus, onnxruntime, open_session, usable_threads


def cuda_works() -> bool:
    return "CUDAExecutionProvider" in onnxruntime().get_available_providers()


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_cgroup_quota(tmp_path: Path, files: dict[str, str], cpus: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cgroup_cpus(tmp_path) == cpus


@pytest.mark.parametrize(("affinity", "quota", "threads"), [(8, None, 8), (8, 2.5, 2), (2, 4.0, 2), (4, 0.5, 1)])
def test_threads_are_what_affinity_and_quota_allow(monkeypatch: pytest.MonkeyPatch, affinity: int, quota: float | None, threads: int) -> None:
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda _: set(range(affinity)))
    monkeypatch.setattr(device, "cgroup_cpus", lambda: quota)
    assert usable_threads() == threads


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match=r"device must be one of \['cpu', 'cuda'\], got 'gpu'"):
        SessionOptions(device="gpu")
    for threads in (-1, 0, 100_000, True, 1.5, "2"):
        with pytest.raises(InputError, match="threads must be a whole number from 1 to "):
            SessionOptions(threads=threads)  # type: ignore[arg-type]
    assert type(SessionOptions(threads=np.int64(2)).threads) is int  # type: ignore[arg-type]
    for name in ("spinning", "split_batch"):
        with pytest.raises(InputError, match=f"{name} must be True or False, got 'no'"):
            SessionOptions(**{name: "no"})  # type: ignore[arg-type]


def test_telemetry_is_off_before_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")  # set by whatever imported it first
    onnxruntime()
    assert device.os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_without_onnxruntime_the_message_names_the_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(DeviceError, match=r"edgeport-runtime\[cpu\] or edgeport-runtime\[gpu\]"):
        onnxruntime()


@pytest.mark.skipif(cuda_works(), reason="this machine has CUDA")
def test_cuda_without_cuda_is_an_error_and_no_fallback(classifier: Path) -> None:
    with pytest.raises(DeviceError, match=r"asked for cuda, but .*onnxruntime.* has no CUDA; install edgeport-runtime\[gpu\]"):
        load(classifier, device="cuda")


def fake_runtime(provider_started: str) -> SimpleNamespace:
    """An onnxruntime that lists CUDA, and then starts whatever it likes."""
    session = SimpleNamespace(get_providers=lambda: [provider_started])
    options = SimpleNamespace(add_session_config_entry=lambda *_: None)
    return SimpleNamespace(
        __version__="0",
        SessionOptions=lambda: options,
        InferenceSession=lambda *_, **__: session,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        preload_dlls=lambda: None,
    )


def test_a_session_that_fell_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "onnxruntime", lambda: fake_runtime("CPUExecutionProvider"))
    with pytest.raises(DeviceError, match="asked for cuda, but onnxruntime could only start CPUExecutionProvider"):
        open_session(b"", SessionOptions(device="cuda"))
    monkeypatch.setattr(device, "onnxruntime", lambda: fake_runtime("CUDAExecutionProvider"))
    assert open_session(b"", SessionOptions(device="cuda")).get_providers() == ["CUDAExecutionProvider"]


def test_two_wheels_are_refused_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.31.1")
    monkeypatch.setattr(device, "onnxruntime", lambda: fake_runtime("CUDAExecutionProvider"))
    with pytest.raises(DeviceError, match="both installed and overwrite each other"):
        open_session(b"", SessionOptions(device="cuda"))


@pytest.mark.parametrize("model", [b"", b"garbage", b"\x08\x0a"])
def test_a_model_that_does_not_load(model: bytes) -> None:
    with pytest.raises(BundleError, match="cannot load the model"):
        open_session(model, SessionOptions())


@pytest.mark.gpu
@pytest.mark.skipif(not cuda_works(), reason="no CUDA device here")
def test_golden_cases_on_cuda(classifier: Path) -> None:
    model = load(classifier, device="cuda")
    assert model.precision == "fp32"
    assert model.check()
