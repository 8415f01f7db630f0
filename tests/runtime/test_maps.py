"""Maps at the source's size; torch's interpolation is the oracle where the map grows."""

from typing import Any

import numpy as np
import pytest

from edgeport_runtime import Pixels
from edgeport_runtime.framing import Framing
from edgeport_runtime.maps import class_dtype, classes_at_source, map_at_source


@pytest.mark.parametrize(("source_px", "map_px"), [((30, 40), (8, 8)), ((17, 9), (4, 4)), ((8, 8), (8, 8))])
def test_a_map_grows_as_torch_interpolates(source_px: tuple[int, int], map_px: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    values = np.random.default_rng(0).normal(size=map_px).astype(np.float32)
    found = map_at_source(values, Framing.of(source_px, Pixels(height=8, width=8), (8, 8)))
    expected = torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], size=source_px, mode="bilinear", align_corners=False)[0, 0]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("rule", "source_px", "nan"),
    [
        ({"resize": "letterbox"}, (50, 100), 0),
        ({"resize": "letterbox"}, (100, 50), 0),
        ({"resize": "crop", "resize_shorter_px": 64}, (100, 100), 0),
        ({"resize": "crop", "resize_shorter_px": 64}, (100, 200), 100 * 100),  # the middle half is seen
        ({"resize": "crop", "resize_shorter_px": 128}, (100, 100), 100 * 100 - 50 * 50),
        ({"resize": "keep"}, (64, 64), 0),
    ],
)
def test_a_ramp_is_where_it_was(rule: dict[str, Any], source_px: tuple[int, int], nan: int) -> None:
    """The map holds, at each position of the network's input, the x of the source below it; at the source's size that is x itself."""
    framing = Framing.of(source_px, Pixels(height=64, width=64, **rule), (64, 64))
    places = np.stack([np.arange(64) + 0.5, np.full(64, 32.0)], axis=1).astype(np.float32)
    values = np.tile(framing.to_source(places)[:, 0], (64, 1))
    found = map_at_source(values, framing)
    assert found.shape == source_px and int(np.isnan(found).sum()) == nan
    expected = np.tile(np.arange(source_px[1], dtype=np.float32) + 0.5, (source_px[0], 1))
    seen = ~np.isnan(found)
    seen[:, :3] = seen[:, -3:] = False  # at the border there is nothing beside it to interpolate with
    inner = seen & np.roll(seen, 3, axis=1) & np.roll(seen, -3, axis=1)
    np.testing.assert_allclose(found[inner], expected[inner], atol=0.35)


def test_the_best_class_wins_after_the_resize() -> None:
    """Between one position of class 1 and one of class 0 the border is where the interpolated scores cross: at three quarters of the way."""
    scores = np.array([[[0.0, 3.0]], [[1.0, 0.0]]], np.float32)  # class 1 leads by 1 at the left, class 0 by 3 at the right
    framing = Framing.of((1, 200), Pixels(height=1, width=2), (1, 2))
    found = classes_at_source(scores, framing)
    assert found.dtype == np.uint8 and int((found == 1).sum()) == 75  # 50 + 1/4 of the 100 pixels between the two middles


def test_what_was_not_seen_has_no_class() -> None:
    framing = Framing.of((100, 200), Pixels(height=64, width=64, resize="crop", resize_shorter_px=64), (64, 64))
    found = classes_at_source(np.ones((3, 16, 16), np.float32), framing)
    assert (found[:, :50] == 255).all() and (found[:, 50:150] == 0).all() and (found[:, 150:] == 255).all()


@pytest.mark.parametrize(("classes", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (1000, np.uint16)])
def test_the_largest_value_of_a_mask_is_no_class(classes: int, dtype: type) -> None:
    scores = np.zeros((classes, 2, 2), np.float32)
    scores[-1] = 1.0
    found = classes_at_source(scores, Framing.of((10, 20), Pixels(height=4, width=4, resize="crop", resize_shorter_px=4), (4, 4)))
    assert class_dtype(classes) is dtype and found.dtype == dtype
    assert (found[:, 5:15] == classes - 1).all() and (found[:, :5] == np.iinfo(dtype).max).all()
