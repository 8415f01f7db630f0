"""From anything that holds an image to an upright PIL image in the mode that is wanted."""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from .errors import ImageError, first_line
from .image_limits import LIMITS, ImageLimits, content
from .regular_files import NotRegularError, open_regular

ImageSource = Any  # a path, bytes, a bytearray or memoryview, an open file, a PIL image, a uint8 array, or what numpy makes one of
# What Pillow raises for damaged files beside its own errors. An exception of a signal's handler, a time limit say, is none of them.
DAMAGED: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, SyntaxError, struct.error, LookupError, TypeError, AttributeError)
DAMAGED += (ArithmeticError, AssertionError, RuntimeError, Warning)
ORIENTATION = 0x0112  # the tag of EXIF
TURNS = {  # its values -> what brings the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # a tag of TIFF, and its value
FIRST_TURNED = 5  # of its values: from here on height and width are exchanged


def decode(source: ImageSource, limits: ImageLimits = LIMITS) -> Image.Image:
    """Open a file (by path, or open for reading), bytes, a PIL image or an array as an upright PIL image, still in its own mode. Of several frames the first.

    Arrays are uint8 of shape (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA, values in 0..255.
    Raises ImageError if it is no image, is truncated, is no regular file, or is beyond `limits`.
    """
    name = describe(source)
    if _is_array(source):
        return _from_array(_array_of(source))
    with _told(name, limits), _opened(source, limits) as image:
        inverted = image.format == "TIFF" and image.mode.startswith("I;16") and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO  # type: ignore[attr-defined]
        image.load()
        return _upright(_inverted(image) if inverted else image)


def size_px(source: ImageSource, limits: ImageLimits = LIMITS) -> tuple[int, int]:
    """Height and width, upright; of a file without decoding its pixels. Raises ImageError."""
    if isinstance(source, np.ndarray) and source.ndim == 2:  # a mask may have any dtype
        return source.shape[0], source.shape[1]
    if _is_array(source):
        whole = _from_array(_array_of(source))
        return whole.height, whole.width
    with _told(describe(source), limits), _opened(source, limits) as image:
        turned = _orientation(image)
        exchanged = turned in TURNS and turned >= FIRST_TURNED and image.format != "TIFF"  # of a TIFF Pillow gives the upright size
        return (image.width, image.height) if exchanged else (image.height, image.width)


@contextmanager
def _opened(source: ImageSource, limits: ImageLimits) -> Iterator[Image.Image]:
    """An image of which no pixels have been decoded."""
    if isinstance(source, Image.Image):
        yield source
        return
    name = describe(source)
    if isinstance(source, io.TextIOBase):
        raise ImageError(f"{name}: it is open for text; open it for bytes, as in open(path, 'rb')")
    path = isinstance(source, str | Path)
    with open_regular(source) if path else nullcontext(source) as file, Image.open(content(name, file, limits), formats=limits.formats) as image:
        limits.require_header(name, image)
        yield image


@contextmanager
def _told(name: str, limits: ImageLimits) -> Iterator[None]:
    """Whatever goes wrong becomes an ImageError that names the image."""
    try:
        yield
    except FileNotFoundError as error:
        raise ImageError(f"{name}: there is no such file") from error
    except NotRegularError as error:
        remedy = "; name the images in it" if error.kind == "a folder" else "; name a file, or give its bytes"
        raise ImageError(f"{name}: expected an image, but this is {error.kind}{remedy}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: expected an image ({', '.join(limits.formats)}), but the content is not one") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # a warning only if warnings are errors
        raise ImageError(limits.too_many_px(name, "its pixels") + _pillows_own(limits)) from error
    except MemoryError as error:
        raise ImageError(f"{name}: there is not enough memory to decode it; shrink the image first") from error
    except DAMAGED as error:
        raise ImageError(f"{name}: the image cannot be read ({first_line(error)})") from error


def _pillows_own(limits: ImageLimits) -> str:
    """If `limits` allow more than Pillow does."""
    most = Image.MAX_IMAGE_PIXELS
    return "" if most is None or limits.max_px <= most else f" and PIL.Image.MAX_IMAGE_PIXELS, which is {most:,}"


def _inverted(image: Image.Image) -> Image.Image:
    """Of 16 bits of gray whose 0 is white, which Pillow leaves as they are; it turns those of 8."""
    return Image.fromarray(65535 - np.asarray(image).astype(np.uint16))


def _is_array(source: ImageSource) -> bool:
    """Whether it holds pixels and not a file's content. A memoryview of several axes is that of an array."""
    if isinstance(source, memoryview):
        return source.ndim > 1
    return not isinstance(source, str | Path | bytes | bytearray | Image.Image) and not hasattr(source, "read")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; the image itself, not a copy, if that is nothing or cannot be read."""
    turn = TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:  # Pillow raises struct.error, SyntaxError and others for EXIF that is damaged, and the image is as good as without
        return None


def describe(source: ImageSource) -> str:
    """What to call an image in a message: its path, or what kind of thing it is."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, bytes | bytearray | memoryview) and not _is_array(source):
        return f"an image of {len(source)} bytes"
    if hasattr(source, "read"):
        return f"an open file{f' ({source.name})' if isinstance(getattr(source, 'name', None), str) else ''}"
    if isinstance(source, Image.Image):
        return f"a PIL image of {source.width}x{source.height} pixels (WxH)"
    if hasattr(source, "__array__") or hasattr(source, "__array_interface__") or isinstance(source, memoryview):
        return f"an array of shape {tuple(np.shape(_array_of(source)))}"
    raise ImageError(f"expected a path, bytes, an open file, a PIL image or a uint8 array, got {type(source).__name__}")


def _array_of(source: Any) -> NDArray[Any]:
    """Anything that numpy makes an array of. Raises ImageError."""
    try:
        return np.asarray(source)
    except Exception as error:  # a tensor on a card or with a gradient, say
        raise ImageError(f"{type(source).__name__}: numpy cannot make an array of it ({first_line(error)}); give a uint8 array, (H, W, C)") from error


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        remedy = ""
        if array.ndim == 4:
            remedy = "; for several images give batch() a list of them"
        elif array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
            remedy = "; channels come last: np.asarray(image).transpose(1, 2, 0)"
        if array.dtype.kind == "f" and not (array > 1).any():
            remedy += "; values in 0..1 become levels by (array * 255).round().astype('uint8')"
        elif array.dtype == np.uint16 and (array > 255).any():
            remedy += "; 16 bits become levels by (array // 257).astype('uint8')"
        elif array.dtype != np.uint8 and array.dtype.kind in "fiu":
            remedy += "; values in 0..255 become levels by array.round().clip(0, 255).astype('uint8')"
        raise ImageError(f"expected a uint8 array of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {array.dtype} of shape {array.shape}{remedy}")
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else np.ascontiguousarray(array))


def convert(image: Image.Image, mode: str) -> Image.Image:
    """To RGB or L as torchvision's loader does (`convert`): alpha is dropped, palettes are looked up, CMYK is converted.

    16-bit gray is scaled to 8 bits first, because Pillow's own conversion clips it at 255.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16, copy=False) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ImageError(f"expected 8 or 16 bits a channel, got an image of mode {image.mode}; convert it to 8 bits first")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    try:
        return image if image.mode == mode else image.convert(mode)
    except ValueError as error:
        raise ImageError(f"an image of mode {image.mode} cannot be converted to {mode}; convert it to RGB first") from error


def in_rgb(source: ImageSource, channels: str) -> ImageSource:
    """`channels`: "rgb", or "bgr" for an array (H, W, 3) or (H, W, 4) as OpenCV gives it, which is turned around. Nothing else has such an order."""
    if channels == "rgb":
        return source
    array = _array_of(source) if _is_array(source) and hasattr(source, "shape") else None
    if array is None or array.ndim != 3 or array.shape[2] not in (3, 4):
        raise ImageError(f"channels='bgr' is for arrays (H, W, 3) or (H, W, 4), got {describe(source)}")
    return array[:, :, [2, 1, 0, 3][: array.shape[2]]]
