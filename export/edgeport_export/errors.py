"""Errors of the exporter, branches of the runtime's tree.

EdgeportError
└── ExportError          a bundle cannot be made
    ├── AxisError        an axis that should be dynamic came out fixed, or the network is bound to one size
    ├── ParityError      a variant disagrees with PyTorch
    └── OutputError      the folder to write to exists, or cannot be written
"""

from edgeport_runtime import EdgeportError


class ExportError(EdgeportError):
    """A bundle cannot be made from this model; nothing was written."""


class AxisError(ExportError):
    """A promised dynamic axis is fixed in the graph, or the network cannot be traced with it."""


class ParityError(ExportError):
    """A variant disagrees with PyTorch beyond what rounding explains."""


class OutputError(ExportError):
    """The bundle's folder exists already, or cannot be written."""
