"""What is refused before a pixel is decoded, and what it costs to refuse it. Files are made by Pillow or by hand."""

import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeport_runtime import ImageError, InputError, Pixels, load
from edgeport_runtime.decoding import decode, size_px
from edgeport_runtime.image_limits import FORMATS, MOST_SCANS, ImageLimits
from edgeport_runtime.images import prepare

KEEP = Pixels(height=8, width=8, resize="keep")
NOISE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def frames(kind: str, count: int) -> bytes:
    images = [Image.fromarray(np.roll(NOISE, shift, axis=1)) for shift in range(count)]
    return encoded(images[0], kind, save_all=True, append_images=images[1:])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_file_mb": 0}, "max_file_mb is a number of MB above 0, got 0"),
        ({"max_file_mb": float("nan")}, "got nan"),
        ({"max_file_mb": True}, "got True"),
        ({"max_px": 0}, "max_px is a whole number of pixels, at least 1, got 0"),
        ({"max_px": 1.5}, "got 1.5"),
        ({"max_frames": 0}, "max_frames is a whole number, at least 1, or None for any, got 0"),
        ({"formats": "PNG"}, "formats are some of"),
        ({"formats": ()}, "formats are some of"),
        ({"formats": ("EPS",)}, r"formats are some of .*, got \('EPS',\)"),
    ],
)
def test_limits_that_are_none(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageLimits(**wrong)


def test_a_large_file_is_refused_however_it_comes(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(NOISE), "BMP")
    path = tmp_path / "a.bmp"
    path.write_bytes(data)
    fits, small = ImageLimits(max_file_mb=len(data) / 1e6), ImageLimits(max_file_mb=(len(data) - 1) / 1e6)
    for source in (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data)):
        assert decode(source, fits).size == (50, 40)
        for look in (decode, size_px):
            with pytest.raises(ImageError, match=r"MB are more than the 0\.00613\d MB that are read; shrink the image, or raise max_file_mb"):
                look(source, small)


@pytest.mark.skipif(os.name == "nt", reason="pipes are Unix's")
def test_an_endless_stream_ends_at_the_limit() -> None:
    """A pipe that the caller has opened himself is read, since he may mean it."""
    data = encoded(Image.fromarray(NOISE), "PNG")
    for endless in (False, True):
        ours, theirs = os.pipe()

        def write(end: int = theirs, for_ever: bool = endless) -> None:
            with os.fdopen(end, "wb") as file:
                try:
                    file.write(data)
                    while for_ever:
                        file.write(bytes(65536))
                except BrokenPipeError:
                    pass

        threading.Thread(target=write, daemon=True).start()
        with os.fdopen(ours, "rb") as file:
            if endless:
                with pytest.raises(ImageError, match=r"MB are more than the 0\.1 MB"):
                    decode(file, ImageLimits(max_file_mb=0.1))
            else:
                assert decode(file).size == (50, 40)


@pytest.mark.parametrize("kind", FORMATS)
def test_pixels_are_counted_before_they_are_decoded(kind: str) -> None:
    data = encoded(Image.fromarray(NOISE), kind)
    assert decode(data, ImageLimits(max_px=2000)).size == (50, 40)
    for look in (decode, size_px):
        with pytest.raises(ImageError, match=r"50x40 pixels \(WxH\) are more than the 1,999 that are decoded; shrink the image first, or raise max_px"):
            look(data, ImageLimits(max_px=1999))


def test_above_pillows_own_limit_both_have_to_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    data = encoded(Image.fromarray(NOISE), "PNG")
    with pytest.raises(ImageError, match=r"raise max_px and PIL\.Image\.MAX_IMAGE_PIXELS, which is 900"):
        decode(data, ImageLimits(max_px=10**6))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode(data, ImageLimits(max_px=10**6)).size == (50, 40)


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_are_allowed_by_name(kind: str) -> None:
    data = encoded(Image.fromarray(NOISE), kind)
    assert decode(data, ImageLimits(formats=(kind,))).size == (50, 40)
    others = tuple(each for each in FORMATS if each != kind)
    with pytest.raises(ImageError, match=rf"expected an image \({', '.join(others)}\), but the content is not one"):
        decode(data, ImageLimits(formats=others))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP", "MPO"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_frames_are_counted_if_they_are_limited(kind: str, count: int) -> None:
    data = frames(kind, count)
    for most in (1, 2, 4, 5, 9):
        if most >= count:
            made = prepare(data, KEEP, limits=ImageLimits(max_frames=most))
            np.testing.assert_array_equal(made, prepare(data, KEEP))  # the first, as without a limit
        else:
            with pytest.raises(ImageError, match=f"more frames or pages than {most}; give one of them alone, or raise max_frames"):
                decode(data, ImageLimits(max_frames=most))


def test_counting_frames_takes_no_longer_than_the_limit() -> None:
    """A million frames of 15 bytes: Pillow takes half a minute to count them."""
    data = encoded(Image.new("L", (1, 1)), "GIF")
    start = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    many = data[:start] + data[start:-1] * 1_000_000 + b";"
    with pytest.raises(ImageError, match="more frames or pages than 50"):
        decode(many, ImageLimits(max_frames=50))
    cut = many[: start + 40]
    assert decode(cut, ImageLimits(max_frames=50)).size == (1, 1)


def tiff(tags: list[tuple[int, int, int, int]], data: bytes) -> bytes:
    """One page, little endian: tags of (number, type, count, value), those that are -1 pointing to `data`."""
    at = 8 + 2 + 12 * len(tags) + 4
    made = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for number, kind, count, value in sorted(tags):
        made += struct.pack("<HHII", number, kind, count, at if value == -1 else value)
    return made + struct.pack("<I", 0) + data


def tiled(side: int, tile: int) -> bytes:
    packed = zlib.compress(bytes(tile * tile))
    fields = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1), (322, 4, 1, tile), (323, 4, 1, tile)]
    return tiff([*fields, (324, 4, 1, -1), (325, 4, 1, len(packed))], packed)


def test_a_tile_is_not_much_larger_than_its_image() -> None:
    """875 kB took 859 MB: libtiff decodes a tile of 30000x30000 pixels for an image of 300x300."""
    assert decode(tiled(300, 512)).size == decode(tiled(300, 1024)).size == (300, 300)
    with pytest.raises(ImageError, match=r"its tiles of 4096x4096 pixels are larger than the image, 300x300; save it anew"):
        decode(tiled(300, 4096))


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    """Each goes over all pixels, and takes a hundred bytes."""
    data = encoded(Image.fromarray(NOISE), "JPEG", progressive=True)
    scans = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    one = data[scans[1] : scans[2]]
    assert decode(data[: scans[1]] + one * 100 + data[scans[1] :]).size == (50, 40)
    with pytest.raises(ImageError, match=f"a JPEG of more than {MOST_SCANS} scans takes too long; save it anew with fewer"):
        decode(data[: scans[1]] + one * MOST_SCANS + data[scans[1] :])
    plain = encoded(Image.fromarray(NOISE), "JPEG")  # not progressive, its first scan of one channel alone
    start = plain.index(b"\xff\xda")
    single = plain[:start] + b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 63, 0)
    with pytest.raises(ImageError, match="scans takes too long"):
        decode(single + b"\xff\xda" * MOST_SCANS + b"\xff\xd9")
    assert decode(plain + b"\xff\xda" * 1000).size == (50, 40)  # what comes after the only scan is not read


HUGE = """
import resource, sys
from edgeport_runtime import ImageError, Pixels
from edgeport_runtime.decoding import decode, size_px
from edgeport_runtime.images import prepare
pixels = Pixels(height=32, width=32)
for path in sys.argv[2:]:
    prepare(sys.argv[1], pixels)  # what decoding takes anyway
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for look in (decode, size_px, lambda source: prepare(source, pixels)):
        try:
            look(path)
        except ImageError as error:
            assert "are more than the 89,478,485" in str(error), error
        else:
            raise SystemExit(f"{path} was read")
    taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle) / 1024
    assert taken < 64, (path, taken)
print("refused")
"""


def huge(kind: str) -> bytes:
    """A header of 30000 x 30000 pixels, and something after it; WebP has no such sizes."""
    if kind == "PNG":
        data = bytearray(encoded(Image.new("L", (8, 8)), "PNG"))
        data[16:24] = struct.pack(">II", 30000, 30000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "JPEG":
        data = bytearray(encoded(Image.new("L", (8, 8)), "JPEG"))
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", 30000, 30000)
    elif kind == "GIF":
        data = bytearray(encoded(Image.new("L", (8, 8)), "GIF"))
        data[6:10] = struct.pack("<HH", 30000, 30000)
    elif kind == "BMP":
        data = bytearray(encoded(Image.new("L", (8, 8)), "BMP"))
        data[18:26] = struct.pack("<ii", 30000, 30000)
    elif kind == "WEBP":
        data = bytearray(frames("WEBP", 3))
        head = data.index(b"VP8X")
        data[head + 12 : head + 18] = (16382).to_bytes(3, "little") * 2
    else:
        return tiff([(256, 4, 1, 30000), (257, 4, 1, 30000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, -1), (279, 4, 1, 9)], bytes(9))
    return bytes(data)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_refusing_30000_by_30000_pixels_takes_no_memory(tmp_path: Path) -> None:
    paths = []
    for kind in FORMATS:
        paths.append(tmp_path / f"huge.{kind.lower()}")
        paths[-1].write_bytes(huge(kind))
    whole = tmp_path / "whole.png"
    Image.new("1", (30000, 30000)).save(whole)  # not only its header
    small = tmp_path / "small.png"
    Image.fromarray(NOISE).save(small)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", HUGE, str(small), *map(str, paths), str(whole)], capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n", done.stderr


def test_a_model_takes_the_limits_it_was_loaded_with(classifier: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(NOISE).save(path)
    for limits, message in ((ImageLimits(max_px=1999), "raise max_px"), (ImageLimits(formats=("JPEG",)), r"expected an image \(JPEG\)")):
        with load(classifier, image_limits=limits) as model, model.batcher() as batcher:
            calls = (lambda: model(path), lambda: model.batch([path]), lambda: batcher(path).result(20))
            for call in calls:
                with pytest.raises(ImageError, match=message):
                    call()
            assert isinstance(model.batch([path], errors="return")[0], ImageError)
            assert model(NOISE).label  # pixels that are in memory are no file
    with pytest.raises(InputError, match="image_limits are ImageLimits, got dict"):
        load(classifier, image_limits={"max_px": 5})  # type: ignore[arg-type]


def test_a_jpeg_of_very_many_segments_is_refused() -> None:
    """Pillow joins segments of EXIF one by one: 400,000 of one byte took minutes in a file of 9 MB."""
    data = encoded(Image.fromarray(NOISE), "JPEG")
    exif = b"\xff\xe1" + struct.pack(">H", 9) + b"Exif\0\0x"
    other = b"\xff\xe5" + struct.pack(">H", 2)
    for few in (exif * 10, other * 5000):
        assert decode(data[:2] + few + data[2:]).size == (50, 40)
    for many in (exif * 400_000, other * 1_000_000, exif * 30):
        for look in (decode, size_px):
            with pytest.raises(ImageError, match="a JPEG of more than 10,000 segments, or 16 of EXIF, takes too long; save it anew without them"):
                look(data[:2] + many + data[2:])


def test_12_bits_of_gray_are_refused_and_16_with_white_at_zero_are_turned() -> None:
    """Pillow makes the first nearly black, and the second a negative."""

    def gray(bits: int, photometric: int, data: bytes) -> bytes:
        tags = [(256, 4, 1, 2), (257, 4, 1, 1), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, photometric), (273, 4, 1, -1), (277, 3, 1, 1)]
        return tiff([*tags, (278, 4, 1, 1), (279, 4, 1, len(data))], data)

    levels = struct.pack("<HH", 0x1234, 0xFFFF)
    assert prepare(gray(16, 1, levels), KEEP)[0, :, 0].tolist() == [0x1234 // 257, 255]
    assert prepare(gray(16, 0, levels), KEEP)[0, :, 0].tolist() == [(0xFFFF - 0x1234) // 257, 0]
    assert prepare(gray(8, 0, b"\x12\xff"), KEEP)[0, :, 0].tolist() == [0xED, 0]
    with pytest.raises(ImageError, match=r"expected 8 or 16 bits a channel, got \(12,\); convert it to 8 bits first"):
        decode(gray(12, 1, b"\x12\x3f\xff"))
