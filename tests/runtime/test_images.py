import gc
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeport_runtime import ImageError, InputError, Pixels
from edgeport_runtime import images as images_module
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import classification, image_to_image
from edgeport_runtime.decoding import describe
from edgeport_runtime.images import groups_of_one_shape, image_files, pixel_batches, prepare, stack

KEEP = Pixels(height=8, width=8, resize="keep")
RAMP = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def test_gray_contract_has_one_channel() -> None:
    gray = Pixels(height=8, width=8, mode="L", resize="keep", mean=(0.5,), std=(0.5,))
    got = prepare(Image.new("RGB", (3, 2), (255, 255, 255)), gray)
    assert got.shape == (2, 3, 1) and got.min() == 255


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 11), (40, 3)])
def test_stretch_is_pillows_antialiased_resize(height: int, width: int) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (37, 29, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(prepare(photo, Pixels(height=height, width=width)), expected)


def test_crop_truncates_the_longer_side_and_takes_the_center() -> None:
    photo = np.random.default_rng(1).integers(0, 256, (427, 640, 3), dtype=np.uint8)
    pixels = Pixels(height=224, width=224, resize="crop", resize_shorter_px=256)
    shrunk = np.asarray(Image.fromarray(photo).resize((383, 256), Image.Resampling.BILINEAR))  # 256 * 640 / 427 = 383.7
    np.testing.assert_array_equal(prepare(photo, pixels), shrunk[16:240, 80:304])  # (383 - 224) / 2 = 79.5, half to even


def test_crop_scales_with_the_size_asked_for() -> None:
    pixels = Pixels(height=224, width=224, resize="crop", resize_shorter_px=256)
    photo = np.random.default_rng(1).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    shrunk = np.asarray(Image.fromarray(photo).resize((128, 128), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(prepare(photo, pixels, (112, 112)), shrunk[8:120, 8:120])


def test_letterbox_keeps_the_shape_and_fills_the_rest() -> None:
    got = prepare(np.full((10, 20, 3), 200, np.uint8), Pixels(height=16, width=16, resize="letterbox", fill=7))
    assert got.shape == (16, 16, 3)
    assert (got[:4] == 7).all() and (got[4:12] == 200).all() and (got[12:] == 7).all()


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["stretch", "crop", "letterbox"]))
def test_any_image_becomes_the_size_promised(height: int, width: int, resize: str) -> None:
    pixels = Pixels(height=9, width=13, resize=resize, resize_shorter_px=11)  # type: ignore[arg-type]
    assert prepare(np.zeros((height, width, 3), np.uint8), pixels).shape == (9, 13, 3)


def test_inputs_are_not_written_to() -> None:
    photo = RAMP.copy()
    prepare(photo, Pixels(height=2, width=2))[:] = 0
    prepare(photo, KEEP)[:] = 0
    np.testing.assert_array_equal(photo, RAMP)


def test_a_size_that_does_not_apply() -> None:
    with pytest.raises(InputError, match="keeps every image's own size"):
        prepare(RAMP, KEEP, (8, 8))
    with pytest.raises(InputError, match="from 1 pixel up"):
        prepare(RAMP, Pixels(height=8, width=8), (0, 8))


def test_images_of_two_sizes_are_no_batch() -> None:
    with pytest.raises(ImageError, match="one batch holds images of one size"):
        stack([np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3, 3), np.uint8)])


def test_describe_and_image_files(tmp_path: Path) -> None:
    assert describe(RAMP) == "an array of shape (4, 6, 3)"
    assert describe(Image.new("L", (6, 4))) == "a PIL image of 6x4 pixels (WxH)"
    for name in ("b.PNG", "a.jpg", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "c.png").symlink_to(tmp_path / "nowhere.png")  # gets an error of its own when it is read
    assert [path.name for path in image_files(tmp_path)] == ["a.jpg", "b.PNG", "c.png"]
    for path, message in ((tmp_path / "nothing", "there is no such folder"), (tmp_path / "a.jpg", "this is a file")):
        with pytest.raises(InputError, match=message):
            image_files(path)


@pytest.mark.parametrize(
    ("shapes", "largest", "expected"),
    [
        ([(2, 2), (3, 3), (2, 2), (2, 2), (3, 3)], 2, [[0, 2], [3], [1, 4]]),
        ([(2, 2)] * 5, 8, [[0, 1, 2, 3, 4]]),
        ([], 8, []),
    ],
)
def test_groups_of_one_shape_are_no_larger_than_allowed(shapes: list[tuple[int, int]], largest: int, expected: list[list[int]]) -> None:
    assert groups_of_one_shape(shapes, largest) == expected


@pytest.mark.parametrize("at_once", [None, 1, 4, 100])
def test_every_image_is_in_one_batch_of_its_size(at_once: int | None) -> None:
    contract = image_to_image(Pixels(height=8, width=8, resize="keep"), image_axes(smallest_px=4, largest_px=64, largest_batch=3))
    sources = [np.full((8 + index % 2, 8, 3), index, np.uint8) for index in range(11)]
    seen: list[int] = []
    for indices, pixels, _ in pixel_batches(sources, contract, prepared_at_once=at_once):
        assert len(indices) == len(pixels) <= 3 and [int(image[0, 0, 0]) for image in pixels] == indices
        seen += indices
    assert sorted(seen) == list(range(11))


def test_batches_are_bounded_and_faults_are_kept_apart() -> None:
    contract = image_to_image(KEEP, image_axes(smallest_px=4, largest_px=64, largest_batch=4))
    sources = [RAMP] * 5 + [b"broken"] + [np.zeros((8, 8, 3), np.uint8)] * 3 + [np.zeros((2, 2, 3), np.uint8)]
    faults: dict[int, ImageError] = {}
    batches = [batch.indices for batch in pixel_batches(sources, contract, most=lambda height, width: 2 if height == 8 else 9, faults=faults)]
    assert batches == [[0, 1, 2, 3], [4], [6, 7], [8]]
    assert {index: str(error)[:25] for index, error in faults.items()} == {5: "an image of 6 bytes: expe", 9: "an array of shape (2, 2, "}
    with pytest.raises(ImageError, match="an image of 6 bytes"):
        list(pixel_batches(sources, contract))


def test_images_outside_the_contract_are_refused_by_name(tmp_path: Path) -> None:
    contract = image_to_image(Pixels(height=8, width=8, resize="keep"), image_axes(smallest_px=4, largest_px=64, largest_batch=3))
    Image.new("RGB", (3, 8)).save(tmp_path / "thin.png")
    with pytest.raises(ImageError, match=r"thin\.png: 3 px is too small for the width of this model"):
        list(pixel_batches([RAMP, tmp_path / "thin.png"], contract))


SIDES = (1, 2, 3, 7, 17, 56, 100, 333, 1024, 4001, 20_000, 60_000)
MODES = ("RGB", "L", "RGBA", "P", "CMYK", "I;16", "LA", "1")
CORPUS = """
import json, resource, sys
from PIL import Image
from edgeport_runtime import ImageError, Pixels
from edgeport_runtime.images import prepare

RULES = (Pixels(height=224, width=224), Pixels(height=224, width=224, resize="letterbox"), Pixels(height=224, width=224, resize="crop", resize_shorter_px=256))
accepted = refused = 0
prepare(Image.new("RGB", (64, 64)), RULES[0])
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for index, (width, height, mode) in enumerate(json.loads(sys.argv[1])):  # from small to large, because the peak never falls
    Image.new(mode, (width, height)).save(sys.argv[2])
    made = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        assert prepare(sys.argv[2], RULES[index % 3]).shape == (224, 224, 3)
        accepted += 1
    except ImageError as error:
        assert "pixels on the way to the network's size" in str(error), error
        refused += 1
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
    assert taken <= 4 * width * height * 3 / 1024 + 65_536, (width, height, mode, taken)
print(accepted, refused)
"""


def test_memory_is_in_proportion_to_the_image(tmp_path: Path) -> None:
    """At most 4 times the decoded image and 64 MB, over 300 odd shapes. A file of 429 bytes (60000x2) took 7.8 GB."""
    shapes = sorted({(width, height) for width in SIDES for height in SIDES if width * height <= 4_100_000}, key=lambda each: each[0] * each[1])
    corpus = [(*shape, MODES[(3 * index + turn) % len(MODES)]) for index, shape in enumerate(shapes) for turn in range(3)]
    assert len(corpus) > 300
    done = subprocess.run([sys.executable, "-c", CORPUS, json.dumps(corpus), str(tmp_path / "image.tiff")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    accepted, refused = map(int, done.stdout.split())
    assert accepted > 270 and refused > 5


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (20, 999), (17, 17), (3000, 60)])
@pytest.mark.parametrize(("shorter", "side"), [(256, 224), (20, 32)])
def test_crop_has_torchvisions_bits(size: tuple[int, int], shorter: int, side: int) -> None:
    functional = pytest.importorskip("torchvision.transforms.functional", reason="these tests run on devices, too")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    expected = functional.center_crop(functional.resize(image, shorter), [side, side])
    got = prepare(image, Pixels(height=side, width=side, resize="crop", resize_shorter_px=shorter))
    np.testing.assert_array_equal(got, np.asarray(expected))


def test_files_are_prepared_by_several_threads_in_order(tmp_path: Path) -> None:
    """The same pixels as one by one, whichever thread was first; and the next window is prepared while this one is used."""
    contract = classification(Pixels(height=8, width=8), ("a", "b"), image_axes(smallest_px=4))
    rng, paths = np.random.default_rng(0), []
    for number in range(30):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (4 + number, 9, 3), dtype=np.uint8)).save(paths[-1])
    paths[7].write_bytes(b"torn")
    faults: dict[int, ImageError] = {}
    threads, seen = set(), {}
    real = images_module.prepare

    def prepare_and_tell(*given: Any) -> Any:
        threads.add(threading.current_thread().name)
        return real(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images_module, "prepare", prepare_and_tell)
        for indices, pixels, _ in pixel_batches(paths, contract, prepared_at_once=8, faults=faults):
            seen |= dict(zip(indices, pixels, strict=True))
    assert threading.current_thread().name not in threads and list(faults) == [7]
    assert list(seen) == [index for index in range(30) if index != 7]
    for index, pixels in seen.items():
        np.testing.assert_array_equal(pixels, prepare(paths[index], contract.pixels))
    with pytest.raises(ImageError, match=r"7\.png"):
        list(pixel_batches(paths, contract, prepared_at_once=8))


def test_whoever_stops_early_leaves_no_threads(tmp_path: Path) -> None:
    contract = classification(Pixels(height=8, width=8), ("a", "b"), image_axes(smallest_px=4))
    Image.fromarray(RAMP).save(tmp_path / "ramp.png")
    before = threading.active_count()
    for _ in pixel_batches([tmp_path / "ramp.png"] * 200, contract, prepared_at_once=4):
        break
    gc.collect()
    assert threading.active_count() == before


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "keep"])
def test_pixels_of_the_right_size_are_taken_as_they_are(resize: Any) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    pixels = Pixels(height=8, width=12, resize=resize)
    np.testing.assert_array_equal(prepare(photo, pixels), photo)
    np.testing.assert_array_equal(prepare(photo, pixels), prepare(Image.fromarray(photo), pixels))
