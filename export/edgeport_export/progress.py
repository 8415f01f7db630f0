"""How long work tells how far it is, without knowing who watches."""

from collections.abc import Callable
from typing import Protocol


class Watch(Protocol):
    """Called with a stage's name, how much of it is done and of how much; `note` is a short figure to show beside it."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None: ...


def unwatched(stage: str, done: int, total: int, note: str = "") -> None:
    """For callers who do not want to know."""


def counting(watch: Watch, stage: str, total: int) -> Callable[[int], None]:
    """A function that is told how many more are done, and passes on the sum."""
    done = 0

    def step(more: int) -> None:
        nonlocal done
        done += more
        watch(stage, done, total)

    watch(stage, 0, total)
    return step
