"""A folder that appears whole or not at all: staged beside its place, flushed, then renamed in one step."""

import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeport_export.errors import OutputError

RENAME_EXCHANGE = 2  # linux/fs.h: swap two paths atomically
AT_FDCWD = -100


@contextmanager
def staged(out: Path, *, force: bool) -> Iterator[Path]:
    """Yield an empty folder beside `out`; on a clean exit it becomes `out`, on any other it disappears.

    Raises OutputError if `out` exists and `force` is not set, or the place cannot be written to.
    """
    free_place(out, force=force)
    staging = _sibling(out, "staging")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)  # what a killed process left
        staging.mkdir()
    except OSError as error:
        raise OutputError(f"{out}: the bundle cannot be written there ({error.strerror})") from error
    try:
        yield staging
        _flush(staging)
        _publish(staging, out)
    except OSError as error:
        raise OutputError(f"{out}: the bundle cannot be written ({error.strerror}); nothing was left there") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def free_place(out: Path, *, force: bool) -> Path:
    """`out`, if a bundle may be written there. A swap that was interrupted is repaired first.

    Raises OutputError if `out` exists and `force` is not set, if it is no bundle, or if its folder cannot be written to.
    """
    _repair(out)
    if out.is_file():
        raise OutputError(f"{out} is a file; give another folder for the bundle (out, --out)")
    if out.exists() and not force:
        raise OutputError(f"{out} exists already; give another folder, or replace it (force=True, --force)")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not os.access(parent, os.W_OK | os.X_OK) or not _takes_files(parent):
        raise OutputError(f"{out}: {parent} cannot be written to; give another folder (out, --out)")
    if out.exists() and any(out.iterdir()) and not (out / "manifest.json").exists():
        raise OutputError(f"{out} exists and is no bundle, so force does not replace it; give another folder (out, --out)")
    return out


def _takes_files(folder: Path) -> bool:
    """Found out by doing it: root may write everywhere, but not into /proc or a read-only mount."""
    try:
        with tempfile.TemporaryDirectory(prefix=".edgeport-", dir=folder):
            return True
    except OSError:
        return False


def _repair(out: Path) -> None:
    """If a swap was interrupted between its two renames, the old bundle lies beside its place: put it back."""
    old = _sibling(out, "old")
    if old.exists() and not out.exists():
        old.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _sibling(out: Path, role: str) -> Path:
    return out.parent / f".{out.name}.{role}"


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _publish(staging: Path, out: Path) -> None:
    if not out.exists():
        staging.rename(out)
        return
    if _exchange(staging, out):
        return  # the old bundle now lies in the staging folder, which the caller removes
    old = _sibling(out, "old")
    out.rename(old)
    staging.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step if the system can (Linux 3.15, glibc 2.28); False if it cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if rename(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OutputError(f"{second}: the bundle cannot be replaced ({os.strerror(number)})")
