"""The onnxruntime that is installed here: imported with its telemetry off, and asked which distributions own the folder it came from."""

import importlib
import os
from pathlib import Path
from types import ModuleType

from .errors import BundleError, DeviceError

FAMILY = "onnxruntime"  # names of distributions begin with it; all of them use the import folder of that name
PACKAGE = "onnxruntime/__init__.py"


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
    if not hasattr(module, "InferenceSession"):
        raise DeviceError(
            f"{getattr(module, '__path__', 'onnxruntime')}: a folder of this name is imported instead of onnxruntime, or one of its two wheels was "
            "uninstalled and took files of the other with it; reinstall edgeport-runtime[cpu] or edgeport-runtime[gpu]"
        )
    return module


def require_onnxruntime(lowest: str, path: Path) -> None:
    """Refuse a file that needs a newer onnxruntime than is installed. Raises BundleError."""
    installed: str = onnxruntime().__version__
    if version_numbers(installed) < version_numbers(lowest):
        raise BundleError(f"{path}: the model needs onnxruntime {lowest} or newer, but {installed} is installed; upgrade onnxruntime")


def version_numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def wheels(imported: Path | None = None) -> dict[str, str]:
    """The distributions of onnxruntime that are installed here, with their versions. `imported`: only those that own this file, PACKAGE as it was imported.

    A wheel elsewhere on the path does no harm; two that own one folder have overwritten each other's files.
    """
    from importlib.metadata import distributions  # takes 10 ms, and is needed by nobody who only predicts

    found: dict[str, str] = {}
    for each in distributions():
        name = (each.metadata["Name"] or "").lower().replace("_", "-")
        if name != FAMILY and not name.startswith(f"{FAMILY}-"):
            continue
        own = Path(str(each.locate_file(PACKAGE)))
        holds = own.exists() if each.files is None else any(file.as_posix() == PACKAGE for file in each.files)  # onnxruntime-extensions has another folder
        if holds and (imported is None or own.resolve() == imported.resolve()):
            found.setdefault(name, each.version)
    return dict(sorted(found.items()))


def owners() -> dict[str, str]:
    """The distributions that own the onnxruntime that is imported. Two of them break each other."""
    file = getattr(onnxruntime(), "__file__", None)
    return wheels(Path(file)) if file else {}
