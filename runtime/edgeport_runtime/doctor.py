"""What this machine can run: versions, wheels, providers, threads, and what is wrong with them."""

import platform
from dataclasses import dataclass

import numpy as np
import PIL

from .device import cgroup_cpus, onnxruntime, usable_threads, wheels
from .errors import DeviceError
from .int8_probe import int8_products_are_exact


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Facts to show, and faults in words. True if there is no fault."""

    facts: dict[str, str]
    faults: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.faults


def diagnose() -> Diagnosis:
    """Look at the installation; nothing is changed and no session is opened."""
    quota = cgroup_cpus()
    facts = {
        "python": platform.python_version(),
        "machine": f"{platform.machine()} {platform.system()}",
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "onnxruntime wheels": ", ".join(f"{name} {version}" for name, version in wheels().items()) or "none",
        "threads": f"{usable_threads()} usable ({'no cgroup quota' if quota is None else f'cgroup quota {quota:g}'})",
    }
    faults = []
    if len(wheels()) > 1:
        faults.append("onnxruntime and onnxruntime-gpu overwrite each other in one import folder; uninstall both, then install one extra")
    try:
        facts["providers"] = ", ".join(onnxruntime().get_available_providers())
        facts["int8 products"] = "exact" if int8_products_are_exact() else "saturate on this CPU; int8 runs with exact, slower ones"
    except DeviceError as error:
        faults.append(str(error))
    return Diagnosis(facts=facts, faults=tuple(faults))
