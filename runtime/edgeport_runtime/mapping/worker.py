"""Answering one chunk of images, in whichever process: every image gets a row, whatever is wrong with it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeport_runtime.errors import BundleError, EdgeportError, ImageError, first_line
from edgeport_runtime.many_files import CHUNK, FILES, fingerprint
from edgeport_runtime.model import Model
from edgeport_runtime.predictions import Answer, Detections
from edgeport_runtime.tasks import find_task

from .answers import Row, read_rows, row, write_rows
from .deaths import Deaths
from .job import Answering, Part
from .sources import Chunk
from .tables import Named, read_rows_of

Answered = Answer | ImageError


@dataclass(frozen=True, kw_only=True)
class Done:
    """What became of a part. `fault`: why none of it could be answered; empty if it was."""

    number: int
    rows: int = 0
    errors: int = 0
    fault: str = ""


class Worker:
    """One model, and the parts of a job that it is given. Raises BundleError if the job is another model's."""

    def __init__(self, model: Model, answering: Answering) -> None:
        if fingerprint(model) != answering.model:
            raise BundleError(
                f"this job is answered by {answering.model} (manifest and precision), and here it would be {fingerprint(model)}; "
                "give all nodes the same bundle, and name the precision if machines differ"
            )
        self._model, self._answering = model, answering
        self._at_once = CHUNK if find_task(answering.task).file_suffix is None else FILES

    def answer(self, part: Part) -> Done:
        """Write a part's rows, unless they are there. Of rows with errors only those images are answered again. Raises InputError."""
        found = part.rows()
        if found is None or found[1]:
            kept = {index: each for index, each in enumerate(read_rows(part.place) if found else ()) if each["error"] is None}
            about = {"model": self._answering.model, "task": self._answering.task}
            with Deaths(part.notes) as deaths:
                write_rows(self._rows(part.chunk, kept, deaths), part.place, self._answering.task, about)
            found = part.rows() or (0, 0)
        return Done(number=part.number, rows=found[0], errors=found[1])

    def _rows(self, chunk: Chunk, kept: Mapping[int, Row], deaths: Deaths) -> Iterator[list[Row]]:
        """Some at once, as long as that costs no process its life; after that one by one, until it is known which image does."""
        first = 0
        for images in self._images(chunk):
            todo = [place for place in range(len(images)) if first + place not in kept]
            if deaths.goes_one_by_one:
                answers = [self._carefully(images[place], first + place, deaths) for place in todo]
            else:
                answers = self._answers([images[place] for place in todo])
            made = {first + place: row(images[place][0], answer) for place, answer in zip(todo, answers, strict=True)}
            yield [made[place] if place in made else kept[place] for place in range(first, first + len(images))]
            first += len(images)

    def _images(self, chunk: Chunk) -> Iterator[Sequence[Named]]:
        """By name, as many at once as may be in memory."""
        if not chunk.images:
            yield from read_rows_of(chunk.table, chunk.footer, chunk.group, chunk.first, chunk.rows, self._at_once)
        for start in range(0, len(chunk.images), self._at_once):
            yield [(image, image) for image in chunk.images[start : start + self._at_once]]

    def _carefully(self, named: Named, place: int, deaths: Deaths) -> Answered:
        """An image of a chunk that ended processes. `place`: its own in the chunk."""
        if deaths.gives_up(place):
            return ImageError(f"{named[0]}: {deaths.images[place]} processes ended while they answered this image alone")
        return self._answers([named])[0]

    def _answers(self, images: Sequence[Named]) -> list[Answered]:
        """An answer or an error for each. What no single image is to blame for, a lack of memory say, is tried again with one after the other."""
        good = {place: source for place, (_, source) in enumerate(images) if not isinstance(source, ImageError)}
        try:
            answers: Sequence[Answered] = self._model.batch(list(good.values()), top=self._answering.top, errors="return") if good else []
        except (EdgeportError, MemoryError, RuntimeError) as error:
            if len(images) > 1:
                return [self._answers([each])[0] for each in images]
            answers = [ImageError(f"{images[0][0]}: it cannot be answered ({first_line(error)})")]
        found: dict[int, Any] = {place: source for place, (_, source) in enumerate(images)} | dict(zip(good, answers, strict=True))
        least = self._answering.min_score
        return [each.at_least(least) if isinstance(each, Detections) and least is not None else each for each in found.values()]
