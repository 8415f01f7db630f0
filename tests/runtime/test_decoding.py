import io
import os
import socket
import struct
import zlib
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


def test_cmyk_jpeg_from_a_file_with_and_without_adobes_marker() -> None:
    """Adobe writes CMYK the other way around, and browsers take all files for such, with its marker or without."""
    marked = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    start = marked.index(b"\xff\xee")
    bare = marked[:start] + marked[start + 2 + int.from_bytes(marked[start + 2 : start + 4]) :]
    assert b"Adobe" in marked and b"Adobe" not in bare
    for data in (marked, bare):
        assert np.abs(prepare(data, KEEP).astype(int) - np.array(RED)).max() <= 3


def png(values: np.ndarray, color: int) -> bytes:
    """16 bits a channel, by hand: Pillow writes no such files in color."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values: np.ndarray) -> bytes:
    """48 bits a pixel, uncompressed, by hand."""
    height, width, channels = values.shape
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, -1), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, -2), (277, 3, 1, channels)]
    tags += [(278, 4, 1, height), (279, 4, 1, values.nbytes)]
    bits, at = struct.pack(f"<{channels}H", *[16] * channels), 8 + 2 + 12 * 9 + 4
    places = {-1: at, -2: at + len(bits)}
    fields = b"".join(struct.pack("<HHII", number, kind, count, places.get(value, value)) for number, kind, count, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, 9) + fields + bytes(4) + bits + values.astype("<u2").tobytes()


@pytest.mark.parametrize(("color", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_a_channel_are_scaled_to_8(color: int, channels: int) -> None:
    """Gray, color, and both with alpha, which is dropped: within the one level by which viewers differ, too."""
    values = np.random.default_rng(color).integers(0, 65536, (5, 7, channels), dtype=np.uint16)
    shown = values[..., :3] if channels >= 3 else np.repeat(values[..., :1], 3, axis=2)
    assert np.abs(prepare(png(values, color), KEEP) - shown / 257).max() < 1
    if color == 2:
        assert np.abs(prepare(tiff(values), KEEP) - shown / 257).max() < 1


def test_a_palette_with_alpha_gives_its_colors() -> None:
    image = PALETTE.copy()
    image.info["transparency"] = bytes([0, 128])
    np.testing.assert_array_equal(prepare(encoded(image, transparency=bytes([0, 128])), KEEP), [[[10, 20, 30], [200, 100, 50]]])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP", "MPO"])
def test_the_first_of_several_frames_is_answered(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue", "lime")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(prepare(data, KEEP).astype(int) - np.array(RED)).max() <= 1 and size_px(data) == (16, 16)


@pytest.mark.parametrize(
    ("kind", "options", "most"),
    [
        ("PNG", {}, 0),
        ("JPEG", {"quality": 100, "subsampling": 0}, 6),
        ("WEBP", {"lossless": True}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
    ],
)
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
def test_exif_orientation_is_applied(orientation: int, turn, kind: str, options: dict[str, object], most: int) -> None:  # type: ignore[no-untyped-def]
    """Pillow turns a TIFF while it is decoded, and tells its upright size beforehand; the others it leaves to us."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(RAMP), kind, exif=exif.tobytes(), **options)
    assert np.abs(prepare(data, KEEP).astype(int) - turn(RAMP)).max() <= most
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


@pytest.mark.skipif(os.name == "nt", reason="pipes and sockets are Unix's")
@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a device"])
def test_what_is_no_file_is_refused_without_waiting(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe waited for ever."""
    monkeypatch.chdir(tmp_path)
    path = Path("a.png")
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    for look in (decode, size_px):
        with pytest.raises(ImageError, match=rf"a\.png: expected an image, but this is {kind}; name a file, or give its bytes"):
            look(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_file_that_ends_early_is_refused_wherever_it_ends(kind: str) -> None:
    data = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8)), kind)
    for end in range(0, len(data) * 3 // 4, max(1, len(data) // 97)):
        with pytest.raises(ImageError):
            prepare(data[:end], KEEP)


def test_an_image_of_no_pixels_is_refused() -> None:
    for width, height in ((0, 5), (5, 0), (0, 0)):
        head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        data = bytearray(png(np.zeros((1, 1, 1), np.uint16), 0))
        data[16:29] = head
        data[29:33] = struct.pack(">I", zlib.crc32(b"IHDR" + head))
        with pytest.raises(ImageError):
            prepare(bytes(data), KEEP)


def test_whatever_pillow_raises_is_an_image_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plugins raise what a damaged file makes them raise; a signal's handler raises what it likes, and that is not caught."""

    class TimeIsUpError(Exception): ...

    data = encoded(Image.fromarray(RAMP))
    for error in (struct.error("x"), KeyError("x"), IndexError("x"), TypeError("x"), OverflowError("x"), ZeroDivisionError("x"), RecursionError("x")):
        monkeypatch.setattr(Image.Image, "load", lambda _, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(ImageError, match=r"an image of \d+ bytes: the image cannot be read"):
            decode(data)
    monkeypatch.setattr(Image.Image, "load", lambda _: (_ for _ in ()).throw(MemoryError()))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(ImageError, match="there is not enough memory to decode it; shrink the image first"):
        decode(data)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: (_ for _ in ()).throw(TimeIsUpError()))
    with pytest.raises(TimeIsUpError):
        decode(data)
