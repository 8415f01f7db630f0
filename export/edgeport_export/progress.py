"""The callback by which work that takes long reports its progress, without knowing who listens."""

from collections.abc import Callable
from typing import Protocol


class ProgressCallback(Protocol):
    """Called with a stage's name, how much of it is done, and of how much; `note` is a short figure to show beside it."""

    def __call__(self, stage: str, done: int, total: int, note: str | None = None) -> None: ...


def no_progress(stage: str, done: int, total: int, note: str | None = None) -> None:
    """For callers who do not listen."""


def counter(progress: ProgressCallback, stage: str, total: int) -> Callable[[int], None]:
    """A function that takes how many more are done, and reports the sum."""
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        progress(stage, done, total)

    progress(stage, 0, total)
    return advance
