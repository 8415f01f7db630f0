"""torchvision's one-stage detectors as networks that edgeport exports: raw boxes and scores for all anchors, at every size and batch.

Their own forward ends in a suppression of boxes, whose loops belong to no graph. The runtime does that part, see `edgeport_runtime.DetectionHead`.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.ssd import SSD

from edgeport_runtime import DetectionHead, Pixels

from .errors import NetworkError
from .layers import grid_points

STRIDE_PX = 32  # RetinaNet and FCOS take sides in such steps; torchvision pads images to them
LARGEST_PX = 640  # the side of the square that an image is fitted into, if a detector has no size of its own
LARGEST_LOG = math.log(1000 / 16)  # of how many times a box is larger than its anchor (torchvision's BoxCoder)
SUPPORTED = "SSD, SSDLite, RetinaNet and FCOS"


class DetectorHeads(nn.Module):
    """A detector of torchvision without its preprocessing and its suppression.

    Takes normalized images (N, 3, H, W) and returns a dict. "boxes" float32 (N, anchors, 4): corners in pixels of the input. "scores": logits (N, anchors,
    classes). FCOS has "objectness" (N, anchors, 1), its centerness. RetinaNet and FCOS have "levels" int64 (N, anchors).
    """

    def __init__(self, detector: nn.Module) -> None:
        """Raises NetworkError for a detector of two stages, or what is no detector."""
        super().__init__()
        require_one_stage(detector)
        parts: Any = detector
        self.backbone, self.head = parts.backbone, parts.head
        self.is_ssd = isinstance(detector, SSD)
        coder: Any = parts.box_coder
        self.code_weights: tuple[float, ...] | None = None if isinstance(detector, FCOS) else tuple(coder.weights)
        generator: Any = parts.anchor_generator
        shapes = _default_shapes(generator) if self.is_ssd else generator.cell_anchors
        self.steps = generator.steps if self.is_ssd else None
        for index, each in enumerate(shapes):
            self.register_buffer(f"anchors{index}", each.clone())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found = self.backbone(images)
        maps: list[Tensor] = [found] if isinstance(found, Tensor) else list(found.values())
        raw = self.head(maps)
        per_level = [self._level(index, each, images) for index, each in enumerate(maps)]
        boxes = self._decoded(raw["bbox_regression"], torch.cat(per_level))
        if self.is_ssd:
            return {"boxes": boxes, "scores": raw["cls_logits"]}
        levels = torch.cat([torch.full_like(each[:, 0], index, dtype=torch.int64) for index, each in enumerate(per_level)])
        objectness = {} if self.code_weights is not None else {"objectness": raw["bbox_ctrness"]}
        return {"boxes": boxes, "scores": raw["cls_logits"], **objectness, "levels": levels.expand(len(images), -1)}

    def _level(self, index: int, features: Tensor, images: Tensor) -> Tensor:
        """The anchors of one feature map, corners in pixels: (positions * shapes, 4), in the order of the head's outputs."""
        shapes: Tensor = getattr(self, f"anchors{index}")
        (rows, columns), (height, width) = features.shape[-2:], images.shape[-2:]
        if self.is_ssd:
            steps = (height / rows, width / columns) if self.steps is None else (self.steps[index],) * 2
            half = torch.stack([shapes[:, 0] * width, shapes[:, 1] * height], dim=1) / 2
            centers, shapes = grid_points(features, steps), torch.cat([-half, half], dim=1)
        else:
            centers = grid_points(features, (height // rows, width // columns), first=0.0)
        return (torch.cat([centers, centers], dim=1)[:, None] + shapes[None]).reshape(-1, 4)

    def _decoded(self, codes: Tensor, anchors: Tensor) -> Tensor:
        """(N, anchors, 4) -> corners in pixels, as torchvision's BoxCoder and, for FCOS, BoxLinearCoder."""
        centers, sizes = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
        if self.code_weights is None:
            return torch.cat([centers - codes[..., :2] * sizes, centers + codes[..., 2:] * sizes], dim=-1)
        shift = codes[..., :2] / torch.tensor(self.code_weights[:2], dtype=codes.dtype)
        scale = (codes[..., 2:] / torch.tensor(self.code_weights[2:], dtype=codes.dtype)).clamp(max=LARGEST_LOG)
        middle, half = shift * sizes + centers, scale.exp() * sizes / 2
        return torch.cat([middle - half, middle + half], dim=-1)


def _default_shapes(generator: Any) -> list[Tensor]:
    """SSD's default boxes: widths and heights as shares of the image's, (shapes, 2) for each feature map."""
    return [each.clamp(min=0, max=1) if generator.clip else each for each in generator._wh_pairs]


def is_torchvision_detector(network: nn.Module) -> bool:
    """Of one stage or two."""
    return isinstance(network, SSD | RetinaNet | FCOS | GeneralizedRCNN)


def require_one_stage(detector: nn.Module) -> None:
    """Raises NetworkError."""
    if isinstance(detector, GeneralizedRCNN):
        raise NetworkError(
            f"{type(detector).__name__} looks at its own boxes a second time, in a loop that is no graph: export a detector of one stage "
            f"({SUPPORTED}), or its backbone for features"
        )
    if not isinstance(detector, SSD | RetinaNet | FCOS):
        raise NetworkError(f"expected one of torchvision's detectors {SUPPORTED}, got {type(detector).__name__}; another one needs a DetectionHead of its own")


def detection_head(detector: Any) -> DetectionHead:
    """How the outputs of DetectorHeads are read, with the detector's own thresholds. Raises NetworkError."""
    require_one_stage(detector)
    is_ssd = isinstance(detector, SSD)
    return DetectionHead(
        activation="softmax" if is_ssd else "sigmoid",
        objectness="root" if isinstance(detector, FCOS) else "none",
        background=0 if is_ssd else None,
        score_threshold=detector.score_thresh,
        candidates=detector.topk_candidates,
        candidates_per="class" if is_ssd else "level",
        iou_threshold=detector.nms_thresh,
        most=detector.detections_per_img,
    )


def detector_pixels(detector: Any, size_px: tuple[int, int] | None = None) -> Pixels:
    """The detector's own preprocessing. SSD stretches to its size; the others fit an image into `size_px`, (height, width), or LARGEST_PX squared.

    torchvision gives each image its own size instead, with a shorter side of 800 pixels; a larger `size_px` comes nearer to that. Raises NetworkError.
    """
    require_one_stage(detector)
    transform = detector.transform
    height, width = size_px or transform.fixed_size or (LARGEST_PX, LARGEST_PX)
    resize: Any = "stretch" if isinstance(detector, SSD) else "letterbox"
    return Pixels(height=height, width=width, resize=resize, mean=tuple(transform.image_mean), std=tuple(transform.image_std))
