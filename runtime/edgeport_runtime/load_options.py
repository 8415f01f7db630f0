"""What `load` may be asked for, checked before anything is read."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .axes import is_whole
from .device import DEVICES, SessionOptions
from .errors import InputError
from .image_limits import LIMITS, ImageLimits
from .memory import MEMORY_MB

LATENCIES = ("normal", "lowest")
SessionFactory = Callable[[bytes], Any]


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What `load` was asked for; see there."""

    device: str = "cpu"
    precision: str = "auto"
    batch: int = 1
    threads: int | None = None
    latency: str = "normal"
    tf32: bool = False
    split_batch: bool | None = None
    max_batch: int | None = None
    max_memory_mb: float = MEMORY_MB
    session: SessionFactory | None = None
    image_limits: ImageLimits = LIMITS
    manifest_sha256: str | None = None

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise InputError(f"device must be one of {list(DEVICES)}, got {self.device!r}")
        if self.latency not in LATENCIES:
            raise InputError(f"latency must be one of {list(LATENCIES)}, got {self.latency!r}")
        if self.split_batch is not None and not isinstance(self.split_batch, bool):
            raise InputError(f"split_batch must be True, False, or None for what was measured, got {self.split_batch!r}")
        if self.max_batch is not None and (not is_whole(self.max_batch) or self.max_batch < 1):
            raise InputError(f"max_batch is a whole number of images, at least 1, got {self.max_batch!r}")
        if not isinstance(self.tf32, bool):
            raise InputError(f"tf32 must be True or False, got {self.tf32!r}")
        if not isinstance(self.max_memory_mb, int | float) or isinstance(self.max_memory_mb, bool) or not 0 < self.max_memory_mb < math.inf:
            raise InputError(f"max_memory_mb is a number of MB above 0, got {self.max_memory_mb!r}")
        if not isinstance(self.image_limits, ImageLimits):
            raise InputError(f"image_limits are ImageLimits, got {type(self.image_limits).__name__}")
        if self.manifest_sha256 is not None and not (isinstance(self.manifest_sha256, str) and re.fullmatch(r"\s*[0-9a-fA-F]{64}\s*", self.manifest_sha256)):
            raise InputError(f"manifest_sha256 is a hash of 64 hexadecimal digits, got {self.manifest_sha256!r}")
        if self.session is not None:
            self._require_own_session()

    def _require_own_session(self) -> None:
        if not callable(self.session):
            raise InputError(f"session is a function from the model's bytes to an InferenceSession, got {type(self.session).__name__}")
        if self.device != "cpu" or self.threads is not None or self.latency != "normal" or self.tf32 or self.split_batch:
            raise InputError("a session of your own brings its device with it: leave device, threads, latency, tf32 and split_batch out")

    def session_options(self, device: str) -> SessionOptions:
        """For `device`, "cpu" or "cuda"."""
        lowest = self.latency == "lowest"
        return SessionOptions(
            device=device,
            threads=self.threads,
            spinning=lowest,
            split_batch=self.split_batch is True,
            tf32=self.tf32 and (device == "cuda" or self.device == "cpu"),
        )
