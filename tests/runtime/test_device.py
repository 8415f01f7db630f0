"""A session is on the device that was asked for, or there is an error that says why not and what to install."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from edgeport_runtime import BundleError, DeviceError, InputError, SessionOptions, device, load
from edgeport_runtime.device import SPIN_US, missing_library, open_session, placement, session_settings
from edgeport_runtime.installation import onnxruntime


def cuda_works() -> bool:
    return "CUDAExecutionProvider" in onnxruntime().get_available_providers() and missing_library(onnxruntime()) is None


def test_options_are_checked() -> None:
    for wrong in ("gpu", "auto"):  # `load` settles which one auto is
        with pytest.raises(InputError, match=rf"device must be one of \['cpu', 'cuda'\], got '{wrong}'"):
            SessionOptions(device=wrong)
    for threads in (-1, 0, 100_000, True, 1.5, "2"):
        with pytest.raises(InputError, match="threads must be a whole number from 1 to "):
            SessionOptions(threads=threads)  # type: ignore[arg-type]
    assert type(SessionOptions(threads=np.int64(2)).threads) is int  # type: ignore[arg-type]
    for name in ("spinning", "split_batch", "tf32"):
        with pytest.raises(InputError, match=f"{name} must be True or False, got 'no'"):
            SessionOptions(**{name: "no"})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="tf32 is a way in which CUDA multiplies, so there is none on cpu"):
        SessionOptions(tf32=True)


@pytest.mark.parametrize(
    ("version", "spinning", "entries"),
    [
        ("1.31.1", False, {"allow_spinning": "0"}),  # it cannot spin for a while, so it does not
        ("1.31.1", True, {"allow_spinning": "1"}),
        ("1.32.0", False, {"allow_spinning": "1", "spin_duration_us": str(SPIN_US)}),
        ("2.0", False, {"allow_spinning": "1", "spin_duration_us": str(SPIN_US)}),
        ("1.32.0", True, {"allow_spinning": "1"}),
    ],
)
def test_threads_wait_actively_for_moments_alone_unless_asked(version: str, spinning: bool, entries: dict[str, str]) -> None:
    runtime = SimpleNamespace(__version__=version, SessionOptions=ort.SessionOptions)
    settings = session_settings(runtime, SessionOptions(spinning=spinning))  # type: ignore[arg-type]
    found = {}
    for name in ("allow_spinning", "spin_duration_us"):
        try:
            found[name] = settings.get_session_config_entry(f"session.intra_op.{name}")
        except RuntimeError:  # it was never set
            continue
    assert found == entries


def test_idle_threads_burn_nothing(classifier: Path) -> None:
    """Told by the kernel: two threads that wait without end took 1 s and more of processor time in this second."""
    import time

    with load(classifier, threads=2) as model:
        model.raw(np.zeros((8, 64, 64, 3), np.uint8))
        start = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - start < 0.2


@pytest.mark.skipif(cuda_works(), reason="this machine has CUDA")
def test_cuda_without_cuda_is_an_error_and_no_fallback(classifier: Path) -> None:
    with pytest.raises(DeviceError, match=r"asked for cuda, but .*"):
        load(classifier, device="cuda")


def fake_runtime(started: str, *, available: tuple[str, ...] = ("CUDAExecutionProvider", "CPUExecutionProvider")) -> Any:
    """An onnxruntime that lists CUDA, and then starts whatever it likes. It records what its sessions were opened with."""
    opened: list[Any] = []

    def session(*_: Any, providers: Any) -> Any:
        opened.append(providers)
        return SimpleNamespace(get_providers=lambda: [started])

    return SimpleNamespace(
        __version__="0",
        __file__="/nowhere/onnxruntime/__init__.py",
        SessionOptions=lambda: SimpleNamespace(add_session_config_entry=lambda *_: None),
        InferenceSession=session,
        get_available_providers=lambda: list(available),
        preload_dlls=lambda: print("Failed to load libcublas"),
        opened=opened,
    )


@pytest.fixture
def on_fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`on_fake(started, owners=…, missing=…)`: sessions are opened by such an onnxruntime."""

    def install(started: str, *, owners: tuple[str, ...] = ("onnxruntime-gpu",), missing: str | None = None, **given: Any) -> Any:
        runtime = fake_runtime(started, **given)
        monkeypatch.setattr(device, "onnxruntime", lambda: runtime)
        monkeypatch.setattr(device, "owners", lambda: dict.fromkeys(owners, "1.31.1"))
        monkeypatch.setattr(device, "missing_library", lambda ort: missing)
        return runtime

    return install


def test_a_session_that_fell_back_is_refused(on_fake: Callable[..., Any]) -> None:
    on_fake("CPUExecutionProvider")
    with pytest.raises(DeviceError, match="asked for cuda, but onnxruntime could only start CPUExecutionProvider"):
        open_session(b"", SessionOptions(device="cuda"))


@pytest.mark.parametrize("tf32", [False, True])
def test_cuda_multiplies_as_precisely_as_it_can_and_searches_by_rule(on_fake: Callable[..., Any], tf32: bool) -> None:
    runtime = on_fake("CUDAExecutionProvider")
    assert open_session(b"", SessionOptions(device="cuda", tf32=tf32)).get_providers() == ["CUDAExecutionProvider"]
    name, options = runtime.opened[0][0]
    assert name == "CUDAExecutionProvider" and options == {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": int(tf32)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"owners": ("onnxruntime", "onnxruntime-gpu")}, "onnxruntime and onnxruntime-gpu are installed into one folder and overwrite each other"),
        ({"owners": ("onnxruntime",), "available": ("CPUExecutionProvider",)}, r"but onnxruntime has no CUDA; install edgeport-runtime\[gpu\] instead"),
        (
            {"missing": "a library is missing (libcublas.so.13): install it"},
            r"asked for cuda, but a library is missing \(libcublas.so.13\): install it; or ask",
        ),
    ],
)
def test_why_cuda_cannot_start_is_told_before_it_is_tried(on_fake: Callable[..., Any], given: dict[str, Any], message: str) -> None:
    runtime = on_fake("CPUExecutionProvider", **given)
    with pytest.raises(DeviceError, match=message):
        open_session(b"", SessionOptions(device="cuda"))
    assert not runtime.opened


def test_a_missing_library_is_named_and_stdout_stays_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = fake_runtime("CPUExecutionProvider")
    runtime.__file__ = str(tmp_path / "onnxruntime" / "__init__.py")
    told = missing_library(runtime)
    assert told is not None and "providers_shared" in told and "install edgeport-runtime[gpu]" in told
    captured = capsys.readouterr()
    assert not captured.out and "Failed to load libcublas" in captured.err


@pytest.mark.parametrize("model", [b"", b"garbage", b"\x08\x0a"])
def test_a_model_that_does_not_load(model: bytes) -> None:
    with pytest.raises(BundleError, match="cannot load the model"):
        open_session(model, SessionOptions())


def test_placement_counts_the_nodes_as_they_were_given_out(classifier: Path, tmp_path: Path) -> None:
    """That is after the optimizations that hold on every device, and before those of one device."""
    settings = ort.SessionOptions()
    settings.optimized_model_filepath, settings.graph_optimization_level = str(tmp_path / "basic.onnx"), ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.log_severity_level = 4
    ort.InferenceSession(str(classifier / "model.onnx"), settings, providers=["CPUExecutionProvider"])
    onnx = pytest.importorskip("onnx")
    with load(classifier, precision="fp32") as model:
        assert model.placement() == {"CPUExecutionProvider": len(onnx.load(tmp_path / "basic.onnx").graph.node)}
    plain = ort.InferenceSession(str(classifier / "model.onnx"), settings, providers=["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match="does not tell where its nodes run"):
        placement(plain)


@pytest.mark.gpu
@pytest.mark.skipif(not cuda_works(), reason="no CUDA device here")
def test_golden_cases_on_cuda(classifier: Path) -> None:
    with load(classifier, device="cuda") as model:
        assert model.precision == "fp32" and model.device == "cuda"
        assert model.check()
        assert model.placement()["CUDAExecutionProvider"] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not cuda_works(), reason="no CUDA device here")
def test_outputs_stay_on_the_card(classifier: Path) -> None:
    with load(classifier, device="cuda") as model:
        pixels = np.full((2, 16, 16, 3), 30, np.uint8)
        kept = model.raw_on_device(ort.OrtValue.ortvalue_from_numpy(pixels, "cuda", 0))["logits"]
        assert kept.device_name() == "cuda"
        np.testing.assert_allclose(kept.numpy(), model.raw(pixels)["logits"], rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not cuda_works(), reason="no CUDA device here")
def test_auto_takes_the_card(classifier: Path) -> None:
    with load(classifier, device="auto") as model:
        assert model.device == "cuda" and model.reason.endswith("; on cuda, because CUDA could start")
