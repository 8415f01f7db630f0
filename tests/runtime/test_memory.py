from pathlib import Path

import numpy as np
import pytest

from edgeport_runtime import InputError, Pixels, load
from edgeport_runtime.contract import classification, image_axes
from edgeport_runtime.memory import LEAST, RunBounds, measured_bytes_per_pixel

CONTRACT = classification(Pixels(height=10, width=20), ("a", "b"), image_axes(smallest_px=4))


@pytest.mark.parametrize(
    ("batch", "memory_mb", "size", "expected"),
    [
        (64, 1, (16, 16), 16),  # 2^20 bytes / (256 bytes * 256 pixels)
        (8, 1, (16, 16), 8),
        (64, 1, (64, 64), 1),
        (64, 0.001, (1024, 1024), 1),  # an image cannot be halved
        (64, 3.99, (32, 32), 15),
    ],
)
def test_images_of_one_run(batch: int, memory_mb: float, size: tuple[int, int], expected: int) -> None:
    assert RunBounds(max_batch=batch, max_memory_mb=memory_mb, bytes_per_pixel=256).images(*size) == expected


def entry(batch: int, held: int | None) -> dict[str, object]:
    return {"batch": batch, "fp32": {"peak_bytes": held}, "int8": {"peak_bytes": 7}}


@pytest.mark.parametrize(
    ("latencies", "expected"),
    [
        ([entry(8, 1_000_000 + 8 * 200 * 300), entry(1, 1_000_000 + 200 * 300)], 300.0),
        ([entry(8, 1_000_000), entry(1, 1_000_100)], LEAST),  # noise
        ([entry(8, 1_000_000)], None),
        ([entry(8, None), entry(1, 5)], None),
        ([], None),
    ],
)
def test_bytes_of_a_pixel_come_from_two_batch_sizes(latencies: list[dict[str, object]], expected: float | None) -> None:
    assert measured_bytes_per_pixel({"speed": {"latencies": latencies}}, "fp32", CONTRACT) == expected
    assert measured_bytes_per_pixel({}, "fp32", CONTRACT) is None


def test_a_model_runs_no_more_images_at_once_than_fit(generator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [np.zeros((16, 16, 3), np.uint8)] * 7
    for bounds, expected in (({}, [7]), ({"max_batch": 3}, [3, 3, 1]), ({"max_memory_mb": 0.3}, [2, 2, 2, 1])):
        model = load(generator, **bounds)  # type: ignore[arg-type]
        seen: list[int] = []
        run = model.engine.run
        monkeypatch.setattr(model.engine, "run", lambda arrays: seen.append(len(arrays["pixels"])) or run(arrays))  # noqa: B023
        assert len(model.batch(images)) == 7
        assert seen == expected
    for wrong in ({"max_batch": 0}, {"max_batch": 1.5}, {"max_memory_mb": 0}, {"max_memory_mb": "1"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            load(generator, **wrong)  # type: ignore[arg-type]
