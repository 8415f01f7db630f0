"""Answering one chunk of images, in whichever process: every image gets a row, whatever is wrong with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeport_runtime.decoding import ImageSource
from edgeport_runtime.errors import BundleError, EdgeportError, ImageError, first_line
from edgeport_runtime.many_files import fingerprint
from edgeport_runtime.model import Model
from edgeport_runtime.predictions import Answer, Detections

from .answers import Row, read_rows, row, write_rows
from .deaths import Deaths
from .job import Job
from .sources import read_chunk

Named = tuple[str, ImageSource | ImageError]  # an image and what to call it
Answered = Answer | ImageError


@dataclass(frozen=True, kw_only=True)
class Done:
    """What became of a chunk. `fault`: why none of it could be answered; empty if it was."""

    number: int
    rows: int = 0
    errors: int = 0
    fault: str = ""


class Worker:
    """One model, and the chunks of its job. Raises BundleError if the job is another model's."""

    def __init__(self, model: Model, job: Job) -> None:
        if fingerprint(model) != job.answering.model:
            raise BundleError(
                f"this job is answered by {job.answering.model} (manifest and precision), and here it would be {fingerprint(model)}; "
                "name the precision if machines differ"
            )
        self._model, self._job = model, job

    def answer(self, number: int) -> Done:
        """Write a chunk's rows, unless they are there. Of rows with errors only those images are answered again. Raises InputError."""
        earlier = self._job.rows(number)
        if earlier is None or earlier[1]:
            kept = {index: each for index, each in enumerate(read_rows(self._job.place(number)) if earlier else ()) if each["error"] is None}
            with Deaths(self._job.begun(number)) as deaths:
                rows = self._rows(number, kept, deaths)
                about = {"model": self._job.answering.model, "task": self._job.answering.task}
                write_rows(rows, self._job.place(number), self._job.answering.task, about)
            earlier = len(rows), sum(each["error"] is not None for each in rows)
        return Done(number=number, rows=earlier[0], errors=earlier[1])

    def _rows(self, number: int, kept: Mapping[int, Row], deaths: Deaths) -> list[Row]:
        """All images at once, as long as that costs no process its life; after that one by one, until it is known which of them does."""
        rows: list[Row] = []
        for images in read_chunk(self._job.chunks[number]):
            first = len(rows)
            todo = [place for place in range(len(images)) if first + place not in kept]
            if deaths.goes_one_by_one:
                answers = [self._carefully(images[place], first + place, deaths) for place in todo]
            else:
                answers = self._answers([images[place] for place in todo])
            found = {first + place: row(images[place][0], answer) for place, answer in zip(todo, answers, strict=True)}
            rows += [found[place] if place in found else kept[place] for place in range(first, first + len(images))]
        return rows

    def _carefully(self, named: Named, place: int, deaths: Deaths) -> Answered:
        """An image of a chunk that ended processes. `place`: its own in the chunk."""
        if deaths.gives_up(place):
            return ImageError(f"{named[0]}: {deaths.images[place]} processes ended while they answered this image")
        return self._answers([named])[0]

    def _answers(self, images: Sequence[Named]) -> list[Answered]:
        """An answer or an error for each. What no single image is to blame for, a lack of memory say, is tried again with one after the other."""
        good = {place: source for place, (_, source) in enumerate(images) if not isinstance(source, ImageError)}
        answering = self._job.answering
        try:
            answers: Sequence[Answered] = self._model.batch(list(good.values()), top=answering.top, errors="return") if good else []
        except (EdgeportError, MemoryError, RuntimeError) as error:
            if len(images) > 1:
                return [self._answers([each])[0] for each in images]
            answers = [ImageError(f"{images[0][0]}: it cannot be answered ({first_line(error)})")]
        found: dict[int, Any] = {place: source for place, (_, source) in enumerate(images)} | dict(zip(good, answers, strict=True))
        return [each.at_least(answering.min_score) if isinstance(each, Detections) and answering.min_score is not None else each for each in found.values()]
