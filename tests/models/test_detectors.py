"""torchvision's detectors through heads and contract, against their own forward on the same pixels."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import detection, resnet18
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from edgeport_models import NetworkError
from edgeport_models.detectors import DetectorHeads, detection_head, detector_pixels
from edgeport_runtime.boxes import iou
from edgeport_runtime.detector import Found, detect

NEAR = 1e-4  # of scores, of thresholds, of overlaps: rounding may decide within


def retinanet() -> nn.Module:
    return detection.RetinaNet(backbone(), num_classes=7, topk_candidates=60)


def fcos() -> nn.Module:
    return detection.FCOS(backbone(), num_classes=7, topk_candidates=60)


def backbone() -> nn.Module:
    """A feature pyramid on a small ResNet, with the five levels that both have."""
    return _resnet_fpn_extractor(resnet18(weights=None), 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))


def ssdlite() -> nn.Module:
    made = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=7)
    made.topk_candidates = 40
    return made


BUILDERS = {"ssdlite": ssdlite, "retinanet": retinanet, "fcos": fcos}


def drawn(name: str) -> nn.Module:
    """Random weights that let every layer pass its signal on, and heads whose scores spread around the threshold: 20 to 300 boxes remain."""
    torch.manual_seed(0)
    made: Any = BUILDERS[name]().eval()
    made.transform = GeneralizedRCNNTransform(1, 1, [0.0] * 3, [1.0] * 3, size_divisible=1, _skip_resize=True)
    for each in made.head.modules():
        if isinstance(each, nn.Conv2d):
            nn.init.kaiming_normal_(each.weight)
    norms = [each for each in made.modules() if isinstance(each, nn.BatchNorm2d)]
    for each in norms:
        each.momentum = 1.0  # statistics of the next batch
    with torch.inference_mode():
        made.backbone.train()
        features = made.backbone(images(9, 8, 128, 128))
        made.head.train()
        made.head(list(features.values()))
        made.eval()
        made.transform.train()  # it leaves out resizing then alone
        for conv in LAST[name](made.head):
            conv.weight.mul_(0.3)
        if name == "fcos":
            made.head.regression_head.bbox_reg.bias.fill_(3.0)  # distances are not negative
            made.head.classification_head.cls_logits.bias.fill_(-2.5)
    return made


LAST: dict[str, Callable[[Any], list[nn.Conv2d]]] = {  # what gives scores and boxes
    "ssdlite": lambda head: [each[1] for part in (head.classification_head, head.regression_head) for each in part.module_list],
    "retinanet": lambda head: [head.classification_head.cls_logits, head.regression_head.bbox_reg],
    "fcos": lambda head: [head.classification_head.cls_logits, head.regression_head.bbox_reg, head.regression_head.bbox_ctrness],
}


def images(seed: int, batch: int, height: int, width: int) -> Tensor:
    return torch.randn((batch, 3, height, width), generator=torch.Generator().manual_seed(seed))


def found_of(heads: DetectorHeads, detector: Any, pixels: Tensor) -> list[Found]:
    with torch.inference_mode():
        outputs = {kind: each.numpy() for kind, each in heads(pixels).items()}
    return detect(outputs, detection_head(detector), (int(pixels.shape[2]), int(pixels.shape[3])))


def cases() -> Iterator[tuple[int, int, int]]:
    yield from [(1, 128, 160), (3, 96, 96), (8, 160, 128), (8, 64, 192)]  # 20 images


@pytest.mark.parametrize("name", BUILDERS)
def test_the_same_boxes_as_torchvisions_forward(name: str) -> None:
    detector: Any = drawn(name)
    heads = DetectorHeads(detector)
    counts = []
    for seed, (batch, height, width) in enumerate(cases()):
        pixels = images(seed, batch, height, width)
        with torch.inference_mode():
            expected = detector(list(pixels))
        for mine, theirs in zip(found_of(heads, detector, pixels), expected, strict=True):
            counts.append(len(theirs["boxes"]))
            require_alike(mine, theirs, detector)
    print(name, counts)
    assert all(20 <= each <= 300 for each in counts), counts


def require_alike(mine: Found, theirs: dict[str, Tensor], detector: Any) -> None:
    """The same set and order, except where scores or overlaps are within NEAR of each other or of a threshold."""
    boxes, scores, labels = (theirs[name].numpy() for name in ("boxes", "scores", "labels"))
    pairs = match(mine, boxes, scores, labels)
    ordered = [scores[place] for place in pairs if place is not None]
    assert all(after <= before + NEAR for before, after in pairwise(ordered)), "another order"
    lost = [place for place in range(len(boxes)) if place not in pairs]
    added = [index for index, place in enumerate(pairs) if place is None]
    for box, score, label in [
        *zip(boxes[lost], scores[lost], labels[lost], strict=True),
        *zip(mine.boxes[added], mine.scores[added], mine.classes[added], strict=True),
    ]:
        assert is_close_call(box, score, np.concatenate([boxes[labels == label], mine.boxes[mine.classes == label]]), scores, detector), (box, score, label)


def match(mine: Found, boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any]) -> list[int | None]:
    """For each of mine, which of theirs it is."""
    free, pairs = np.ones(len(boxes), bool), list[int | None]()
    for box, score, label in zip(mine.boxes, mine.scores, mine.classes, strict=True):
        same = np.flatnonzero(free & (labels == label) & (np.abs(scores - score) < NEAR) & (np.abs(boxes - box).max(axis=1, initial=0) < 0.01))
        free[same[:1]] = False
        pairs.append(int(same[0]) if same.size else None)
    return pairs


def is_close_call(box: NDArray[Any], score: float, others: NDArray[Any], scores: NDArray[Any], detector: Any) -> bool:
    """Whether rounding may decide about it: its score is near the threshold or the last one's, or an overlap is near the threshold."""
    overlaps = iou(box[None], others)[0]
    near = np.abs(overlaps - detector.nms_thresh) < NEAR
    return bool(abs(score - detector.score_thresh) < NEAR or abs(score - scores.min()) < NEAR or near.any())


@pytest.mark.parametrize("name", ["ssdlite", "retinanet", "fcos"])
def test_codes_of_any_size_are_decoded_as_torchvision_does(name: str) -> None:
    """Far beyond what a network gives: sizes are bounded before exp."""
    detector: Any = BUILDERS[name]()
    anchors = torch.tensor([[0.0, 0.0, 8.0, 16.0], [10.0, 20.0, 50.0, 30.0]])
    codes = torch.tensor([[[0.5, -2.0, 90.0, 60.0], [300.0, 7.0, -90.0, 1.0]]])
    decode = detector.box_coder.decode if name == "fcos" else detector.box_coder.decode_single
    torch.testing.assert_close(DetectorHeads(detector)._decoded(codes, anchors)[0], decode(codes[0], anchors), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("build", [detection.fasterrcnn_resnet50_fpn, detection.maskrcnn_resnet50_fpn, detection.keypointrcnn_resnet50_fpn])
def test_two_stages_are_refused_with_what_to_export_instead(build: Any) -> None:
    with pytest.raises(NetworkError, match=r"a second time.*export a detector of one stage \(SSD, SSDLite, RetinaNet and FCOS\)"):
        DetectorHeads(build(weights=None, weights_backbone=None))
    with pytest.raises(NetworkError, match="expected one of torchvision's detectors"):
        detection_head(nn.Linear(1, 1))


def test_preprocessing_is_the_detectors_own() -> None:
    lite = detector_pixels(ssdlite())
    assert (lite.height, lite.width, lite.resize, lite.mean, lite.std) == (320, 320, "stretch", (0.5,) * 3, (0.5,) * 3)
    wide = detector_pixels(retinanet(), (512, 768))
    assert (wide.height, wide.width, wide.resize) == (512, 768, "letterbox") and math.isclose(wide.mean[0], 0.485)
