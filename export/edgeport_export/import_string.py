"""The object that `my.package:name` stands for: the user's own code, seen from the folder that the command is given in."""

import importlib
import sys
from pathlib import Path
from typing import Any


def name_of(thing: Any) -> str:
    """The import string of a function; of an object without a name of its own, its class's."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"


def imported(name: str) -> Any:
    """The attribute after the colon, which may have dots. Raises ImportError, AttributeError, ValueError."""
    module, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found
