"""Run edgeport bundles without PyTorch: `load` a bundle, call it with an image, `check` it on the machine at hand."""

from .bundle import Bundle
from .check import CheckReport
from .contract import Contract, Input, Output, Pixels, Range
from .device import SessionOptions
from .errors import AlteredError, BundleError, BusyError, ContractError, DeviceError, EdgeportError, FormatError, ImageError, InputError
from .evaluation import Example, evaluate
from .loading import load
from .model import Model
from .predictions import Prediction, Segmentation
from .tasks import Quality

__version__ = "0.1.0"

__all__ = [
    "AlteredError",
    "Bundle",
    "BundleError",
    "BusyError",
    "CheckReport",
    "Contract",
    "ContractError",
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


def __dir__() -> list[str]:
    return __all__
