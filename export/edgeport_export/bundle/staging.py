"""A folder that appears whole or not at all: staged beside its place, flushed, then renamed in one step.

    .NAME.lock       while an export to NAME runs
    .NAME.staging    the new bundle, before it is whole
    .NAME.old        the old one, for an instant, on systems that cannot exchange two folders in one step

What a killed export leaves of these is removed, or put back in its place, by the next one. Folders that are made of bundles are written in the same way:
`Kind` says what a folder is, and by which file one knows it.
"""

import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edgeport_export.errors import OutputError
from edgeport_export.scratch import lasting_folder
from edgeport_runtime.file_lock import locked

RENAME_EXCHANGE = 2  # linux/fs.h: swap two paths atomically
AT_FDCWD = -100
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Kind:
    """Of folder. `word`: what to call it. `mark`: the file that each has, without which none is replaced."""

    word: str
    mark: str


BUNDLE = Kind("bundle", "manifest.json")


@contextmanager
def reserved(out: Path, *, force: bool, kind: Kind = BUNDLE) -> Iterator[Path]:
    """`out`, in which no other export may write meanwhile; if it is a link, what it points to.

    Raises OutputError as `free_place` does, if another export writes there, or if a disk becomes full.
    """
    out = free_place(out.resolve() if out.is_symlink() else out, force=force, kind=kind)
    missing = [folder for folder in out.absolute().parents if not folder.exists()]
    try:
        with _held(out, kind):
            _tidy(out)
            yield free_place(out, force=force, kind=kind)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OutputError(
            f"{out}: no {kind.word} was written, because a disk is full ({error.strerror}); free some space there, or in {lasting_folder()}"
        ) from error
    finally:
        for folder in missing:
            with suppress(OSError):  # it is not empty, because there is a bundle in it
                folder.rmdir()


@contextmanager
def _held(out: Path, kind: Kind) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            free = stack.enter_context(locked(_sibling(out, "lock")))
        except OSError as error:
            raise OutputError(f"{out}: the {kind.word} cannot be written there ({error.strerror})") from error
        if not free:
            raise OutputError(f"{out}: another export is writing there; wait until it ends, or give another folder (out, --out)")
        yield


@contextmanager
def staged(out: Path, kind: Kind = BUNDLE) -> Iterator[Path]:
    """Yield an empty folder beside `out`, which was reserved; on a clean exit it becomes `out`, on any other it disappears. Raises OutputError."""
    staging = _sibling(out, "staging")
    try:
        staging.mkdir()
        yield staging
        _flush(staging)
        _publish(staging, out)
    except OSError as error:
        raise OutputError(f"{out}: the {kind.word} cannot be written ({error.strerror}); nothing was left there") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def free_place(out: Path, *, force: bool, kind: Kind = BUNDLE) -> Path:
    """`out`, if a folder of this kind may be written there.

    Raises OutputError if `out` exists and `force` is not set, if it is another kind of folder, or if its folder cannot be written to.
    """
    if out.is_file():
        raise OutputError(f"{out} is a file; give another folder for the {kind.word} (out, --out)")
    if out.exists() and not force:
        raise OutputError(f"{out} exists already; give another folder, or replace it (force=True, --force)")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not os.access(parent, os.W_OK | os.X_OK) or not _takes_files(parent):
        raise OutputError(f"{out}: {parent} cannot be written to; give another folder (out, --out)")
    if out.exists() and any(out.iterdir()) and not (out / kind.mark).exists():
        raise OutputError(f"{out} exists and is no {kind.word}, so force does not replace it; give another folder (out, --out)")
    return out


def _takes_files(folder: Path) -> bool:
    """Found out by doing it: root may write everywhere, but not into /proc or a read-only mount."""
    try:
        with tempfile.TemporaryFile(dir=folder):  # on Linux it has no name, so a killed process leaves none
            return True
    except OSError:
        return False


def _tidy(out: Path) -> None:
    """Remove what a killed export left. If its swap was interrupted between two renames, the old bundle lies beside its place: put it back."""
    old = _sibling(out, "old")
    if old.exists() and not out.exists():
        old.rename(out)
    for role in ("old", "staging"):
        shutil.rmtree(_sibling(out, role), ignore_errors=True)


def _sibling(out: Path, role: str) -> Path:
    return out.parent / f".{out.name}.{role}"


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _flush_one(path)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(staging: Path, out: Path) -> None:
    if not out.exists():
        staging.rename(out)
    elif not _exchange(staging, out):  # else the old bundle now lies in the staging folder, which the caller removes
        old = _sibling(out, "old")
        out.rename(old)
        staging.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    with suppress(OSError):  # some file systems cannot
        _flush_one(out.parent)  # the renaming itself, so that it outlives a power cut


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
