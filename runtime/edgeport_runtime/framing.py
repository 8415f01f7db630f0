"""Where an image lies in the network's input, and the way back: a box that the network finds belongs to the source image."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .pixels import Pixels

SizePx = tuple[int, int]  # (height, width)


@dataclass(frozen=True, kw_only=True)
class Framing:
    """A source image is scaled, then laid into the network's input; what sticks out is cut off, and what stays free is filled.

    `source_px`, `scaled_px`, `network_px`: (height, width). `top`, `left`: of the scaled image in the network's input; negative if it is cropped.
    """

    source_px: SizePx
    scaled_px: SizePx
    network_px: SizePx
    top: int = 0
    left: int = 0

    @classmethod
    def of(cls, source_px: SizePx, pixels: Pixels, network_px: SizePx) -> "Framing":
        """As the contract's rule fits a source image into (height, width)."""
        if pixels.resize == "crop":
            scaled_px = _shorter(source_px, pixels, network_px)
            top, left = (_centered(side, wanted) for side, wanted in zip(scaled_px, network_px, strict=True))
            return cls(source_px=source_px, scaled_px=scaled_px, network_px=network_px, top=top, left=left)
        if pixels.resize == "letterbox":
            scale = min(network_px[1] / source_px[1], network_px[0] / source_px[0])
            scaled_px = max(1, round(source_px[0] * scale)), max(1, round(source_px[1] * scale))
            top, left = ((wanted - side) // 2 for side, wanted in zip(scaled_px, network_px, strict=True))
            return cls(source_px=source_px, scaled_px=scaled_px, network_px=network_px, top=top, left=left)
        return cls(source_px=source_px, scaled_px=source_px if pixels.resize == "keep" else network_px, network_px=network_px)

    def to_network(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Points (…, 2) or boxes (…, 4), in turns x and y in pixels of the source, as pixels of the network's input."""
        turns = points.shape[-1] // 2
        return np.asarray(points * np.tile(self._scales(), turns) + np.tile(self._offsets(), turns), np.float32)

    def to_source(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """The way back: pixels of the network's input as pixels of the source, without clipping."""
        turns = points.shape[-1] // 2
        return np.asarray((points - np.tile(self._offsets(), turns)) / np.tile(self._scales(), turns), np.float32)

    def clipped(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Points or boxes in pixels of the source, moved to its border if they lie outside."""
        return np.asarray(np.clip(points, 0, np.tile(np.array(self.source_px[::-1], np.float32), points.shape[-1] // 2)))

    @property
    def visible(self) -> tuple[int, int, int, int]:
        """The part of the source that the network sees: left, top, right, bottom in pixels of the source. All of it, unless it is cropped."""
        corners = np.array([0, 0, self.network_px[1], self.network_px[0]], np.float32)
        left, top, right, bottom = self.clipped(self.to_source(corners)).round().astype(int).tolist()
        return left, top, max(right, left + 1), max(bottom, top + 1)

    def _scales(self) -> NDArray[np.float32]:
        """Along x and y. Both sides are rounded, so they differ a little even if proportions are kept."""
        return np.array([self.scaled_px[1] / self.source_px[1], self.scaled_px[0] / self.source_px[0]], np.float32)

    def _offsets(self) -> NDArray[np.float32]:
        return np.array([self.left, self.top], np.float32)


def _shorter(source_px: SizePx, pixels: Pixels, network_px: SizePx) -> SizePx:
    """torchvision's Resize(int): the longer side is truncated, not rounded (383, not 384, for 640x427 at 256)."""
    assert pixels.resize_shorter_px is not None  # a contract says so
    shorter_px = round(pixels.resize_shorter_px * min(network_px) / min(pixels.height, pixels.width))
    longer_px = int(shorter_px * max(source_px) / min(source_px))
    return (longer_px, shorter_px) if source_px[1] <= source_px[0] else (shorter_px, longer_px)


def _centered(side: int, wanted: int) -> int:
    """torchvision's CenterCrop: a side that is too small is padded first, the smaller half before; then the middle is cut, halves to even."""
    page = max(side, wanted)
    return (page - side) // 2 - round((page - wanted) / 2)
