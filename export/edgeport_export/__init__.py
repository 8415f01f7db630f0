"""Make bundles: export a trained network, prove its parity, quantize it, and write it with its evidence.

Names are imported when they are first asked for: torch takes seconds, and `edgeport --help` or a wrong argument should not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import AxisError, ExportError, NetworkFailure, OutputError, ParityError, PreflightError
    from .network.contracts import ImageTask, image_contract, parse_axes
    from .network.reference import TorchReference
    from .options import ExportOptions
    from .pipeline import export_bundle
    from .sources import NetworkSource, load_factory, load_source
    from .validation.parity import Parity, measure_parity
    from .verification import Verification, verify

_MODULES = {
    "AxisError": "errors",
    "ExportError": "errors",
    "ExportOptions": "options",
    "ImageTask": "network.contracts",
    "NetworkFailure": "errors",
    "NetworkSource": "sources",
    "OutputError": "errors",
    "Parity": "validation.parity",
    "ParityError": "errors",
    "PreflightError": "errors",
    "TorchReference": "network.reference",
    "Verification": "verification",
    "export_bundle": "pipeline",
    "image_contract": "network.contracts",
    "load_factory": "sources",
    "load_source": "sources",
    "measure_parity": "validation.parity",
    "parse_axes": "network.contracts",
    "verify": "verification",
}

__all__ = [
    "AxisError",
    "ExportError",
    "ExportOptions",
    "ImageTask",
    "NetworkFailure",
    "NetworkSource",
    "OutputError",
    "Parity",
    "ParityError",
    "PreflightError",
    "TorchReference",
    "Verification",
    "export_bundle",
    "image_contract",
    "load_factory",
    "load_source",
    "measure_parity",
    "parse_axes",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
