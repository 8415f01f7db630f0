"""What is wrong with an installation is found, with what to do about it."""

from types import SimpleNamespace
from typing import Any

import pytest

from edgeport_runtime import doctor
from edgeport_runtime.doctor import diagnose

CARD = "NVIDIA H200, 570.86, 143771 MiB"


def test_a_healthy_installation() -> None:
    diagnosis = diagnose()
    assert diagnosis, diagnosis.faults
    assert "CPUExecutionProvider" in diagnosis.facts["providers"] and diagnosis.facts["int8 products"]


def test_no_onnxruntime_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    monkeypatch.setattr(doctor, "wheels", dict)
    diagnosis = diagnose()
    assert diagnosis.facts["onnxruntime wheels"] == "none" and "install edgeport-runtime with one extra" in diagnosis.faults[0]


GPU = {"owners": {"onnxruntime-gpu": "1.31.1"}, "providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]}


@pytest.mark.parametrize(
    ("machine", "cuda", "faults"),
    [
        ({}, "not in this onnxruntime", []),
        ({"card": CARD}, "not in this onnxruntime", ["there is a card, but the onnxruntime that is installed has no CUDA: `pip uninstall onnxruntime`"]),
        ({**GPU, "card": CARD}, "its libraries are here", []),
        (GPU, "its libraries are here", ["NVIDIA's driver knows of no card: ask for device='cpu'"]),
        (
            {**GPU, "missing": "a library is missing (libcudnn.so.9): install it"},
            "it cannot start",
            [r"CUDA cannot start: a library is missing (libcudnn.so.9)"],
        ),
        (
            {"owners": {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}},
            "not in this onnxruntime",
            ["onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 are installed into one folder", "`pip uninstall onnxruntime onnxruntime-gpu`"],
        ),
        ({"quota": 0.5}, "not in this onnxruntime", ["the cgroup quota is 0.5 of a CPU", "give the container at least one CPU"]),
        ({"quota": 2.5}, "not in this onnxruntime", []),
    ],
)
def test_faults_say_what_to_do(machine: dict[str, Any], cuda: str, faults: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    providers = machine.get("providers", ["CPUExecutionProvider"])
    runtime = SimpleNamespace(__version__="1.32.0", __file__="/site/onnxruntime/__init__.py", get_available_providers=lambda: providers)
    monkeypatch.setattr(doctor, "onnxruntime", lambda: runtime)
    monkeypatch.setattr(doctor, "owners", lambda: machine.get("owners", {"onnxruntime": "1.32.0"}))
    monkeypatch.setattr(doctor, "graphics_card", lambda: machine.get("card"))
    monkeypatch.setattr(doctor, "missing_library", lambda ort: machine.get("missing"))
    monkeypatch.setattr(doctor, "cgroup_cpus", lambda: machine.get("quota"))
    diagnosis = diagnose()
    assert cuda in diagnosis.facts["cuda"]
    assert bool(diagnosis) is not faults or not faults
    for each in faults:
        assert any(each in told for told in diagnosis.faults), diagnosis.faults
    assert len(diagnosis.faults) == bool(faults)


@pytest.mark.parametrize(
    ("script", "card"),
    [(f"echo '{CARD}'", CARD), (f"echo '{CARD}'; echo '{CARD}'", f"{CARD}; {CARD}"), ("echo failed; exit 9", None), ("exit 0", None), (None, None)],
)
def test_the_card_is_what_the_driver_tells(script: str | None, card: str | None, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.graphics_card() == card
