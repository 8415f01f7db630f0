"""How many images one run may take, so that its memory stays within bounds, and when memory is given back."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .contract import Contract
from .threads import fork_safe_lock

MEMORY_MB = 1024  # for the intermediate results of one run, if the caller names no other
UNMEASURED = 512  # bytes for each pixel of an image, if the evidence does not tell: 1.5 times ResNet50's
REMEMBERED_RUNS = 16  # that say how large a usual run is
SPIKE = 4  # times a usual run
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
    try:  # nobody vouches for the evidence
        for entry in (evidence.get("speed") or {}).get("latencies") or []:
            held = (entry.get(precision) or {}).get("peak_bytes")
            if held:
                peaks[int(entry["batch"])] = int(held)
        if image is None or len(peaks) < 2:
            return None
        small, large = min(peaks), max(peaks)
        return max(float(LEAST), (peaks[large] - peaks[small]) / ((large - small) * image.height * image.width))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        return None


class SpikeWatch:
    """Tells after which runs memory is to be given back, which onnxruntime keeps for the largest run so far. Safe to use from several threads.

    A spike is SPIKE times as large as three in four of the last runs: one large image among small ones. Large runs that come often are usual.
    """

    def __init__(self) -> None:
        self._lock, self._last, self._largest = fork_safe_lock(), deque[int](maxlen=REMEMBERED_RUNS), 0

    def seen(self, size: int) -> bool:
        """`size`: of this run, in any unit. True if memory is to be given back at its end, because this run or one since then was a spike."""
        with self._lock:
            self._last.append(size)
            self._largest = max(self._largest, size)
            usual = sorted(self._last)[3 * (len(self._last) - 1) // 4]
            if self._largest <= SPIKE * usual:
                return False
            self._largest = usual
            return True
