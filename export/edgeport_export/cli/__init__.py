"""The command line `edgeport`: a thin skin over the functions that the package exports."""

from .app import main

__all__ = ["main"]
