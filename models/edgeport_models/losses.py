"""What a detector and a segmentation network are trained to make small."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from edgeport_runtime.average_precision import TrueBoxes
from edgeport_runtime.scorers import IGNORED

MIDDLE = 1.5  # strides around the middle of a box: points there answer for it (center sampling, arXiv:1904.01355, section 3.4)


def detection_loss(outputs: Mapping[str, Tensor], truths: Sequence[TrueBoxes], stride_px: int) -> Tensor:
    """Focal loss over all points (Lin et al. 2017, arXiv:1708.02002), and generalized IoU of the boxes of points that answer for one.

    `outputs`: of Detector. `truths`: in pixels of the network's input.
    """
    points = outputs["points"][0]
    wanted, boxes, positive = (
        torch.stack(each) for each in zip(*(_targets(truth, points, outputs["scores"].shape[-1], stride_px) for truth in truths), strict=True)
    )
    count = max(1, int(positive.sum()))
    scores = sigmoid_focal_loss(outputs["scores"], wanted, reduction="sum") / count
    distances, where = outputs["boxes"][positive], outputs["points"][positive]
    made = torch.cat([where - distances[:, :2], where + distances[:, 2:]], dim=1)
    # the plain distance beside it: without overlap and at distances of 0, the other one has no gradient
    shape = generalized_box_iou_loss(made, boxes[positive], reduction="sum") / count
    near = F.smooth_l1_loss(made / stride_px, boxes[positive] / stride_px, reduction="sum") / (4 * count)
    loss: Tensor = scores + shape + 0.2 * near
    return loss


def _targets(truth: TrueBoxes, points: Tensor, classes: int, stride_px: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each point the wanted scores (points, classes), its box (points, 4), and whether it answers for one. The smallest of several wins."""
    wanted, boxes = torch.zeros(len(points), classes), torch.zeros(len(points), 4)
    positive = torch.zeros(len(points), dtype=torch.bool)
    true = torch.from_numpy(truth.boxes)
    sizes = (true[:, 2:] - true[:, :2]).prod(dim=1)
    for index in sizes.argsort(descending=True).tolist():
        box = true[index]
        middle, inside = (box[:2] + box[2:]) / 2, ((points >= box[:2]) & (points <= box[2:])).all(dim=1)
        answers = inside & ((points - middle).abs() <= MIDDLE * stride_px).all(dim=1)
        wanted[answers] = F.one_hot(torch.tensor(int(truth.classes[index])), classes).float()
        boxes[answers] = box
        positive |= answers
    return wanted, boxes, positive


def segmentation_loss(scores: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy in which no class hides behind a large background, and the overlap of probabilities with the truth.

    `scores`: logits (B, classes, H, W). `masks`: int64 (B, H, W); IGNORED counts for nothing. Classes weigh by the inverse root of their share.
    The overlap (Rahman and Wang 2016) is a soft form of the mean IoU that is judged by.
    """
    classes = scores.shape[1]
    counted = masks != IGNORED
    if not counted.any():
        return scores.sum() * 0
    known = torch.where(counted, masks, 0)
    true = F.one_hot(known, classes).movedim(3, 1).to(scores.dtype) * counted[:, None]
    share = true.mean(dim=(0, 2, 3))
    weight = torch.where(share > 0, share.clamp(min=1e-4).rsqrt(), 0)
    entropy = F.cross_entropy(scores, masks, weight / weight.sum(), ignore_index=IGNORED)
    probable = scores.softmax(dim=1) * counted[:, None]
    common = (probable * true).sum(dim=(0, 2, 3))
    overlap = common / ((probable + true).sum(dim=(0, 2, 3)) - common).clamp(min=1.0)
    return entropy + 1 - overlap[share > 0].mean()
