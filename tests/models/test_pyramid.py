"""The detector and the segmentation network: shapes, order of points, and that both learn."""

import numpy as np
import pytest
import torch

from edgeport_models import Detector, Segmenter
from edgeport_models.pyramid import Pyramid


@pytest.mark.parametrize("stride", [2, 4, 8])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96)])
def test_a_pyramid_gives_maps_at_its_stride(stride: int, height: int, width: int) -> None:
    found = Pyramid(stride=stride, channels=8).eval()(torch.zeros(2, 3, height, width))
    assert found.shape == (2, 8, height // stride, width // stride)


def test_points_are_the_middles_of_positions_row_by_row() -> None:
    found = Detector(num_classes=3, channels=8).eval()(torch.zeros(2, 3, 32, 64))
    assert found["boxes"].shape == (2, 128, 4) and found["scores"].shape == (2, 128, 3) and found["points"].shape == (2, 128, 2)
    assert found["points"][1, :2].tolist() == [[2, 2], [6, 2]] and found["points"][0, 16].tolist() == [2, 6]
    assert bool((found["boxes"] >= 0).all())


def test_outputs_are_in_the_order_of_points() -> None:
    """A disturbance at one place of the image changes the scores around it: the center of gravity of the changes is there."""
    torch.manual_seed(0)
    network = Detector(num_classes=1, channels=8).eval()
    image = torch.zeros(1, 3, 64, 128)
    changed = image.clone()
    changed[:, :, 38:42, 98:102] = 1.0  # around x 100, y 40
    with torch.inference_mode():
        apart = (network(changed)["scores"] - network(image)["scores"]).square()[0]
        x, y = ((apart * network(image)["points"][0]).sum(dim=0) / apart.sum()).tolist()
    assert abs(x - 100) <= 8 and abs(y - 40) <= 8


def test_a_segmentation_has_scores_for_each_pixel() -> None:
    assert Segmenter(channels=8).eval()(torch.zeros(2, 3, 64, 32)).shape == (2, 2, 64, 32)
    np.testing.assert_equal(Segmenter(num_classes=5, channels=8).eval()(torch.zeros(1, 3, 32, 32)).shape[1], 5)
