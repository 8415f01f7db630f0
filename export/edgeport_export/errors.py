"""Errors of the exporter, branches of the runtime's tree.

EdgeportError
└── ExportError          a bundle cannot be made
    ├── AxisError        an axis that should be dynamic came out fixed
    ├── PreflightError   something in the network would make its graph wrong
    ├── NetworkFailure   the network itself fails in PyTorch, at a size that the contract promises
    ├── NoIntegerProducts  nothing in the network can run as integers
    ├── ParityError      a variant disagrees with PyTorch
    └── OutputError      the folder to write to exists, or cannot be written
"""

from edgeport_runtime import EdgeportError


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
