"""The machine and the packages that a bundle was made with."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from edgeport_runtime import __version__
from edgeport_runtime.threads import usable_threads

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Versions that decide the bytes of a bundle."""
    return {"edgeport": __version__, **{package: importlib.metadata.version(package) for package in PACKAGES}}


def machine() -> dict[str, Any]:
    """The machine that the evidence was measured on."""
    return {"processor": processor(), "system": f"{platform.system()} {platform.machine()}", "threads": usable_threads(), "python": platform.python_version()}


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name from Linux, else what Python knows."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown")
