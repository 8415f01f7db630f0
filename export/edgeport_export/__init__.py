"""Make bundles: export a trained network, prove its parity, quantise it, and write it with its evidence."""

from .errors import AxisError, ExportError, NetworkFailure, OutputError, ParityError, PreflightError
from .parity import Parity, measure_parity
from .pipeline import ExportOptions, export_bundle
from .source import Source, load_source
from .verify import Verification, verify

__all__ = [
    "AxisError",
    "ExportError",
    "ExportOptions",
    "NetworkFailure",
    "OutputError",
    "Parity",
    "ParityError",
    "PreflightError",
    "Source",
    "Verification",
    "export_bundle",
    "load_source",
    "measure_parity",
    "verify",
]
