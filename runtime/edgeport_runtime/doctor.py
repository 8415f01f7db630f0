"""What this machine can run: versions, wheels, providers, CUDA's libraries, threads, and what to do about whatever is wrong."""

import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL

from .device import PROVIDERS, missing_library
from .errors import DeviceError
from .installation import onnxruntime, owners, wheels
from .int8_probe import int8_products_are_exact
from .threads import cgroup_cpus, usable_threads

DRIVER_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
DRIVER_TIMEOUT_S = 10


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Facts to show, and faults in words, each with what to do. True if there is no fault."""

    facts: dict[str, str]
    faults: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.faults


def diagnose() -> Diagnosis:
    """Look at the installation; nothing is changed."""
    quota = cgroup_cpus()
    facts = {
        "python": platform.python_version(),
        "machine": f"{platform.machine()} {platform.system()}",
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "onnxruntime wheels": ", ".join(f"{name} {version}" for name, version in wheels().items()) or "none",
        "threads": f"{usable_threads()} usable ({'no cgroup quota' if quota is None else f'cgroup quota {quota:g}'})",
        "graphics card": graphics_card() or "none that NVIDIA's driver knows",
    }
    faults = []
    if quota is not None and quota < 1:
        faults.append(f"the cgroup quota is {quota:g} of a CPU, so every call is held up for a part of each 100 ms; give the container at least one CPU")
    try:
        ort = onnxruntime()
        facts["onnxruntime"] = f"{ort.__version__} from {Path(str(ort.__file__)).parent}"
        facts["providers"] = ", ".join(ort.get_available_providers())
        facts["int8 products"] = "exact" if int8_products_are_exact() else "saturate on this CPU; int8 runs with exact, slower ones"
        facts["cuda"], found = _cuda(ort, card=graphics_card())
        faults += [*_wheel_faults(owners()), *found]
    except DeviceError as error:
        faults.append(str(error))
    return Diagnosis(facts=facts, faults=tuple(faults))


def graphics_card() -> str | None:
    """Name, driver and memory as NVIDIA's driver tells them; None without one."""
    if shutil.which(DRIVER_QUERY[0]) is None:
        return None
    try:
        told = subprocess.run(DRIVER_QUERY, capture_output=True, text=True, timeout=DRIVER_TIMEOUT_S, check=False)  # a constant
    except (OSError, subprocess.TimeoutExpired):
        return None
    return "; ".join(told.stdout.strip().splitlines()) if told.returncode == 0 and told.stdout.strip() else None


def _wheel_faults(owning: dict[str, str]) -> list[str]:
    named = " and ".join(f"{name} {version}" for name, version in owning.items())
    fault = f"{named} are installed into one folder and overwrite each other: `pip uninstall {' '.join(owning)}`, then install one extra of edgeport-runtime"
    return [fault] if len(owning) > 1 else []


def _cuda(ort: ModuleType, card: str | None) -> tuple[str, list[str]]:
    """What CUDA can do here, in words, and the faults: a card that cannot be used, or a wheel whose libraries are missing."""
    if PROVIDERS["cuda"] not in ort.get_available_providers():
        if card is None:
            return "not in this onnxruntime", []
        remedy = f"`pip uninstall {' '.join(owners()) or 'onnxruntime'}`, then install edgeport-runtime[gpu]"
        return "not in this onnxruntime", [f"there is a card, but the onnxruntime that is installed has no CUDA: {remedy}"]
    missing = missing_library(ort)
    if missing is not None:
        return "in this onnxruntime, but it cannot start", [f"CUDA cannot start: {missing}"]
    return "its libraries are here", [] if card else ["CUDA's libraries are here, but NVIDIA's driver knows of no card: ask for device='cpu'"]
