"""Losses are smallest at the truth, and count what they should."""

import numpy as np
import pytest
import torch

from edgeport_models.losses import detection_loss, segmentation_loss
from edgeport_runtime.average_precision import TrueBoxes

BOX = [8.0, 4.0, 24.0, 28.0]
POINTS = torch.tensor([[x, y] for y in range(2, 32, 4) for x in range(2, 32, 4)], dtype=torch.float32)
TRUTH = TrueBoxes.of(([BOX], [1]), "a test")
INSIDE = ((POINTS - torch.tensor([16.0, 16.0])).abs() <= 6).all(dim=1)  # the middle of the box, 1.5 strides around


def outputs(*, score: float = 8.0, other: float = -8.0, shift: float = 0.0) -> dict[str, torch.Tensor]:
    """What a detector gives that is right but for `shift` pixels to the right, and as sure as `score` where it should be."""
    box = torch.tensor(BOX) + shift * torch.tensor([1.0, 0.0, 1.0, 0.0])
    scores = torch.full((1, len(POINTS), 3), other)
    scores[0, INSIDE, 1] = score
    return {"points": POINTS[None], "scores": scores, "boxes": torch.cat([POINTS - box[:2], box[2:] - POINTS], dim=1)[None]}


def test_the_truth_costs_next_to_nothing() -> None:
    assert float(detection_loss(outputs(), [TRUTH], 4)) < 1e-4


@pytest.mark.parametrize("change", [{"score": 0.0}, {"other": 0.0}, {"shift": 2.0}, {"shift": 40.0}])
def test_every_fault_costs(change: dict[str, float]) -> None:
    assert float(detection_loss(outputs(**change), [TRUTH], 4)) > 0.02


def test_a_box_that_is_further_off_costs_more() -> None:
    costs = [float(detection_loss(outputs(shift=shift), [TRUTH], 4)) for shift in (0.0, 1.0, 4.0, 16.0, 64.0)]
    assert costs == sorted(costs)


def test_an_image_without_boxes_wants_no_scores() -> None:
    empty = TrueBoxes.of(([], []), "a test")
    assert float(detection_loss(outputs(score=-8.0), [empty], 4)) < 1e-4 < float(detection_loss(outputs(), [empty], 4))


def test_of_nested_boxes_the_smaller_one_is_answered() -> None:
    nested = TrueBoxes.of(([[0, 0, 32, 32], BOX], [0, 1]), "a test")
    both = outputs()
    assert float(detection_loss(both, [nested], 4)) < 0.1


def test_segmentation_by_hand() -> None:
    masks = torch.tensor([[[0, 1], [1, 255]]])
    right = torch.zeros(1, 2, 2, 2)
    for row, column, index in ((0, 0, 0), (0, 1, 1), (1, 0, 1)):
        right[0, index, row, column] = 20.0
    assert float(segmentation_loss(right, masks)) < 1e-4
    elsewhere = right.clone()
    elsewhere[0, :, 1, 1] = torch.tensor([50.0, -50.0])  # ignored
    assert float(segmentation_loss(elsewhere, masks)) == pytest.approx(float(segmentation_loss(right, masks)), abs=1e-6)
    assert float(segmentation_loss(-right, masks)) > 5


def test_a_small_class_weighs_by_more_than_its_share() -> None:
    """One pixel in a hundred: calling everything background costs far more than a hundredth of an error."""
    masks = torch.zeros(1, 10, 10, dtype=torch.int64)
    masks[0, 0, 0] = 1
    lazy = torch.stack([torch.full((10, 10), 4.0), torch.zeros(10, 10)])[None]
    plain = float(torch.nn.functional.cross_entropy(lazy, masks))
    assert float(segmentation_loss(lazy, masks)) > 5 * plain
    assert np.isfinite(float(segmentation_loss(lazy, torch.full((1, 10, 10), 255))))
