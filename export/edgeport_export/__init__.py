"""Make bundles: export a trained network, prove its parity, quantise it, and write it with its evidence.

Names are imported when they are first asked for: torch takes seconds, and `edgeport --help` or a wrong argument should not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .contracts import ImageTask, image_contract, parse_axes
    from .errors import AxisError, ExportError, NetworkFailure, OutputError, ParityError, PreflightError
    from .options import ExportOptions
    from .parity import Parity, measure_parity
    from .pipeline import export_bundle
    from .source import Source, load_factory, load_source
    from .verification import Verification, verify

_ROOMS = {
    "ImageTask": "contracts",
    "image_contract": "contracts",
    "parse_axes": "contracts",
    "AxisError": "errors",
    "ExportError": "errors",
    "NetworkFailure": "errors",
    "OutputError": "errors",
    "ParityError": "errors",
    "PreflightError": "errors",
    "Parity": "parity",
    "measure_parity": "parity",
    "ExportOptions": "options",
    "export_bundle": "pipeline",
    "Source": "source",
    "load_factory": "source",
    "load_source": "source",
    "Verification": "verification",
    "verify": "verification",
}

__all__ = [
    "AxisError",
    "ExportError",
    "ExportOptions",
    "ImageTask",
    "NetworkFailure",
    "OutputError",
    "Parity",
    "ParityError",
    "PreflightError",
    "Source",
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
    if name in _ROOMS:
        return getattr(import_module(f".{_ROOMS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
