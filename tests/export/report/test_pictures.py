"""Golden images and their answers, as the bundle holds them."""

import base64
import io
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from edgeport_export.network.image_hash import pixels_sha256
from edgeport_export.report.facts import BundleFacts
from edgeport_export.report.held_out import HeldOutImages
from edgeport_export.report.pictures import DIFFERENCE, MOST_IMAGES, _row, changed_rows, picture_rows
from edgeport_runtime import Bundle, Detections, Example, Segmentation
from edgeport_runtime.bundle import EVIDENCE

FIXTURES = Path(__file__).parents[2] / "fixtures" / "format2"


def shown(data: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))))


def test_a_classifiers_rows_have_the_stored_answers() -> None:
    bundle = Bundle(FIXTURES / "classifier")
    rows = picture_rows(BundleFacts(bundle))
    case = bundle.manifest.golden[0]
    assert 0 < len(rows) <= MOST_IMAGES and rows[0].name == f"{case.folder}, image 1"
    assert [each.title for each in rows[0].panels] == ["input", "PyTorch", "fp32", "int8"]
    logits = bundle.tensor(case.outputs[0])[0].astype(np.float64)
    odds = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = int(odds.argmax())
    assert rows[0].panels[1].words.splitlines()[0] == f"{bundle.manifest.contract.labels[best]} {odds[best]:.3f}"
    pixels = bundle.tensor(case.inputs[0])[0]
    np.testing.assert_array_equal(shown(rows[0].panels[0].data)[:: 96 // 16, :: 96 // 16], pixels)  # 16 pixels are shown 6 times as large


def test_a_generators_rows_have_images_and_where_they_differ() -> None:
    bundle = Bundle(FIXTURES / "generator")
    row = picture_rows(BundleFacts(bundle))[0]
    assert [each.title for each in row.panels] == ["input", "PyTorch", "fp32", "fp32 - PyTorch", "int8", "int8 - PyTorch"]
    case = bundle.manifest.golden[0]
    torch, int8 = bundle.tensor(case.outputs[0])[0].astype(int), bundle.tensor(case.host["int8"][0])[0].astype(int)
    assert f"at most {abs(int8 - torch).max()} levels" in row.panels[5].words
    scale = shown(row.panels[5].data).shape[0] // torch.shape[0]
    np.testing.assert_array_equal(shown(row.panels[5].data)[::scale, ::scale], np.clip(128 + DIFFERENCE * (int8 - torch), 0, 255))


def test_the_truth_stands_beside_the_answers(tiny: ModuleType) -> None:
    images = tiny.brightness_examples(30, seed=2)
    facts = BundleFacts(Bundle(FIXTURES / "classifier"))
    rows = picture_rows(facts, HeldOutImages(facts, [images]))
    assert rows[0].panels[-1].title == "truth" and rows[0].panels[-1].words == ("dark", "middle", "bright")[images[0].truth]
    assert picture_rows(facts)[-1].panels == rows[-1].panels  # made up by the export: nobody knows its truth
    facts = BundleFacts(Bundle(FIXTURES / "generator"))
    pairs = [Example(source=each.source, truth=255 - np.asarray(each.source)) for each in images]
    clean = picture_rows(facts, HeldOutImages(facts, [pairs]))[0].panels[-1]
    assert (clean.title, clean.alt) == ("clean", "what test_data_set_0, image 1 should become")
    np.testing.assert_array_equal(shown(clean.data)[:: 96 // 16, :: 96 // 16], pairs[0].truth)


def test_images_whose_label_changed_are_shown_with_both_labels(tiny: ModuleType, tmp_path: Path) -> None:
    images = tiny.brightness_examples(30, seed=2)
    folder = Path(shutil.copytree(FIXTURES / "classifier", tmp_path / "bundle"))
    evidence = json.loads((folder / EVIDENCE).read_text())
    row = {"torch": 0, "answer": 2, "truth": 1, "torch_margin": 0.5, "margin": 0.25}
    rows = [{**row, "image": number, "pixels_sha256": pixels_sha256(images[number].source)} for number in range(MOST_IMAGES + 3)]
    evidence["quality"]["changed_images"] = {"fp32": [], "int8": [{**row, "image": 29}, *rows]}
    (folder / EVIDENCE).write_text(json.dumps(evidence))
    facts = BundleFacts(Bundle(folder))
    (made,) = changed_rows(facts, HeldOutImages(facts, [images]))
    assert [each.title for each in made.panels] == [f"image {number}" for number in range(MOST_IMAGES - 1)]  # the first row has no hash
    assert made.panels[0].words == "PyTorch: dark\nint8: bright\ntruth: middle"
    np.testing.assert_array_equal(shown(made.panels[3].data)[:: 96 // 16, :: 96 // 16], images[3].source)


def test_a_large_image_is_made_small_and_a_gray_one_stays_gray() -> None:
    large, gray = np.zeros((1000, 500, 3), np.uint8), np.zeros((8, 8, 1), np.uint8)
    assert shown(_row("x", large, {}).panels[0].data).shape == (320, 160, 3)
    assert shown(_row("x", gray, {}).panels[0].data).shape == (96, 96)


def test_boxes_and_masks_are_drawn_over_the_image_side_by_side() -> None:
    image = np.full((96, 120, 3), 40, np.uint8)
    box = Detections(boxes=np.array([[20, 10, 70, 60]], np.float32), scores=np.array([0.9], np.float32), classes=np.array([0]), labels=("cat",))
    none = Detections(boxes=np.zeros((0, 4), np.float32), scores=np.zeros(0, np.float32), classes=np.zeros(0, np.int64), labels=("cat",))
    row = _row("x", image, {"PyTorch": box, "int8": none})
    assert [each.title for each in row.panels] == ["input", "PyTorch", "int8"] and row.panels[1].alt == "PyTorch's answer for x, drawn over the image"
    found, nothing = (shown(each.data)[:250].astype(int) for each in row.panels[1:])  # without the words below, and as wide as 320 pixels
    assert found.shape[1] == 320 and np.abs(nothing - 40).max() < 20 < np.abs(found - 40).max()
    edge, middle = found[30:150, 45:60], found[60:130, 90:160]  # the box's left side is at 20 * 320 / 120
    assert np.abs(edge - 40).max() > 100 > 20 > np.abs(middle - 40).max()
    mask = Segmentation(classes=np.kron([[0, 1]], np.ones((96, 60), np.int64)), labels=("ground", "cat"))
    covered = shown(_row("x", image, {"int8": mask}).panels[1].data)[:250].astype(int)
    assert np.abs(covered[:, 180:] - 40).max(axis=2).mean() > 20 > np.abs(covered[:, :140] - 40).max(axis=2).mean()
