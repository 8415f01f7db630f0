"""Maps of the network's size brought to the size of the source image."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .framing import Framing


def map_at_source(values: NDArray[np.float32], framing: Framing) -> NDArray[np.float32]:
    """(h, w) -> float32 (H, W) of the source, bilinear (antialiased if it shrinks); NaN where the network did not see the source."""
    height, width = framing.source_px
    left, top, right, bottom = framing.visible
    scale = np.array([values.shape[1] / framing.network_px[1], values.shape[0] / framing.network_px[0]] * 2, np.float32)
    limits = (values.shape[1], values.shape[0]) * 2
    box = framing.to_network(np.array(framing.visible, np.float32)) * scale
    x, y, end_x, end_y = (float(min(max(edge, 0), limit)) for edge, limit in zip(box, limits, strict=True))
    resized = Image.fromarray(values.astype(np.float32)).resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=(x, y, end_x, end_y))
    seen = np.array(resized)
    if (left, top, right, bottom) == (0, 0, width, height):
        return seen
    whole = np.full((height, width), np.nan, np.float32)
    whole[top:bottom, left:right] = seen
    return whole


def class_dtype(classes: int) -> type[np.uint8] | type[np.uint16]:
    """Of a mask of so many classes. Its largest value is no class: there, nothing was seen."""
    return np.uint8 if classes <= np.iinfo(np.uint8).max else np.uint16


def classes_at_source(scores: NDArray[np.float32], framing: Framing) -> NDArray[Any]:
    """(classes, h, w) -> `class_dtype` (H, W): the best class of each position, or the largest value. One map at a time is enlarged."""
    dtype = class_dtype(len(scores))
    best = map_at_source(scores[0], framing)
    classes = np.where(np.isnan(best), np.iinfo(dtype).max, 0).astype(dtype)
    for index in range(1, len(scores)):
        found = map_at_source(scores[index], framing)
        better = found > best  # NaN is not
        classes[better] = index
        np.copyto(best, found, where=better)
    return classes
