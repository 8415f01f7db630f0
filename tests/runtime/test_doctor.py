import importlib.metadata

import pytest

from edgeport_runtime import doctor
from edgeport_runtime.doctor import diagnose


def test_a_healthy_installation() -> None:
    diagnosis = diagnose()
    assert diagnosis, diagnosis.faults
    assert "CPUExecutionProvider" in diagnosis.facts["providers"]


def test_two_wheels_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.31.1")
    diagnosis = diagnose()
    assert not diagnosis and "overwrite each other" in diagnosis.faults[0]


def test_no_onnxruntime_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    monkeypatch.setattr(doctor, "wheels", dict)
    diagnosis = diagnose()
    assert diagnosis.facts["onnxruntime wheels"] == "none" and "install edgeport-runtime with one extra" in diagnosis.faults[0]
