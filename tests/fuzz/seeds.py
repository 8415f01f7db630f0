"""Where the fuzzer starts: small images of every format and mode, the stored manifest, golden tensors and models."""

import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

STORED = Path(__file__).parents[1] / "fixtures" / "format1"
NOISE = np.random.default_rng(0).integers(0, 256, (12, 9, 4), dtype=np.uint8)
KINDS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "GIF": ("L", "P", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "LAB", "YCbCr"),
}
OPTIONS: dict[str, list[dict[str, object]]] = {
    "JPEG": [{}, {"progressive": True}, {"quality": 100, "subsampling": 0}],
    "WEBP": [{}, {"lossless": True}],
    "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}, {"compression": "jpeg"}, {"compression": "packbits"}],
}
ORIENTED = Image.Exif()
ORIENTED[0x0112] = 6


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def image_seeds() -> Iterator[bytes]:
    whole = Image.fromarray(NOISE)
    for kind, modes in KINDS.items():
        for mode in modes:
            image = Image.new(mode, (9, 12)) if mode in ("I;16", "I", "F", "LAB", "YCbCr") else whole.convert("RGB").convert(mode)
            for options in OPTIONS.get(kind, [{}]):
                try:
                    yield encoded(image, kind, **options)
                except (OSError, KeyError, ValueError, SystemError):  # a combination that is not written
                    continue
    frames = [Image.fromarray(np.roll(NOISE, shift, axis=0)[:, :, :3]) for shift in range(3)]
    for kind in ("GIF", "PNG", "TIFF", "WEBP", "MPO"):
        yield encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        yield encoded(frames[0], kind, exif=ORIENTED.tobytes())


def seeds(target: str) -> Iterator[bytes]:
    """Inputs of a target (`targets.TARGETS`)."""
    if target == "images":
        yield from image_seeds()
        return
    for bundle in sorted(STORED.iterdir()):
        if target == "manifest":
            read = json.loads((bundle / "manifest.json").read_text())
            for variant in read["variants"]:
                variant["plan"] = None  # the host reads it
            yield json.dumps(read).encode()
        elif target == "golden":
            yield from (path.read_bytes() for path in sorted(bundle.rglob("*.pb")))
        else:
            yield from (path.read_bytes() for path in sorted(bundle.glob("*.onnx")))


def name_of(data: bytes) -> str:
    """A name that equal inputs share."""
    return f"{zlib.crc32(data):08x}-{len(data)}"
