"""Structural similarity of two images (Wang, Bovik, Sheikh, Simoncelli 2004, doi:10.1109/TIP.2003.819861)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

RADIUS = 5  # the paper's window: 11 pixels, standard deviation 1.5
WINDOW = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / 1.5) ** 2)
WINDOW /= WINDOW.sum()
STABILIZERS = ((0.01 * 255) ** 2, (0.03 * 255) ** 2)


def structural_similarity(image: NDArray[Any], truth: NDArray[Any]) -> float | None:
    """SSIM of levels in 0..255, (H, W, C): 1 for equal images, the mean over all positions that have a whole window, and over channels.

    None for images that are smaller than a window.
    """
    if min(image.shape[:2]) < len(WINDOW):
        return None
    x, y = image.astype(np.float64), truth.astype(np.float64)
    mean_x, mean_y = _smoothed(x), _smoothed(y)
    variances = _smoothed(x * x) - mean_x**2 + _smoothed(y * y) - mean_y**2
    covariance = _smoothed(x * y) - mean_x * mean_y
    first, second = STABILIZERS
    similar = (2 * mean_x * mean_y + first) * (2 * covariance + second) / ((mean_x**2 + mean_y**2 + first) * (variances + second))
    return float(similar.mean())


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted means under the window, wherever it fits: (H - 10, W - 10, C)."""
    for axis in (0, 1):
        fitting = values.shape[axis] - 2 * RADIUS
        values = sum(weight * np.take(values, range(at, at + fitting), axis=axis) for at, weight in enumerate(WINDOW))
    return values
