"""Detectors from a network to boxes in the source image: heads as YOLO and DETR have them through the contract alone, torchvision's by name."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from edgeport_export import ExportOptions, ImageTask, export_bundle, image_contract
from edgeport_export.cli.app import main
from edgeport_models.detectors import DetectorHeads, detection_head
from edgeport_runtime import DetectionHead, Detections, Model, Pixels, Range, load
from edgeport_runtime.cli import main as run
from edgeport_runtime.pixels import Resize

FP32 = ExportOptions(precisions=("fp32",))
BATCH = {"batch": Range(low=1, high=4)}
SIDES = {"height": Range(low=64, high=128, step=32), "width": Range(low=64, high=128, step=32)}


class Yolo(nn.Module):
    """One tensor (N, 4 + classes, anchors): centers and sizes in pixels from distributions over distances, then raw scores. Strides 8 and 16."""

    BINS = 8

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(*(layer for a, b in ((3, 8), (8, 16), (16, 32)) for layer in (nn.Conv2d(a, b, 3, 2, 1), nn.SiLU())))
        self.deep = nn.Sequential(nn.Conv2d(32, 32, 3, 2, 1), nn.SiLU())
        self.heads = nn.ModuleList(nn.Conv2d(32, 4 * self.BINS + classes, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        near = self.stem(x)
        return torch.cat([self._level(index, head, each) for index, (head, each) in enumerate(zip(self.heads, (near, self.deep(near)), strict=True))], dim=2)

    def _level(self, index: int, head: nn.Module, features: Tensor) -> Tensor:
        raw, stride = head(features), 8 * 2**index
        rows, columns = features.shape[-2:]
        bins = raw[:, : 4 * self.BINS].unflatten(1, (4, self.BINS)).softmax(dim=2)
        distances = (bins * torch.arange(self.BINS, dtype=raw.dtype)[:, None, None]).sum(dim=2) * stride
        x = (torch.arange(columns, dtype=raw.dtype) + 0.5) * stride
        y = ((torch.arange(rows, dtype=raw.dtype) + 0.5) * stride)[:, None]
        left, top, right, bottom = distances.unbind(dim=1)
        boxes = torch.stack([x + (right - left) / 2, y + (bottom - top) / 2, left + right, top + bottom], dim=1)
        return torch.cat([boxes, 30 * raw[:, 4 * self.BINS :]], dim=1).flatten(2)  # untrained scores are all near a half otherwise


class Detr(nn.Module):
    """A box and scores for each of 12 queries, the last score standing for nothing. Boxes are shares of the image; none suppresses another."""

    def __init__(self, classes: int = 3, width: int = 32) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 8, 8), nn.ReLU(), nn.Conv2d(width, width, 2, 2))
        self.queries = nn.Parameter(torch.randn(12, width))
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.scores, self.boxes = nn.Linear(width, classes + 1), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        seen = self.backbone(x).flatten(2).transpose(1, 2)
        queries = self.queries.expand(len(x), -1, -1)
        found = queries + self.attention(queries, seen, seen, need_weights=False)[0]
        return {"scores": 3 * self.scores(found), "boxes": self.boxes(found).sigmoid()}


YOLO = DetectionHead(box_format="center", anchors_axis=2, score_threshold=0.55, iou_threshold=0.6)
DETR = DetectionHead(box_format="center", unit="share", activation="softmax", background=3, best_class=True, iou_threshold=None, score_threshold=0.4)


def made(network: nn.Module, head: DetectionHead, out: Path, *, resize: Resize = "stretch", axes: dict[str, Range] = BATCH | SIDES) -> Model:
    pixels = Pixels(height=64, width=96, resize=resize, interpolation="nearest")
    task = ImageTask(task="detection", pixels=pixels, labels=("a", "b", "c"), detection=head, axes=axes)
    return load(export_bundle(network, task, out, options=FP32).folder)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def seeded(build: Any) -> Any:
    torch.manual_seed(1)
    return build().eval()


def yolos_boxes(outputs: Tensor) -> list[tuple[int, float, list[float]]]:
    """As Ultralytics' non_max_suppression with several labels a box: written with torchvision's operators."""
    boxes, scores = outputs[:4].T.double(), outputs[4:].T.double().sigmoid()
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)
    anchors, classes = torch.where(scores > 0.55)
    corners = torchvision.ops.clip_boxes_to_image(corners[anchors], (64, 96))
    kept = torchvision.ops.boxes._batched_nms_vanilla(corners, scores[anchors, classes], classes, 0.6)
    return [(int(classes[each]), float(scores[anchors, classes][each]), corners[each].tolist()) for each in kept]


def detrs_boxes(outputs: dict[str, Tensor]) -> list[tuple[int, float, list[float]]]:
    """As the post-processing of DETR's authors, without queries below the threshold, the best first."""
    scores, classes = outputs["scores"].double().softmax(dim=-1)[:, :-1].max(dim=-1)
    boxes = torchvision.ops.box_convert(outputs["boxes"].double(), "cxcywh", "xyxy") * torch.tensor([96.0, 64.0, 96.0, 64.0], dtype=torch.float64)
    boxes = torchvision.ops.clip_boxes_to_image(boxes, (64, 96))
    order = [each for each in scores.argsort(descending=True).tolist() if scores[each] > 0.4]
    return [(int(classes[each]), float(scores[each]), boxes[each].tolist()) for each in order]


@pytest.mark.parametrize("name", ["yolo", "detr"])
def test_heads_are_read_through_the_contract_alone(name: str, tmp_path: Path) -> None:
    """On pixels of the network's own size nothing is resized, so boxes are those of the plain way in float64."""
    network, head = (seeded(Yolo), YOLO) if name == "yolo" else (seeded(Detr), DETR)
    model = made(network, head, tmp_path / "b", axes=BATCH | SIDES if name == "yolo" else BATCH)
    images = [photo(64, 96, seed) for seed in range(3)]
    with torch.inference_mode():
        raw = network.double()(torch.from_numpy(np.stack(images)).double().permute(0, 3, 1, 2) / 255)
    for index, found in enumerate(model.batch(images)):
        expected = yolos_boxes(raw[index]) if name == "yolo" else detrs_boxes({key: value[index] for key, value in raw.items()})
        assert isinstance(found, Detections) and len(found) >= 3
        assert [each.index for each in found] == [index for index, _, _ in expected]
        np.testing.assert_allclose(found.scores, [score for _, score, _ in expected], atol=1e-5)
        np.testing.assert_allclose(found.boxes, [box for _, _, box in expected], atol=1e-3)


def test_boxes_of_a_photograph_of_any_size(tmp_path: Path) -> None:
    """With every pixel doubled, a photograph has the same boxes at twice the place; of a high one they lie between the bars at its sides."""
    model = made(seeded(Yolo), YOLO, tmp_path / "b", resize="letterbox", axes=BATCH)
    small = photo(64, 96)
    plain, large = model(small), model(small.repeat(2, axis=0).repeat(2, axis=1))
    np.testing.assert_allclose(large.boxes, 2 * plain.boxes, atol=1e-3)  # type: ignore[union-attr]
    high = model(photo(200, 50))
    assert isinstance(high, Detections) and len(high)
    assert high.boxes[:, [0, 2]].min() >= 0 and high.boxes[:, [0, 2]].max() <= 50 and high.boxes[:, [1, 3]].max() <= 200


def test_a_batcher_answers_the_same(tmp_path: Path) -> None:
    model = made(seeded(Detr), DETR, tmp_path / "b", axes=BATCH)
    images = [photo(50, 70, 1), photo(90, 40, 2)]
    with model.batcher() as batcher:
        answers = [pending.result(60) for pending in [batcher(image) for image in images]]
    for found, image in zip(answers, images, strict=True):
        np.testing.assert_allclose(found.boxes, model(image).boxes, atol=1e-3)  # type: ignore[union-attr]


def test_predict_writes_rows_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(seeded(Yolo), YOLO, tmp_path / "b", axes=BATCH)
    (tmp_path / "images").mkdir()
    for index in range(2):
        Image.fromarray(photo(64, 96, index)).save(tmp_path / "images" / f"{index}.png")
    assert run(["predict", str(tmp_path / "b"), str(tmp_path / "images"), "--json", "--draw", str(tmp_path / "drawn"), "--min-score", "0.6"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["0.png", "1.png"]
    scores = [each["score"] for row in rows for each in row["detections"]]
    assert scores and min(scores) >= 0.6 and set(rows[0]["detections"][0]) == {"label", "index", "score", "box"}
    for index in range(2):
        with Image.open(tmp_path / "drawn" / f"{index}.png") as picture:
            assert picture.size[0] == 480  # 96 x 64 is enlarged five times
    assert run(["predict", str(tmp_path / "b"), str(tmp_path / "images" / "0.png")]) == 0
    assert "0.png: " in (printed := capsys.readouterr().out) and " at " in printed
    assert run(["predict", str(tmp_path / "b"), str(tmp_path / "images"), "--out", str(tmp_path / "rows.csv")]) == 0
    header, first, *_ = (tmp_path / "rows.csv").read_text().splitlines()
    assert "found" in header and '""detections""' in first


def test_outputs_that_do_not_fit_the_head_are_named() -> None:
    pixels = Pixels(height=64, width=96)
    with pytest.raises(Exception, match=r"needs one output each of the kinds boxes, levels, scores, got"):
        image_contract(seeded(Detr), ImageTask(task="detection", pixels=pixels, detection=DetectionHead(candidates_per="level"), axes=BATCH))
    with pytest.raises(Exception, match="needs `detection`"):
        image_contract(seeded(Detr), ImageTask(task="detection", pixels=pixels, axes=BATCH))


def test_a_detector_of_torchvision_is_exported_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "lite"
    arguments = ["export", "torchvision:ssdlite320_mobilenet_v3_large", "--random-weights", "--size", "96x96", "--precision", "fp32", "--out", str(out)]
    assert main(arguments) == 0, capsys.readouterr().err
    model = load(out)
    assert model.contract.labels[0] == "__background__" and len(model.contract.labels) == 91
    assert isinstance(model(photo(50, 80)), Detections)
    assert main(["verify", str(out), "--model", "torchvision:ssdlite320_mobilenet_v3_large"]) == 0, capsys.readouterr().err
    assert main([*arguments[:1], "torchvision:fasterrcnn_resnet50_fpn", *arguments[2:-1], str(tmp_path / "two")]) == 2
    assert "export a detector of one stage" in capsys.readouterr().err and not (tmp_path / "two").exists()


@pytest.mark.long
@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "fcos_resnet50_fpn"])
def test_graphs_with_levels_give_torchvisions_boxes_at_every_size(name: str, tmp_path: Path) -> None:
    """Through onnxruntime, at sizes other than the one that was traced."""
    torch.manual_seed(0)
    detector: Any = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5).eval()
    for each in detector.head.modules():
        if isinstance(each, nn.Conv2d):
            nn.init.kaiming_normal_(each.weight)
            nn.init.zeros_(each.bias)  # type: ignore[arg-type]
    detector.transform = torchvision.models.detection.transform.GeneralizedRCNNTransform(1, 1, [0.0] * 3, [1.0] * 3, size_divisible=1, _skip_resize=True)
    head = detection_head(detector)
    pixels = Pixels(height=128, width=160)  # at 128x128 the last map is one row, which the exporter takes for a fixed size
    axes = BATCH | {axis: Range(low=64, high=192, step=32) for axis in ("height", "width")}
    model = load(
        export_bundle(DetectorHeads(detector), ImageTask(task="detection", pixels=pixels, detection=head, axes=axes), tmp_path / "b", options=FP32).folder
    )
    for height, width in ((64, 192), (160, 96)):
        image = photo(height, width)
        (found,) = model.batch([image], size_px=(height, width))
        with torch.inference_mode():
            expected = detector([torch.from_numpy(image).permute(2, 0, 1) / 255])[0]
        assert isinstance(found, Detections) and math.isclose(len(found), len(expected["boxes"]), abs_tol=2) and len(found) > 5
        best = np.flatnonzero(np.diff(found.scores[:20]) < -1e-3)[:5]  # whose places rounding does not exchange
        np.testing.assert_allclose(found.boxes[best], expected["boxes"].numpy()[best], atol=0.05)


@pytest.mark.long
@pytest.mark.timeout(2400)  # three minutes of training on two quiet cores, several times that beside another test
@pytest.mark.parametrize(("name", "least"), [("detector", 0.9), ("segmenter", 0.8)])
def test_trained_networks_go_through_the_whole_job(name: str, least: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained, exported, verified; int8 within half a point."""
    assert main(["train", name, "--out", str(tmp_path / "weights.safetensors")]) == 0
    assert main(["export", name, "--checkpoint", str(tmp_path / "weights.safetensors"), "--out", str(tmp_path / "b"), "--precision", "int8"]) == 0
    quality = json.loads((tmp_path / "b" / "evidence.json").read_text())["quality"]
    figures = quality["at_50"] if name == "detector" else quality["values"]
    assert figures["torch"] >= least and figures["fp32"] == pytest.approx(figures["torch"], abs=1e-3)
    assert quality["values"]["torch"] - quality["values"]["int8"] <= 0.005
    assert main(["verify", str(tmp_path / "b"), "--checkpoint", str(tmp_path / "weights.safetensors")]) == 0, capsys.readouterr().out
    assert run(["check", str(tmp_path / "b")]) == 0
