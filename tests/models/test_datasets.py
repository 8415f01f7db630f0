import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from edgeport_models import Data, DataError, load_data
from edgeport_models.datasets import NOISE_SIGMA, add_noise, random_patches, tiles
from edgeport_runtime import Example, Pixels
from edgeport_runtime.average_precision import TrueBoxes
from edgeport_runtime.images import prepare
from edgeport_runtime.tasks import TruthKind

KEEP = Pixels(height=8, width=8, resize="keep")


def pixels(example: Example) -> bytes:
    return prepare(example.source, KEEP).tobytes()


def test_digits() -> None:
    data = load_data("digits")
    assert (len(data.train), len(data.calibration), len(data.test)) == (1277, 160, 360)
    assert data.labels == tuple("0123456789")
    first = prepare(data.train[0].source, KEEP)
    assert first.shape == (32, 32, 3) and first.min() == 0 and first.max() > 200
    from sklearn.datasets import load_digits

    assert [example.truth for example in data.test] == load_digits().target[-360:].tolist()


@pytest.mark.parametrize("name", ["digits", "photos"])
def test_the_parts_share_no_image(name: str) -> None:
    data = load_data(name, truth="image" if name == "photos" else "label")
    parts = [{pixels(example) for example in part} for part in (data.train, data.calibration, data.test)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


def test_photos_are_noisy_and_clean_pairs() -> None:
    data = load_data("photos", truth="image")
    assert (len(data.train), len(data.calibration), len(data.test)) == (2000, 24, 15)
    differences = np.concatenate([(np.asarray(e.source, float) - np.asarray(e.truth, float)).ravel() for e in data.train[:100]])
    assert abs(differences.mean()) < 1.5 and 20 < differences.std() < NOISE_SIGMA  # clipping at 0 and 255 takes some


def test_noise_has_the_sigma_it_says() -> None:
    gray = np.full((300, 300, 3), 128, np.uint8)
    assert np.std(add_noise(gray, np.random.default_rng(0)) - 128.0) == pytest.approx(NOISE_SIGMA, rel=0.01)


def test_patches_and_tiles_are_cut_from_the_photo() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    assert len(tiles(photo, seed=0, side_px=16)) == 2 * 3
    np.testing.assert_array_equal(tiles(photo, seed=0, side_px=16)[-1].truth, photo[16:32, 32:48])
    one = random_patches(photo, 3, 40, seed=0, recolor=False)[0].truth
    assert any(np.array_equal(one, photo[:, x : x + 40]) for x in range(11))
    colored = np.asarray(random_patches(photo, 1, 40, seed=0, recolor=True)[0].truth)
    channels = [c for x in range(11) for c in np.moveaxis(photo[:, x : x + 40], 2, 0)]
    assert all(any(np.array_equal(c, o) or np.array_equal(c, 255 - o) for o in channels) for c in np.moveaxis(colored, 2, 0))
    with pytest.raises(DataError, match="at least 64x64"):
        random_patches(photo, 1, 64, seed=0, recolor=False)


def make_folder(root: Path, names: list[str]) -> None:
    for index, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), index, np.uint8)).save(root / name)


def parts(data: Data) -> list[set[str]]:
    return [{str(example.source) for example in part} for part in (data.train, data.calibration, data.test)]


def test_class_folders(tmp_path: Path) -> None:
    names = [f"{label}/{index}.png" for label in ("cat", "dog") for index in range(60)]
    make_folder(tmp_path, names)
    data = load_data(f"folder:{tmp_path}")
    assert data.labels == ("cat", "dog")
    assert sum(map(len, (data.train, data.calibration, data.test))) == 120
    assert min(map(len, (data.train, data.calibration, data.test))) > 2
    for example in data.train:
        assert data.labels[example.truth] == Path(str(example.source)).parent.name  # type: ignore[index]
    before = parts(data)
    make_folder(tmp_path, ["cat/new.png"])
    assert all(old <= new for old, new in zip(before, parts(load_data(f"folder:{tmp_path}")), strict=True))  # nothing changes its part


def test_plain_folder_for_a_generator(tmp_path: Path) -> None:
    make_folder(tmp_path, [f"{index}.png" for index in range(30)])
    data = load_data(f"folder:{tmp_path}", truth="image")
    assert data.labels == () and len(data.train) % 16 == 0 and data.test
    assert np.asarray(data.train[0].truth).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("name", "truth", "message"),
    [
        ("mnist", "label", "expected one of digits, photos, scenes, cifar10 or folder:PATH as data, got 'mnist'"),
        ("digits", "image", r"learns from pairs of images \(photos, or folder:PATH\), not from 'digits'"),
        ("photos", "label", r"learns from labeled images \(digits, cifar10, or folder:PATH\)"),
        ("digits", "boxes", r"learns from images with boxes \(scenes, or folder:PATH\)"),
        ("photos", "mask", r"learns from images with masks \(scenes\)"),
        ("folder:nowhere", "label", "is no such folder"),
        ("folder:nowhere", "image", "is no such folder"),
        ("folder:nowhere", "boxes", "expected COCO's annotations beside the images"),
        ("folder:nowhere", "mask", "folders hold no masks to learn from"),
    ],
)
def test_data_that_cannot_be_had(name: str, truth: TruthKind, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(name, truth=truth)


def test_scenes_have_other_writers_and_another_photograph_in_each_part() -> None:
    boxes, masks = load_data("scenes", truth="boxes"), load_data("scenes", truth="mask")
    assert boxes.labels == tuple("0123456789") and masks.labels == ("background", "digit")
    assert [len(each) for each in (boxes.train, boxes.calibration, boxes.test)] == [6000, 128, 300]
    assert np.array_equal(boxes.test[3].source, masks.test[3].source) and np.asarray(masks.test[3].truth).shape == (128, 128)
    first = TrueBoxes.of(boxes.test[3].truth, "a scene")
    assert len(first.boxes) == len(first.classes) and not np.array_equal(boxes.train[0].source, boxes.calibration[0].source)


def test_a_folder_with_annotations_is_divided_by_names(tmp_path: Path) -> None:
    names = [f"{index}.png" for index in range(40)]
    for name in names:
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    found = {"images": [{"id": index, "file_name": name} for index, name in enumerate(names)], "categories": [{"id": 5, "name": "cat"}]}
    found["annotations"] = [{"image_id": index, "category_id": 5, "bbox": [1, 1, 4, 4]} for index in range(40)]
    (tmp_path / "annotations.json").write_text(json.dumps(found))
    data = load_data(f"folder:{tmp_path}", truth="boxes")
    assert data.labels == ("cat",) and len(data.train) + len(data.calibration) + len(data.test) == 40 and len(data.train) > 20
    assert TrueBoxes.of(data.train[0].truth, "x").boxes.tolist() == [[1, 1, 5, 5]]


def test_a_class_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="none in it"):
        load_data(f"folder:{tmp_path}")


def test_cifar10_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    monkeypatch.setenv("EDGEPORT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"CIFAR-10 could not be downloaded .*EDGEPORT_DATA"):
        load_data("cifar10")


def test_cifar10_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeCifar:
        classes = ("plane", "car")

        def __init__(self, root: object, *, train: bool, download: bool) -> None:
            count = 1200 if train else 30
            self.data, self.targets = np.zeros((count, 32, 32, 3), np.uint8), [0] * count

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCifar)
    data = load_data("cifar10")
    assert (len(data.train), len(data.calibration), len(data.test), data.labels) == (200, 1000, 30, ("plane", "car"))


@pytest.mark.parametrize(("package", "name"), [("sklearn", "digits"), ("scipy", "photos")])
def test_data_of_the_extra_demo_without_it(package: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf"`{name}` needs scikit-learn and scipy, and {package} cannot be imported .*edgeport\[demo\]"):
        load_data(name, truth="image" if name == "photos" else "label")
