"""What an image may be, found out before its pixels are decoded. Images of strangers may lie, and a file of a kilobyte may ask for a gigabyte."""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from .axes import is_whole
from .errors import ImageError, InputError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MOST_SCANS = 200  # of a JPEG; ten are usual. Each goes over all pixels: 100 MB of small ones would take an hour
SMALLEST_TILE_PX = 2**20  # tiles of a TIFF up to this size are decoded whatever the image's own size
TILE_WIDTH, TILE_LENGTH, BITS_PER_SAMPLE = 322, 323, 258  # tags of TIFF
MOST_SEGMENTS, MOST_EXIF_SEGMENTS = 10_000, 16  # before the pixels of a JPEG; EXIF has one, and depth maps some hundred
APP1, START_OF_SCAN = 0xE1, 0xDA  # markers of JPEG
BLOCK = 2**20  # bytes that are read at once


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What an image may be.

    `max_file_mb`: size of the file. `max_px`: height times width. `max_frames`: of an animation or of a file of several pages, whose first one is
    answered; None takes any number, and nothing of them is read. `formats`: some of FORMATS, by Pillow's names.

    From twice 89,478,485 pixels on, Pillow refuses by itself: then PIL.Image.MAX_IMAGE_PIXELS has to be raised, too.
    Raises InputError.
    """

    max_file_mb: float = 100.0
    max_px: int = 89_478_485  # Pillow's own number, at which it only warns
    max_frames: int | None = None
    formats: tuple[str, ...] = FORMATS

    def __post_init__(self) -> None:
        if not isinstance(self.max_file_mb, int | float) or isinstance(self.max_file_mb, bool) or not 0 < self.max_file_mb < float("inf"):
            raise InputError(f"max_file_mb is a number of MB above 0, got {self.max_file_mb!r}")
        if not is_whole(self.max_px) or self.max_px < 1:
            raise InputError(f"max_px is a whole number of pixels, at least 1, got {self.max_px!r}")
        if self.max_frames is not None and (not is_whole(self.max_frames) or self.max_frames < 1):
            raise InputError(f"max_frames is a whole number, at least 1, or None for any, got {self.max_frames!r}")
        if isinstance(self.formats, str) or not self.formats or not set(self.formats) <= set(FORMATS):
            raise InputError(f"formats are some of {list(FORMATS)}, got {self.formats!r}")

    def require_size(self, name: str, size: int) -> None:
        """`size`: of the file in bytes. Raises ImageError."""
        if size > self.max_file_mb * 1e6:
            raise ImageError(f"{name}: {size / 1e6:.3g} MB are more than the {self.max_file_mb:g} MB that are read; shrink the image, or raise max_file_mb")

    def require_header(self, name: str, image: Image.Image) -> None:
        """What an opened image says of itself, none of whose pixels have been decoded. Raises ImageError."""
        if image.width * image.height > self.max_px:
            raise ImageError(self.too_many_px(name, f"{image.width}x{image.height} pixels (WxH)"))
        if self.max_frames is not None and _frames(image, self.max_frames) > self.max_frames:
            raise ImageError(f"{name}: more frames or pages than {self.max_frames}; give one of them alone, or raise max_frames")
        if image.format == "TIFF":
            _require_bits(name, image)
            _require_tiles(name, image)
        if image.format in ("JPEG", "MPO") and _scans(image) > MOST_SCANS:
            raise ImageError(f"{name}: a JPEG of more than {MOST_SCANS} scans takes too long; save it anew with fewer")

    def too_many_px(self, name: str, came: str) -> str:
        """A message."""
        return f"{name}: {came} are more than the {self.max_px:,} that are decoded; shrink the image first, or raise max_px"


LIMITS = ImageLimits()


def content(name: str, source: Any, limits: ImageLimits) -> Any:
    """What Pillow opens instead of bytes or an open file: neither larger than allowed. Raises ImageError."""
    if isinstance(source, memoryview):
        source = source.tobytes()  # it may have gaps
    if isinstance(source, bytes | bytearray):
        limits.require_size(name, len(source))
        source = io.BytesIO(source)
    if not source.seekable():  # a pipe that the caller has opened
        data = source.read(int(limits.max_file_mb * 1e6) + 1)
        limits.require_size(name, len(data))
        source = io.BytesIO(data)
    begin = source.tell()
    limits.require_size(name, source.seek(0, os.SEEK_END))
    source.seek(begin)
    _require_segments(name, source)
    source.seek(begin)
    return source


def _segments(file: Any) -> Iterator[int]:
    """Markers of a JPEG up to the first scan's, each with the file at its content; nothing of another file. What is odd ends it, for Pillow to judge."""
    if file.read(2) != b"\xff\xd8":
        return
    while len(head := file.read(4)) == 4 and head[0] == 0xFF:
        end = file.tell() + int.from_bytes(head[2:]) - 2
        yield head[1]
        if head[1] == START_OF_SCAN:
            return
        file.seek(end)


def _require_segments(name: str, file: Any) -> None:
    """What comes before the pixels of a JPEG. Pillow joins segments of EXIF one by one: 400,000 small ones took minutes. Raises ImageError."""
    exif = 0
    for count, marker in enumerate(_segments(file), 1):
        exif += marker == APP1 and file.read(4) == b"Exif"
        if count > MOST_SEGMENTS or exif > MOST_EXIF_SEGMENTS:
            raise ImageError(
                f"{name}: a JPEG of more than {MOST_SEGMENTS:,} segments, or {MOST_EXIF_SEGMENTS} of EXIF, takes too long; save it anew without them"
            )


def _require_bits(name: str, image: Any) -> None:
    """Pillow takes 12 bits of gray for 16, which is nearly black. Raises ImageError."""
    bits = image.tag_v2.get(BITS_PER_SAMPLE, (1,))
    if not set(bits if isinstance(bits, tuple) else (bits,)) <= {1, 2, 4, 8, 16, 32, 64}:
        raise ImageError(f"{name}: expected 8 or 16 bits a channel, got {bits}; convert it to 8 bits first")


def _require_tiles(name: str, image: Any) -> None:
    """A tile is decoded whole: one of 30000x30000 pixels in an image of 300x300 took 859 MB."""
    tile = [image.tag_v2.get(each) for each in (TILE_WIDTH, TILE_LENGTH)]
    if all(isinstance(side, int) for side in tile) and tile[0] * tile[1] > max(SMALLEST_TILE_PX, 4 * image.width * image.height):
        raise ImageError(f"{name}: its tiles of {tile[0]}x{tile[1]} pixels are larger than the image, {image.width}x{image.height}; save it anew")


def _frames(image: Any, most: int) -> int:
    """The number of frames, or something above `most`: what comes after is not counted, since a file of 100 MB may hold millions."""
    if image.format == "GIF":
        return _gif_frames(image.fp, most)
    if image.format == "TIFF":
        found = 1
        try:
            while found <= most:
                image.seek(found)  # reads its tags, and no pixels
                found += 1
        except EOFError:
            pass
        image.seek(0)
        return found
    return int(getattr(image, "n_frames", 1))  # the others say so in their headers


def _gif_frames(file: Any, most: int) -> int:
    """From block to block (GIF89a, sections 18 to 26); Pillow would decode the frames in between."""
    place, found = file.tell(), 0
    file.seek(0)
    header = file.read(13)
    _skip_palette(file, header[10])
    while found <= most:
        kind = file.read(1)
        if kind == b"!":
            file.read(1)
        elif kind == b",":
            found += 1
            _skip_palette(file, (file.read(9) or b"\0")[-1])
            file.read(1)
        else:
            break
        while size := (file.read(1) or b"\0")[0]:
            file.seek(size, os.SEEK_CUR)
    file.seek(place)
    return found


def _skip_palette(file: Any, flags: int) -> None:
    if flags & 0x80:
        file.seek(3 << ((flags & 7) + 1), os.SEEK_CUR)


def _scans(image: Any) -> int:
    """Markers of scans, but for one that two blocks cut. Inside of a scan 0xFF is never followed by the marker's second byte.

    Most files have one scan, of all channels; these are not read through.
    """
    file = image.fp
    place, found = file.tell(), 0
    file.seek(0)
    channels = next((file.read(1)[:1] for marker in _segments(file) if marker == START_OF_SCAN), b"")
    if "progressive" not in image.info and channels == bytes([image.layers]):
        file.seek(place)
        return 1
    file.seek(0)
    while block := file.read(BLOCK):
        found += block.count(b"\xff\xda")
    file.seek(place)
    return found
