"""Notes that outlive a process: two deaths of a chunk make it careful, two at an image give that image up, and an error is no death."""

from pathlib import Path

import pytest

from edgeport_runtime.errors import InputError
from edgeport_runtime.mapping.deaths import Deaths


def died(notes: Path, *images: int) -> None:
    """A process that ended after it began these images."""
    deaths = Deaths(notes)
    deaths.__enter__()
    for image in images:
        assert not deaths.gives_up(image)


def test_two_deaths_of_a_chunk_then_two_of_an_image(tmp_path: Path) -> None:
    notes = tmp_path / "n.txt"
    died(notes)
    assert not Deaths(notes).goes_one_by_one
    died(notes)
    assert Deaths(notes).goes_one_by_one and Deaths(notes).images == {}
    died(notes, 0, 1, 2)
    died(notes, 0, 1, 2)
    assert Deaths(notes).images == {2: 2}  # not those before it, which were answered
    with Deaths(notes) as deaths:
        assert [deaths.gives_up(image) for image in range(4)] == [False, False, True, False]
    with Deaths(notes) as again:  # the next call gives it up at once
        assert again.goes_one_by_one and again.gives_up(2)


def test_a_chunk_that_is_answered_leaves_no_notes(tmp_path: Path) -> None:
    notes = tmp_path / "n.txt"
    died(notes)
    died(notes)
    with Deaths(notes) as deaths:
        assert not deaths.gives_up(0)
    assert not notes.exists()


@pytest.mark.parametrize("deaths_before", [0, 1, 2])
def test_an_error_is_no_death(deaths_before: int, tmp_path: Path) -> None:
    notes = tmp_path / "n.txt"
    for _ in range(deaths_before):
        died(notes)
    before = notes.read_text() if notes.exists() else None
    with pytest.raises(KeyboardInterrupt), Deaths(notes) as deaths:
        deaths.note("0")
        raise KeyboardInterrupt
    assert (notes.read_text() if notes.exists() else None) == before


def test_notes_that_were_torn_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "n.txt").write_bytes(b"try\n1\n\0\0\xff\ntry\n")
    assert Deaths(tmp_path / "n.txt").images == {1: 1} and not Deaths(tmp_path / "n.txt").goes_one_by_one


def test_notes_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"), Deaths(tmp_path / "missing" / "n.txt"):
        pass
