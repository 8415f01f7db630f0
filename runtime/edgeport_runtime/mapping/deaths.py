"""Which image ends the process that answers it: notes in a file beside the answers, which outlive the process."""

import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

from edgeport_runtime.errors import InputError, first_line

TRY = "try"  # a line in the notes; those after it are images that were begun one by one, by their place in the chunk
MOST_DEATHS = 2  # that a chunk may cost before its images are answered one by one, and then an image before it is given up


class Deaths:
    """What a chunk cost until now, from its file of notes, and a note of this try. Use it as a context: a try that ends, well or by an error, was no death.

    `goes_one_by_one`: whether answering all images at once ended too many processes. `images`: by an image's place, tries one by one that ended at it.
    Raises InputError.
    """

    def __init__(self, notes: Path) -> None:
        self._notes, self._before = notes, notes.read_text(encoding="utf-8", errors="replace") if notes.exists() else ""
        tries = [[int(each) for each in text.split() if each.isdecimal()] for text in self._before.split(TRY)[1:]]
        self.gave_up = False
        self.goes_one_by_one = sum(not begun for begun in tries) >= MOST_DEATHS
        self.images = Counter(begun[-1] for begun in tries if begun)

    def __enter__(self) -> "Deaths":
        self.note(TRY)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Of an image that was given up the notes stay, so that the next call gives it up at once."""
        with suppress(OSError):
            if self._before and (kind is not None or self.gave_up):
                self._notes.write_text(self._before, encoding="utf-8")
            else:
                self._notes.unlink(missing_ok=True)

    def gives_up(self, place: int) -> bool:
        """Whether an image ended too many processes; otherwise it is noted as begun."""
        if self.images[place] >= MOST_DEATHS:
            self.gave_up = True
        else:
            self.note(str(place))
        return self.images[place] >= MOST_DEATHS

    def note(self, line: str) -> None:
        """A line that is there although the process dies right after it."""
        try:
            with self._notes.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{self._notes}: this cannot be written ({first_line(error)}); free some space there, and go on with --resume") from error
