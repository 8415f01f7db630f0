"""How an image becomes the pixels that a network is fed."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

from .axes import is_whole

Resize = Literal["stretch", "crop", "letterbox", "keep"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
CHANNELS = {"RGB": 3, "L": 1}
LARGEST_PX = 2**28  # of an input, which is made in memory whatever the image


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """How an image becomes the uint8 pixels a network is fed, and how the graph normalizes them.

    `height`, `width`: the size in pixels that the network is used at unless the caller names another.
    `mode`: "RGB" (3 channels) or "L" (gray, 1 channel).
    `resize`: "stretch" to height x width; "crop": the shorter side to `resize_shorter_px`, which only this one takes, then the center;
        "letterbox": fit inside, padded with `fill`; "keep": the image's own size.
    `interpolation`: Pillow's filter, antialiased whenever the image shrinks.
    `mean`, `std`: per channel, for pixels scaled to 0..1: the network sees (pixel / 255 - mean) / std. Left out, they are 0 and 1.
    """

    height: int
    width: int
    mode: Literal["RGB", "L"] = "RGB"
    resize: Resize = "stretch"
    resize_shorter_px: int | None = None
    interpolation: Interpolation = "bilinear"
    fill: int = 114
    mean: tuple[float, ...] = None  # type: ignore[assignment]  # a tuple from here on: see __post_init__
    std: tuple[float, ...] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        channels = CHANNELS.get(self.mode, 3) if isinstance(self.mode, str) else 3
        for name, value in (("mean", 0.0), ("std", 1.0)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, (value,) * channels)

    @property
    def channels(self) -> int:
        """3 for RGB, 1 for gray."""
        return CHANNELS[self.mode]

    def faults(self) -> list[str]:
        """What is wrong with it, in words; empty if nothing is."""
        sides = {name: getattr(self, name) for name in ("height", "width")}
        found = [f"pixels.{name} must be a whole number of at least 1, got {size!r}" for name, size in sides.items() if not is_whole(size) or size < 1]
        if not found and self.height * self.width > LARGEST_PX:
            found.append(f"pixels of {self.height}x{self.width} are more than {LARGEST_PX:,}")
        for name, given in (("mean", self.mean), ("std", self.std)):
            if not isinstance(given, tuple | list) or not all(isinstance(each, Real) for each in given):
                return [*found, f"pixels.{name} must be a tuple of numbers, one for each channel, got {given!r}"]
        for name, allowed in (("mode", tuple(CHANNELS)), ("resize", get_args(Resize)), ("interpolation", get_args(Interpolation))):
            if getattr(self, name) not in allowed:
                found.append(f"pixels.{name} must be one of {list(allowed)}, got {getattr(self, name)!r}")
        for name in ("mean", "std"):
            if self.mode in CHANNELS and len(getattr(self, name)) != self.channels:
                found.append(f"pixels.{name} must have {self.channels} values for mode {self.mode}, got {len(getattr(self, name))}")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)):
            found.append(f"pixels.mean and pixels.std must be finite, got {self.mean} and {self.std}")
        elif any(not value > 0 for value in self.std):
            found.append(f"pixels.std must be above 0, got {self.std}")
        return [*found, *self._resize_faults()]

    def _resize_faults(self) -> list[str]:
        found, shorter_px = [], self.resize_shorter_px
        if not (shorter_px is None if self.resize != "crop" else isinstance(shorter_px, int) and shorter_px >= 1):
            found.append(f"pixels.resize_shorter_px must be at least 1 if resize is 'crop', and None otherwise, got {shorter_px!r}")
        if not 0 <= self.fill <= 255:
            found.append(f"pixels.fill must be in 0..255, got {self.fill}")
        return found
