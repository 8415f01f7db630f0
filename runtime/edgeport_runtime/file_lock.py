"""Which process works in a place. The system frees a lock when its process ends, however it ends, so a killed one holds none."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on this system: then nothing is locked
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock that this file stands for. The file is made, and removed at the end. Yields False if another process holds it.

    Where the file system knows no locks, everybody gets it. Raises OSError if the file cannot be made.
    """
    descriptor = _taken(path)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            path.unlink()  # before the lock is free: see _taken
        os.close(descriptor)


def _taken(path: Path) -> int | None:
    """The open file; None if another process holds its lock. The last owner may have removed the file between our opening and our locking it."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        if not _lock(descriptor):
            os.close(descriptor)
            return None
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        found, held = path.stat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)
