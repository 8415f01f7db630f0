"""The sizes that a dynamic axis promises."""

from dataclasses import dataclass
from numbers import Integral


def is_whole(value: object) -> bool:
    """Whether it is a whole number, Python's or numpy's; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class Range:
    """The sizes that an axis promises: from `low` to `high`, both included, in steps of `step`."""

    low: int
    high: int
    step: int = 1

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and self.low <= size <= self.high and (size - self.low) % self.step == 0

    def __str__(self) -> str:
        return f"{self.low}..{self.high}" + (f" in steps of {self.step}" if self.step > 1 else "")

    def faults(self) -> list[str]:
        """What is wrong with it, in words; empty if nothing is."""
        good = all(map(is_whole, (self.low, self.high, self.step))) and 1 <= self.low <= self.high and self.step >= 1
        return [] if good else [f"the range {self}: expected 1 <= low <= high and a step of at least 1"]

    def nearest(self, size: int) -> int:
        """The promised size that is nearest to `size`."""
        steps = round((min(max(size, self.low), self.high) - self.low) / self.step)
        return self.low + min(steps, (self.high - self.low) // self.step) * self.step


def image_axes(*, smallest_px: int, largest_px: int = 1024, largest_batch: int = 64) -> dict[str, Range]:
    """Ranges for the three axes of an image input."""
    side = Range(low=smallest_px, high=largest_px)
    return {"batch": Range(low=1, high=largest_batch), "height": side, "width": side}
