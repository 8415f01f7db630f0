"""Run edgeport bundles without PyTorch: `load` a bundle, call it with an image, `check` it on the machine at hand."""

import importlib
from typing import TYPE_CHECKING, Any

from .axes import Range
from .bundle import Bundle
from .contract import Contract, Input, Output
from .detection_head import DetectionHead
from .device import SessionOptions
from .errors import AlteredError, BundleError, BusyError, ContractError, DeviceError, EdgeportError, FormatError, ImageError, InputError
from .loading import load
from .model import Model
from .pixels import Pixels
from .predictions import Detections, Prediction, Segmentation

if TYPE_CHECKING:
    from .evaluation import Example, evaluate
    from .scorers import Quality

__version__ = "0.1.0"

__all__ = [
    "AlteredError",
    "Bundle",
    "BundleError",
    "BusyError",
    "Contract",
    "ContractError",
    "DetectionHead",
    "Detections",
    "DeviceError",
    "EdgeportError",
    "Example",
    "FormatError",
    "ImageError",
    "Input",
    "InputError",
    "Model",
    "Output",
    "Pixels",
    "Prediction",
    "Quality",
    "Range",
    "Segmentation",
    "SessionOptions",
    "evaluate",
    "load",
]


_LATER = {"Quality": "scorers", "Example": "evaluation", "evaluate": "evaluation"}  # a process that predicts starts without them


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
