"""How many images one run may take, so that its memory stays within bounds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .contract import Contract

MEMORY_MB = 1024  # for the intermediate results of one run, if the caller names no other
UNMEASURED = 512  # bytes for each pixel of an image, if the evidence does not tell: 1.5 times ResNet50's
LEAST = 64  # bytes for each pixel: what a process took is too coarse to tell less


@dataclass(frozen=True, kw_only=True)
class RunBounds:
    """`max_batch`: images of one run. `max_memory_mb`: for its intermediate results. `bytes_per_pixel`: that one image takes, measured or assumed."""

    max_batch: int
    max_memory_mb: float = MEMORY_MB
    bytes_per_pixel: float = UNMEASURED

    def images(self, height: int, width: int) -> int:
        """The most images of this size that one run takes; at least one, since an image cannot be halved."""
        fitting = self.max_memory_mb * 2**20 / (self.bytes_per_pixel * height * width)
        return max(1, min(self.max_batch, int(fitting)))


def measured_bytes_per_pixel(evidence: Mapping[str, Any], precision: str, contract: Contract) -> float | None:
    """From the most memory that the bundle's benchmark held at its two batch sizes. None if it does not tell."""
    image = contract.inputs[0].pixels
    peaks: dict[int, int] = {}
    for entry in (evidence.get("speed") or {}).get("latencies") or []:
        held = (entry.get(precision) or {}).get("peak_bytes")
        if held:
            peaks[entry["batch"]] = held
    if image is None or len(peaks) < 2:
        return None
    small, large = min(peaks), max(peaks)
    return max(float(LEAST), (peaks[large] - peaks[small]) / ((large - small) * image.height * image.width))
