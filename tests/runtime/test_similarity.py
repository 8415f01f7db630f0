"""Structural similarity, held to scikit-image 0.26 (gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=2)."""

import numpy as np
import pytest

from edgeport_runtime.similarity import structural_similarity


def pair(height: int, width: int, channels: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    clean = 127 + 90 * np.sin(x / 5)[..., None] * np.cos(y / 7)[..., None] + np.arange(channels) * 10
    image = np.clip(clean, 0, 255).astype(np.uint8)
    return image, np.clip(image + generator.normal(0, noise, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("shape", "noise", "expected"),
    [
        ((32, 40, 3), 5, 0.9498389307804121),
        ((32, 40, 3), 40, 0.2705085910511053),
        ((11, 64, 1), 10, 0.8447575979677017),
        ((50, 17, 3), 0, 1.0),
        ((24, 24, 1), 100, 0.044408760421205375),
    ],
)
def test_it_is_scikit_images(shape: tuple[int, int, int], noise: float, expected: float) -> None:
    found = structural_similarity(*pair(*shape, noise))
    assert found is not None and found == pytest.approx(expected, abs=1e-9)


def test_black_and_white_have_nothing_in_common() -> None:
    """By hand: both are even, so only the first stabilizer is left, 2.55 squared over 255 squared and itself."""
    found = structural_similarity(np.zeros((16, 16, 1), np.uint8), np.full((16, 16, 1), 255, np.uint8))
    assert found == pytest.approx(6.5025 / (255**2 + 6.5025))


def test_an_image_smaller_than_the_window_has_none() -> None:
    assert structural_similarity(*pair(10, 40, 3, 5)) is None
