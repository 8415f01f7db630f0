"""One folder for all temporary files of an export, also those of other libraries, so that a killed one leaves a folder that the next one knows and removes."""

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from edgeport_runtime.file_lock import locked

PREFIX = "edgeport-scratch-"
LOCK = "lock"


class _Scratch:
    """The folder of this process while exports run in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._users = 0
        self.before: str | None = None  # tempfile's own choice

    def enter(self) -> None:
        """Make the folder for the first user."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self.before = tempfile.gettempdir()
                remove_left(Path(self.before))
                folder = tempfile.mkdtemp(prefix=PREFIX)
                self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
                self._stack.enter_context(locked(Path(folder) / LOCK))
                tempfile.tempdir = folder

    def leave(self) -> None:
        """Remove it after the last one."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                tempfile.tempdir, self.before = self.before, None
                self._stack.close()


_SCRATCH = _Scratch()


@contextmanager
def scratch() -> Iterator[None]:
    """Python's temporary files lie in one folder meanwhile. Folders of exports that were killed are removed first."""
    _SCRATCH.enter()
    try:
        yield
    finally:
        _SCRATCH.leave()


def lasting_folder() -> str:
    """For what must outlive the export: a log that a message names."""
    return _SCRATCH.before or tempfile.gettempdir()


def remove_left(parent: Path) -> None:
    """Remove the folders of exports that have ended without removing them."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError), locked(folder / LOCK) as free:  # another user's cannot be opened
            if free:
                shutil.rmtree(folder, ignore_errors=True)
