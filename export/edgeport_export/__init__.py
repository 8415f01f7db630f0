"""Make bundles: export a trained network, prove its parity, quantize it, and write it with its evidence.

Names are imported when they are first asked for: torch takes seconds, and `edgeport --help` or a wrong argument should not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import crowding as crowding  # before PyTorch, whose threads it tells how to wait

if TYPE_CHECKING:
    from .bundle.diff import diff_bundles
    from .diagnosis.two_models import ModelComparison, assert_parity, compare_models
    from .errors import AxisError, ExportError, NetworkFailure, NoIntegerProducts, OutputError, ParityError, PreflightError
    from .network.contracts import ImageTask, image_contract
    from .options import ExportOptions
    from .pipeline import export_bundle
    from .quantization.plan import Plan, read_plan
    from .quantization.targets import Target
    from .rewrites.graph import GraphEditor, PassResult
    from .sources import load_factory, load_source
    from .validation.parity import Parity
    from .verification import Verification, verify

_MODULES = {
    "AxisError": "errors",
    "ExportError": "errors",
    "ExportOptions": "options",
    "GraphEditor": "rewrites.graph",
    "ImageTask": "network.contracts",
    "ModelComparison": "diagnosis.two_models",
    "NetworkFailure": "errors",
    "NoIntegerProducts": "errors",
    "OutputError": "errors",
    "Parity": "validation.parity",
    "ParityError": "errors",
    "PassResult": "rewrites.graph",
    "Plan": "quantization.plan",
    "PreflightError": "errors",
    "Target": "quantization.targets",
    "Verification": "verification",
    "assert_parity": "diagnosis.two_models",
    "compare_models": "diagnosis.two_models",
    "diff_bundles": "bundle.diff",
    "export_bundle": "pipeline",
    "image_contract": "network.contracts",
    "load_factory": "sources",
    "load_source": "sources",
    "read_plan": "quantization.plan",
    "verify": "verification",
}

__all__ = [
    "AxisError",
    "ExportError",
    "ExportOptions",
    "GraphEditor",
    "ImageTask",
    "ModelComparison",
    "NetworkFailure",
    "NoIntegerProducts",
    "OutputError",
    "Parity",
    "ParityError",
    "PassResult",
    "Plan",
    "PreflightError",
    "Target",
    "Verification",
    "assert_parity",
    "compare_models",
    "diff_bundles",
    "export_bundle",
    "image_contract",
    "load_factory",
    "load_source",
    "read_plan",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
