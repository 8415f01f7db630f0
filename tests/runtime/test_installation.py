"""Which onnxruntime is imported, and whose it is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeport_runtime import BundleError, DeviceError, installation
from edgeport_runtime.installation import onnxruntime, owners, require_onnxruntime, wheels


def test_telemetry_is_off_before_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")  # set by whatever imported it first
    onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_without_onnxruntime_the_message_names_the_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(DeviceError, match=r"edgeport-runtime\[cpu\] or edgeport-runtime\[gpu\]"):
        onnxruntime()


def distribution(site: Path, name: str, version: str, *, package: bool = True, record: bool = True) -> None:
    """A wheel as pip leaves it, of which nothing but metadata and the import folder matter here."""
    (site / f"{name.replace('-', '_')}-{version}.dist-info").mkdir(parents=True)
    (site / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    folder = "onnxruntime" if package else name.replace("-", "_")
    (site / folder).mkdir(exist_ok=True)
    (site / folder / "__init__.py").touch()
    if record:
        (site / f"{name.replace('-', '_')}-{version}.dist-info" / "RECORD").write_text(f"{folder}/__init__.py,,\n{folder}/capi/state.so,,\n")


def test_the_owners_of_the_imported_folder_are_told_from_other_wheels_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU wheel on PYTHONPATH beside an installed CPU wheel works, because each has a folder of its own; two in one folder have overwritten each other."""
    first, second = tmp_path / "first", tmp_path / "second"
    distribution(first, "onnxruntime-gpu", "1.31.1")
    distribution(second, "onnxruntime", "1.32.0")
    distribution(second, "onnxruntime-openvino", "1.24.0", record=False)
    distribution(second, "onnxruntime-extensions", "0.15", package=False)
    distribution(second, "onnx", "1.23.2")
    monkeypatch.setattr(sys, "path", [str(first), str(second)])
    assert wheels(first / "onnxruntime" / "__init__.py") == {"onnxruntime-gpu": "1.31.1"}
    assert wheels(second / "onnxruntime" / "__init__.py") == {"onnxruntime": "1.32.0", "onnxruntime-openvino": "1.24.0"}
    assert sorted(wheels()) == ["onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"]


def test_the_owner_of_the_onnxruntime_of_these_tests() -> None:
    assert list(owners().values()) == [onnxruntime().__version__]


def test_a_folder_without_its_files_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `pip uninstall` of one of two wheels, the folder is there without `__init__.py`, and Python imports it as a namespace."""
    monkeypatch.setitem(sys.modules, "onnxruntime", type(sys)("onnxruntime"))
    with pytest.raises(DeviceError, match=r"a folder of this name is imported instead of onnxruntime, .*; reinstall edgeport-runtime\[cpu\]"):
        onnxruntime()


@pytest.mark.parametrize(("lowest", "refused"), [("1.2", False), ("1.99", True), ("2.0", True)])
def test_the_lowest_version_of_a_file(lowest: str, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "onnxruntime", lambda: type("Module", (), {"__version__": "1.32.0"}))
    if not refused:
        return require_onnxruntime(lowest, Path("bundle"))
    with pytest.raises(BundleError, match=f"bundle: the model needs onnxruntime {lowest} or newer, but 1.32.0 is installed"):
        require_onnxruntime(lowest, Path("bundle"))


def test_importing_the_runtime_does_not_import_onnxruntime() -> None:
    """Nor what takes long and few need: asyncio, thread pools, metadata of wheels."""
    heavy = "{'onnxruntime', 'asyncio', 'concurrent.futures', 'importlib.metadata', 'edgeport_runtime.batcher'}"
    code = f"import sys, numpy, PIL.Image; before = set(sys.modules); import edgeport_runtime; print(sorted({heavy} & (set(sys.modules) - before)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
