"""Answers as pictures. Text and lines follow the picture's size; a picture too small to hold readable text is enlarged first."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .decoding import ImageSource, convert, decode
from .errors import InputError
from .predictions import Detections, FloatMap, Values, label_of

if TYPE_CHECKING:
    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SMALLEST_PX, LARGEST_PX = 320, 4096  # of a picture's sides: below, text would not be readable; above, nobody looks
NOTHING = "nothing found"
TEXT, PAPER = (255, 255, 255), (32, 32, 32)
# From dark blue to yellow, of equal steps in lightness, so that it reads in gray, too: five of the colors of matplotlib's viridis (CC0).
GRADIENT = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float64)
Color = tuple[int, int, int]


def class_color(index: int) -> Color:
    """The color of PASCAL VOC for a class: its bits, turned around, are spread over red, green and blue. 0 is black."""
    red = green = blue = 0
    for bit in range(8):
        red |= (index >> 3 * bit & 1) << (7 - bit)
        green |= (index >> 3 * bit + 1 & 1) << (7 - bit)
        blue |= (index >> 3 * bit + 2 & 1) << (7 - bit)
    return red, green, blue


def line_color(index: int) -> Color:
    """The color of a box: that of the next class, made lighter by half, since dark lines would not be seen on many a picture."""
    red, green, blue = class_color(index % 254 + 1)
    return 127 + red // 2, 127 + green // 2, 127 + blue // 2


def picture(image: ImageSource) -> tuple[Image.Image, float]:
    """The source as RGB, upright, and how many times it was enlarged or shrunk. Raises ImageError."""
    shown = convert(decode(image), "RGB")
    longest, shortest = max(shown.size), min(shown.size)
    scale = min(max(1.0, SMALLEST_PX / shortest), LARGEST_PX / longest)
    if scale == 1:
        return shown.copy(), 1.0
    size = (max(1, round(shown.width * scale)), max(1, round(shown.height * scale)))
    return shown.resize(size, Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS), scale


def boxed(image: ImageSource, found: Detections) -> Image.Image:
    """Boxes with label and score; the best is drawn last, over the others."""
    shown, scale = picture(image)
    drawing, font, width = ImageDraw.Draw(shown), _font(shown), _line_px(shown)
    for index in reversed(range(len(found))):
        color = line_color(int(found.classes[index]))
        left, top, right, bottom = (float(each) * scale for each in found.boxes[index])
        drawing.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color, width=width)
        _tag(drawing, font, (left, top), f"{label_of(int(found.classes[index]), found.labels)} {found.scores[index]:.2f}", color, shown.size)
    return _with_lines(shown, [] if len(found) else [NOTHING])


def captioned(image: ImageSource, lines: Sequence[str]) -> Image.Image:
    """The picture with lines of text below it."""
    return _with_lines(picture(image)[0], lines)


def overlaid(image: ImageSource, classes: NDArray[Any], opacity: float) -> Image.Image:
    """The image at its own size, RGB, with all classes but the first in their colors. Raises InputError for an opacity outside 0..1."""
    if not isinstance(opacity, int | float) or not 0 <= opacity <= 1:
        raise InputError(f"the opacity of an overlay is in 0..1, got {opacity!r}")
    shown = convert(decode(image), "RGB")
    fitted = _fitted(classes, shown)
    colors = np.array([class_color(index) for index in range(256)], np.float32)[fitted.astype(np.int64) % 256]
    share = np.where((fitted == 0) | (fitted == np.iinfo(classes.dtype).max), 0, np.float32(opacity))[:, :, None]
    return Image.fromarray((np.asarray(shown, np.float32) * (1 - share) + colors * share).round().astype(np.uint8))


def segmented(image: ImageSource, classes: NDArray[Any], labels: Sequence[str]) -> Image.Image:
    """The overlay, and a line for each class but the first, the largest first."""
    shown = picture(overlaid(image, classes, 0.5))[0]
    counts = np.bincount(classes.ravel())
    found = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index] and index not in (0, np.iinfo(classes.dtype).max)]
    lines = [f"{label_of(index, labels)} {counts[index] / classes.size:.1%}" for index in found[:8]]
    return _with_lines(shown, lines or [NOTHING], [class_color(index % 256) for index in found[:8]])


def palette_image(classes: NDArray[Any]) -> Image.Image:
    """An image whose values are classes: with a palette, or gray of 16 bits."""
    if classes.dtype != np.uint8:
        return Image.fromarray(classes)
    made = Image.frombytes("P", classes.shape[::-1], np.ascontiguousarray(classes).tobytes())
    made.putpalette([level for index in range(256) for level in class_color(index)])
    return made


def colored_map(found: FloatMap) -> Image.Image:
    """The map in colors at the source's size; gray where nothing was seen."""
    low, high = found.range
    values = found.at_source()
    share = np.nan_to_num((values - low) / (high - low)).clip(0, 1) * (len(GRADIENT) - 1)
    colors = np.stack([np.interp(share, range(len(GRADIENT)), GRADIENT[:, channel]) for channel in range(3)], axis=-1)
    colors[np.isnan(values)] = 128
    shown = picture(Image.fromarray(colors.round().astype(np.uint8)))[0]
    unit = f" {found.unit}" if found.unit else ""
    ends = [tuple(int(each) for each in GRADIENT[place]) for place in (0, -1)]
    return _with_lines(shown, [f"{low:g}{unit}", f"{high:g}{unit}"], ends)  # type: ignore[arg-type]


def pointed(image: ImageSource, found: Values) -> Image.Image:
    """Points with their names, and a line for each value."""
    shown, scale = picture(image)
    drawing, font, radius = ImageDraw.Draw(shown), _font(shown), 2 * _line_px(shown)
    for index, (name, (x, y)) in enumerate(found.points.items()):
        x, y, color = x * scale, y * scale, line_color(index)
        drawing.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color, outline=TEXT)
        _tag(drawing, font, (x + radius, y), name, color, shown.size)
    lines = [f"{name} {value:.4g}{' ' + found.units[name] if name in found.units else ''}" for name, value in found.values.items()]
    return _with_lines(shown, lines or ([] if found.points else [NOTHING]))


def side_by_side(image: ImageSource, answer: Image.Image) -> Image.Image:
    """The source and the image that was made of it, at the same height."""
    left, right = picture(image)[0], convert(answer, "RGB")
    right = right.resize((max(1, round(right.width * left.height / right.height)), left.height), Image.Resampling.NEAREST)
    page = Image.new("RGB", (left.width + right.width, left.height))
    page.paste(left, (0, 0))
    page.paste(right, (left.width, 0))
    return page


def bars(image: ImageSource, vector: NDArray[np.float32]) -> Image.Image:
    """The source with an embedding below it, as bars from its lowest to its highest number."""
    shown, vector = picture(image)[0], np.nan_to_num(vector)
    low, high = float(vector.min(initial=0)), float(vector.max(initial=0))
    height, page = shown.height // 4, Image.new("RGB", (shown.width, shown.height + shown.height // 4), PAPER)
    page.paste(shown, (0, 0))
    drawing = ImageDraw.Draw(page)
    for index, value in enumerate(vector.tolist()):
        left, right = (int(place * shown.width / len(vector)) for place in (index, index + 1))
        level = page.height - 1 - int((value - low) / (high - low or 1.0) * (height - 1))
        base = page.height - 1 - int((0 - low) / (high - low or 1.0) * (height - 1))
        drawing.rectangle((left, min(level, base), max(left, right - 1), max(level, base)), fill=TEXT)
    return page


def drawn(answer: Any, image: ImageSource) -> Image.Image:
    """The picture of any answer: that of its `draw`; an image beside its source, an embedding as bars. Raises ImageError."""
    if isinstance(answer, Image.Image):
        return side_by_side(image, answer)
    if isinstance(answer, np.ndarray):
        return bars(image, answer)
    made: Image.Image = answer.draw(image)
    return made


def _fitted(classes: NDArray[Any], shown: Image.Image) -> NDArray[Any]:
    """Classes of an answer in tiles may be at another scale than the image."""
    if classes.shape == (shown.height, shown.width):
        return classes
    return np.array(Image.fromarray(classes).resize(shown.size, Image.Resampling.NEAREST))


def _font(shown: Image.Image) -> "Font":
    return ImageFont.load_default(size=max(12.0, min(shown.size) / 28))


def _line_px(shown: Image.Image) -> int:
    return max(2, round(min(shown.size) / 200))


def _tag(drawing: ImageDraw.ImageDraw, font: "Font", corner: tuple[float, float], text: str, color: Color, size: tuple[int, int]) -> None:
    """Text on a plate in the color of its box, above the corner if there is space, and always inside the picture."""
    text = " ".join(text.split())
    _, _, width, height = drawing.textbbox((0, 0), text, font=font)
    plate_width, plate_height = width + 4, height + 4
    left = min(max(0.0, corner[0]), max(0.0, size[0] - plate_width))
    top = corner[1] - plate_height if corner[1] >= plate_height else min(max(0.0, corner[1]), max(0.0, size[1] - plate_height))
    drawing.rectangle((left, top, left + plate_width, top + plate_height), fill=color)
    drawing.text((left + 2, top + 2), text, font=font, fill=_on(color))


def _on(color: Color) -> Color:
    """Black or white, whichever is read more easily on a color (its lightness by ITU-R BT.601)."""
    return (0, 0, 0) if 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140 else (255, 255, 255)


def _with_lines(shown: Image.Image, lines: Sequence[str], colors: Sequence[Color] = ()) -> Image.Image:
    """The picture with lines of text below it, each cut to its width, after a square of its color if there are colors."""
    if not lines:
        return shown
    font, drawing = _font(shown), ImageDraw.Draw(shown)
    line_px = int(drawing.textbbox((0, 0), "Ág", font=font)[3]) + 6
    page = Image.new("RGB", (max(shown.width, SMALLEST_PX), shown.height + line_px * len(lines) + 6), PAPER)
    page.paste(shown, (0, 0))
    drawing = ImageDraw.Draw(page)
    for index, line in enumerate(lines):
        top, left = shown.height + 6 + index * line_px, 6
        if index < len(colors):
            drawing.rectangle((left, top + 2, left + line_px - 8, top + line_px - 6), fill=colors[index], outline=TEXT)
            left += line_px
        drawing.text((left, top), _cut(drawing, font, line, page.width - left - 6), font=font, fill=TEXT)
    return page


def _cut(drawing: ImageDraw.ImageDraw, font: "Font", text: str, width: int) -> str:
    text = " ".join(text.split())
    if drawing.textlength(text, font=font) <= width:
        return text
    while text and drawing.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text + "…"
