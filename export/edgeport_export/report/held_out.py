"""The held-out images that a bundle was judged on, which it does not hold: whether somebody gave the same ones again, and what is known of each."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from edgeport_export.network.image_hash import pixels_sha256
from edgeport_runtime import Example, InputError
from edgeport_runtime.images import Pixel, prepare

from .facts import BundleFacts

FIRST = 8  # among which the golden images are; an export takes fewer


class HeldOutImages:
    """All that the export was given, in its order; several guesses may be tried, as a folder may have been halved.

    Raises InputError if none can be these, as far as the bundle tells: their number, the golden images, and hashes of those whose label changed.
    """

    def __init__(self, facts: BundleFacts, guesses: Sequence[Sequence[Example]]) -> None:
        self.facts = facts
        faults = []
        for examples in guesses:
            self.examples = examples
            self.prepared = cache(self._prepared)
            if (fault := self._fault()) is None:
                return
            faults.append(fault)
        raise InputError(f"these are not the held-out images that {facts.name} was judged on: {faults[0] if faults else 'there are none'}")

    def truth_of(self, pixels: Pixel) -> Any:
        """Of a golden image; None if it was not held out."""
        for index in range(min(FIRST, len(self.examples))):
            if self.prepared(index).shape == pixels.shape and (self.prepared(index) == pixels).all():
                return self.examples[index].truth
        return None

    def of_row(self, row: Mapping[str, Any]) -> Pixel | None:
        """The image of a row of `changed_images`; None if the row has no hash, as in older bundles."""
        return self.prepared(int(row["image"])) if "pixels_sha256" in row else None

    def _prepared(self, index: int) -> Pixel:
        return prepare(self.examples[index].source, self.facts.manifest.contract.pixels)

    def _fault(self) -> str | None:
        expected = self.facts.held_out
        if len(self.examples) != expected:
            return f"there were {expected}, and {len(self.examples)} were given"
        cases = [case for case in self.facts.manifest.golden if case.sizes is None]
        if not self.examples or not cases or self.truth_of(self.facts.bundle.tensor(cases[0].inputs[0])[0]) is None:
            return "the first golden image is none of the first that were given"
        for row in [each for rows in self.facts.changed_images.values() for each in rows if "pixels_sha256" in each]:
            number = row.get("image")
            if not (isinstance(number, int) and 0 <= number < expected and pixels_sha256(self.prepared(number)) == row["pixels_sha256"]):
                return f"the one with the number {number} is another"
        return None
