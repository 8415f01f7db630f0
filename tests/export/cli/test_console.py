import io

import pytest
from rich.console import Console

from edgeport_export.cli import console


def test_a_line_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("[bold]out[/bold] my.module:two:three " + "x" * 300)
    assert capsys.readouterr().out == "[bold]out[/bold] my.module:two:three " + "x" * 300 + "\n"


def test_a_table_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(["engine", "ms"], [["a" * 120, 1.25], ["[red]b", "2"]], "the [title]")
    text = capsys.readouterr().out
    assert "a" * 120 in text and "[red]b" in text and "the [title]" in text and "1.25" in text


def test_each_stage_is_one_line_if_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=written, soft_wrap=True))
    with console.progress_display("exporting [x]") as progress:
        for done in range(3):
            progress("tracing", done, 3)
        progress("writing", 0, 1, "a note")
    assert written.getvalue() == "exporting [x]: tracing\nexporting [x]: writing\n"


def test_a_terminal_gets_bars_that_are_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=written, force_terminal=True, width=100))
    with console.progress_display("exporting cnn") as progress:
        progress("calibrating int8", 3, 8, "of the images")
        progress("timing", 0, 1)
    text = written.getvalue()
    assert "exporting cnn: timing" in text and text.endswith("\x1b[2K")  # the last thing that is written erases a line
