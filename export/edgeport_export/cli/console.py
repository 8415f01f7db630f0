"""Output for people: progress bars for anything that takes time, tables for results."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from edgeport_export.progress import ProgressCallback

out = Console(soft_wrap=True, highlight=False, emoji=False)  # my.module:two:three is no emoji
err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


@contextmanager
def progress_display(title: str) -> Iterator[ProgressCallback]:
    """Yield a callback that shows one bar for each stage, on stderr, gone when the block ends; a line for each if that is no terminal."""
    if not err.is_terminal:
        yield _lines(title)
        return
    stage, figures = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[note]}", markup=False)
    columns = (SpinnerColumn(), stage, BarColumn(bar_width=30), figures, TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int, note: str | None = None) -> None:
            if stage not in tasks:
                for earlier in tasks.values():
                    progress.update(earlier, completed=1, total=1)
                tasks[stage] = progress.add_task(f"{title}: {stage}", total=total, note="")
            progress.update(tasks[stage], completed=done, total=total if total > 1 else None, note=f"{done}/{total}  {note or ''}" if total > 1 else note or "")

        yield report


def _lines(title: str) -> ProgressCallback:
    seen: set[str] = set()

    def report(stage: str, done: int, total: int, note: str | None = None) -> None:
        if stage not in seen:
            seen.add(stage)
            err.print(f"{title}: {stage}", markup=False)

    return report


def say(text: str) -> None:
    """Print one line as it is: a path may hold brackets, which rich would take for markup."""
    out.print(text, markup=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """Print one table on stdout, at its full width: a cut figure is worse than a long line."""
    drawn = Table(title=Text(title) if title else None, title_justify="left")
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
    wide = Console(width=max(200, out.width), highlight=False) if not sys.stdout.isatty() else out
    wide.print(drawn)
