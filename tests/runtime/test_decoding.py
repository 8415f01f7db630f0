import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeport_runtime import ImageError, Pixels
from edgeport_runtime.decoding import decode, in_rgb, size_px
from edgeport_runtime.images import prepare

KEEP = Pixels(height=8, width=8, resize="keep")
RAMP = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_file_bytes_pil_and_array_give_the_same_pixels(tmp_path: Path) -> None:
    image = Image.fromarray(RAMP)
    path = tmp_path / "ramp.png"
    image.save(path)
    data = encoded(image)
    for source in (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), image, RAMP, memoryview(RAMP), Foreign()):
        np.testing.assert_array_equal(prepare(source, KEEP), RAMP)
    with path.open("rb") as file:
        np.testing.assert_array_equal(prepare(file, KEEP), RAMP)


def test_the_size_of_a_turned_photo_is_that_of_its_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    Image.new("RGB", (20, 10)).save(path, exif=exif)
    assert size_px(path) == size_px(path.read_bytes()) == decode(path).size[::-1] == (20, 10)
    assert size_px(RAMP) == RAMP.shape[:2] and size_px(np.zeros((3, 5), np.int64)) == (3, 5)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow says what is cut off
@pytest.mark.parametrize("turn", [0, 1, 3, 6, 8, 9])
def test_odd_exif_costs_no_image(turn: int) -> None:
    """Pillow reads a tag 0x121 of the type RATIONAL, and cannot write it back; what lies beyond the end of the block it warns of."""
    tags = struct.pack(">HHIHH", 0x0112, 3, 1, turn, 0) + struct.pack(">HHII", 0x0121, 5, 1, 38)
    exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x02" + tags + bytes(4) + struct.pack(">II", 72, 1)
    for cut in (0, 6, 20, 30):
        file = io.BytesIO()
        Image.new("RGB", (20, 10)).save(file, "JPEG", exif=exif[: len(exif) - cut])
        data = file.getvalue()
        assert decode(data).size in ([(10, 20), (20, 10)] if cut else [(10, 20) if turn in (6, 8) else (20, 10)])
        assert size_px(data) == decode(data).size[::-1]


def test_a_view_with_gaps_is_read() -> None:
    data = encoded(Image.fromarray(RAMP))
    spread = bytearray(2 * len(data))
    spread[::2] = data
    np.testing.assert_array_equal(prepare(memoryview(spread)[::2], KEEP), RAMP)


def test_blue_green_red_is_turned_around() -> None:
    np.testing.assert_array_equal(in_rgb(RAMP, "bgr"), RAMP[:, :, ::-1])
    four = np.arange(16, dtype=np.uint8).reshape(2, 2, 4)
    np.testing.assert_array_equal(in_rgb(four, "bgr"), four[:, :, [2, 1, 0, 3]])
    for source in (b"x", RAMP[:, :, 0]):
        with pytest.raises(ImageError, match="channels='bgr' is for arrays"):
            in_rgb(source, "bgr")


class Foreign:
    """Another library's image, which numpy makes an array of."""

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return RAMP


class Untouchable:
    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        raise RuntimeError("on a card")


RED = (255, 0, 0)
PALETTE = Image.new("P", (2, 1))
PALETTE.putpalette([10, 20, 30, 200, 100, 50])
PALETTE.putpixel((1, 0), 1)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (1, 1), 77), [[[77, 77, 77]]]),
        (Image.new("RGBA", (1, 1), (*RED, 0)), [[[255, 0, 0]]]),  # alpha is dropped, not blended
        (Image.new("LA", (1, 1), (9, 128)), [[[9, 9, 9]]]),
        (Image.new("1", (1, 1), 1), [[[255, 255, 255]]]),
        (PALETTE, [[[10, 20, 30], [200, 100, 50]]]),
        (Image.fromarray(np.array([[0, 257, 65535]], np.uint16)), [[[0] * 3, [1] * 3, [255] * 3]]),  # 16 bits are scaled, not clipped
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), [[[255, 0, 0]]]),
    ],
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: list[list[list[int]]]) -> None:
    np.testing.assert_array_equal(prepare(image, KEEP), np.array(expected, np.uint8))


def test_cmyk_jpeg_from_a_file() -> None:
    got = prepare(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100), KEEP)
    assert np.abs(got.astype(int) - np.array(RED)).max() <= 3


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90),
    ],
)
def test_exif_orientation_is_applied(orientation: int, turn) -> None:  # type: ignore[no-untyped-def]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(RAMP), exif=exif.tobytes())
    np.testing.assert_array_equal(prepare(data, KEEP), turn(RAMP))
    assert size_px(data) == size_px(io.BytesIO(data)) == turn(RAMP).shape[:2]


TRUNCATED = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)))[:2000]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.png", "nowhere.png: there is no such file"),
        (b"", "not one"),
        (b"certainly not an image", "an image of 22 bytes: expected an image"),
        (TRUNCATED, "cannot be read"),
        (np.zeros((4, 4, 3), np.float32), "got float32"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (Image.new("F", (2, 2)), "mode F"),
        (Image.new("RGB", (0, 5)), "no pixels"),
        (None, "expected a path, bytes, an open file, a PIL image or a uint8 array, got NoneType"),
        (io.BytesIO(b"x"), "an open file: expected an image"),
        (Path(__file__).parent, "expected an image, but this is a folder; name the images in it"),
        (np.zeros((3, 8, 8), np.uint8), r"channels come last: np\.asarray\(image\)\.transpose\(1, 2, 0\)"),
        (np.zeros((3, 8, 8), np.float32), r"channels come last: .*; values in 0\.\.1 become levels by"),
        (np.full((8, 8, 3), 255.0), r"values in 0\.\.255 become levels by array\.round"),
        (np.full((8, 8, 3), 200), r"got int64 .*; values in 0\.\.255 become levels"),
        (np.full((8, 8), 60000, np.uint16), r"16 bits become levels by \(array // 257\)"),
        (io.StringIO("x"), r"an open file: it is open for text; open it for bytes"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"for several images give batch\(\) a list of them"),
        (Untouchable(), "Untouchable: numpy cannot make an array of it .on a card."),
        (Image.open(io.BytesIO(TRUNCATED)), "cannot be read"),
    ],
)
def test_a_source_that_is_no_image_is_refused_by_name(source: object, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        prepare(source, KEEP)  # type: ignore[arg-type]


def test_a_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(ImageError, match=r"a\.png: expected an image"):
        decode(tmp_path / "a.png")


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ImageError, match="more than the 89,478,485"):
        decode(encoded(Image.new("1", (10_000, 9_000))))
