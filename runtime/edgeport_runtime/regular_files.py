"""Reading files that strangers name: only regular ones, because a pipe, a socket or a device may never end, or wait for ever."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotRegularError(OSError):
    """`kind`: what it is instead."""

    def __init__(self, kind: str) -> None:
        super().__init__(0, f"it is {kind}, not a file")
        self.kind = kind


class TooLargeError(OSError):
    """Its `strerror` says how large it is."""


def open_regular(path: str | Path, *, links: bool = True) -> BinaryIO:
    """Open a regular file for reading, without waiting. `links`: whether the last part of the path may be a symbolic link.

    Raises NotRegularError, or another OSError.
    """
    _require_regular(os.stat(path) if links else os.lstat(path))  # noqa: PTH116  # before it is opened: opening a device may do something
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags if links else flags | getattr(os, "O_NOFOLLOW", 0))
    try:
        _require_regular(os.fstat(descriptor))  # it may have been replaced meanwhile
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _require_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
        raise NotRegularError(kind)


def what_is(path: str | Path) -> str | None:
    """ "a file", "a folder" or what else is there, in words; None if there is nothing, or it cannot be looked at."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return "a file" if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "no regular file")


MOST_TEXT_BYTES = 2**28  # of annotations, plans, labels, rows


def read_text(path: str | Path, *, errors: str = "strict") -> str:
    """A text in UTF-8 that a user names. Raises OSError or UnicodeDecodeError."""
    return read_regular(path, MOST_TEXT_BYTES).decode("utf-8", errors=errors)


def read_regular(path: str | Path, most_bytes: int, *, links: bool = True) -> bytes:
    """All of a regular file of at most `most_bytes`. Raises NotRegularError, TooLargeError, or another OSError."""
    with open_regular(path, links=links) as file:
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > most_bytes else file.read(most_bytes + 1)  # what grows meanwhile is not read for ever
    if max(size, len(data)) > most_bytes:
        raise TooLargeError(0, f"it has {max(size, len(data)):,} bytes, and at most {most_bytes:,} are read")
    return data
