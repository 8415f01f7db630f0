"""Errors of the training side, branches of the runtime's tree.

    EdgeportError
    ├── CheckpointError      a checkpoint is missing, damaged, or of another network
    ├── DataError            a data set is unknown, unreachable, empty or of another layout
    ├── NetworkError         a network is unknown, or cannot be built from its arguments
    └── TrainingError        a training diverged

Each message says what was expected, what came, and what to do.
"""

from edgeport_runtime import EdgeportError


class CheckpointError(EdgeportError):
    """A checkpoint cannot be read, or does not fit the network; every key that differs is listed."""


class DataError(EdgeportError):
    """A data set is unknown, cannot be downloaded, or is not laid out as it should be."""


class TrainingError(EdgeportError):
    """A training diverged: its loss is no number any more."""


class NetworkError(EdgeportError):
    """A network is unknown, or its arguments or pretrained weights cannot be used."""
