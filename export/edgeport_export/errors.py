"""Errors of the exporter, branches of the runtime's tree.

    EdgeportError
    └── ExportError          a bundle cannot be made
        ├── AxisError        an axis that should be dynamic came out fixed
        ├── PreflightError   something in the network would make its graph wrong
        ├── NetworkFailure   the network itself fails in PyTorch, at a size that the contract promises
        ├── NoIntegerProducts  nothing in the network can run as integers
        ├── ParityError      a variant disagrees with PyTorch
        └── OutputError      the folder to write to exists, or cannot be written

Each message says what was expected, what came, and what to do.
"""

import tempfile

from edgeport_runtime import EdgeportError

from .scratch import lasting_folder

LONGEST_MESSAGE = 400  # characters; what says more goes to a log file


def shortened(text: str, most: int) -> str:
    """The text in at most so many characters, cut at a word."""
    return text if len(text) <= most else text[: most - 1].rpartition(" ")[0] + "…"


def logged(text: str, details: str, most: int = LONGEST_MESSAGE) -> str:
    """The text in at most `most` characters. If it is cut, `details` go to a log file, which the message names at its end."""
    if len(text) <= most:
        return text
    with tempfile.NamedTemporaryFile("w", prefix="edgeport-", suffix=".log", dir=lasting_folder(), delete=False, encoding="utf-8") as file:
        file.write(details + "\n")
    place = f" (all of it: {file.name})"
    return shortened(text, most - len(place)) + place


class ExportError(EdgeportError):
    """A bundle cannot be made from this model; nothing was written."""


class AxisError(ExportError):
    """A promised dynamic axis is fixed in the graph."""


class PreflightError(ExportError):
    """The network would make a wrong graph, or none; the message lists every finding with its remedy."""


class NetworkFailure(ExportError):  # noqa: N818  # it is the network's error, not ours
    """The network fails in PyTorch, before any export: it does not accept a size that the contract promises."""


class NoIntegerProducts(ExportError):  # noqa: N818  # it is what the network is, and no fault
    """No product of the network can run as integers, so there is no int8 variant of it."""


class ParityError(ExportError):
    """A variant disagrees with PyTorch beyond what rounding explains."""


class OutputError(ExportError):
    """The bundle's folder exists already, or cannot be written."""
