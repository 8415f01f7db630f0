import hashlib

import numpy as np

from edgeport_export.network.image_hash import pixels_sha256, shape_and_bytes


def test_shape_and_pixels_decide() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert shape_and_bytes(pixels) == b"(2, 2, 3)" + bytes(range(12))
    assert pixels_sha256(pixels) == hashlib.sha256(b"(2, 2, 3)" + bytes(range(12))).hexdigest()
    assert len({pixels_sha256(each) for each in (pixels, pixels.reshape(4, 1, 3), pixels + 1, pixels[:, ::-1])}) == 4
