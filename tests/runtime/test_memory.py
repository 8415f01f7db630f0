import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeport_runtime import InputError, Pixels, load
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import classification
from edgeport_runtime.memory import LEAST, RunBounds, SpikeWatch, measured_bytes_per_pixel

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


@pytest.mark.parametrize(
    ("sizes", "shrinking"),
    [
        ([1] * 20, []),
        ([1, 2, 3, 4, 4, 3, 2, 1] * 4, []),  # nothing is more than four times as large as usual
        ([1] * 10 + [5] + [1] * 10, [10]),  # a spike gives its memory back at its own end
        ([9, 1, 1], [1]),  # the first run was one, as the second tells
        ([1, 9] * 10, [1]),  # every other run is large: from then on that is usual
        ([1, 1, 1, 9] * 5, [3, 7, 11, 15, 19]),  # one in four is a spike, each time
        ([1] * 16 + [9] * 20, [16, 17, 18, 19]),  # a change of sizes: four times, and then it is usual
    ],
)
def test_memory_is_given_back_after_spikes_alone(sizes: list[int], shrinking: list[int]) -> None:
    watch = SpikeWatch()
    assert [index for index, size in enumerate(sizes) if watch.seen(size)] == shrinking


HELD = """
import sys
from dataclasses import replace
import numpy as np
from edgeport_runtime import Bundle, Range, SessionOptions
from edgeport_runtime.engine import Engine
from edgeport_runtime.memory import SpikeWatch

def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

if sys.argv[2] == "never":
    SpikeWatch.seen = lambda self, size: False
bundle = Bundle(sys.argv[1])
contract = bundle.manifest.contract
contract = replace(contract, axes={**contract.axes, "height": Range(low=1, high=999), "width": Range(low=1, high=999)})
engine = Engine(bundle.read(bundle.variant("fp32")), contract, SessionOptions(threads=1))
small, large = {"pixels": np.zeros((1, 32, 32, 3), np.uint8)}, {"pixels": np.zeros((8, 512, 512, 3), np.uint8)}
for _ in range(4):
    engine.run(small)
before = held()
engine.run(large)
engine.run(small)
print(held() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_process_is_as_small_after_a_large_batch_as_before(generator: Path) -> None:
    """Three quarters and more of what a large batch takes are given back with it; onnxruntime alone keeps all of it."""
    kept, given_back = (
        float(subprocess.run([sys.executable, "-c", HELD, str(generator), how], capture_output=True, text=True, check=True).stdout)
        for how in ("never", "spikes")
    )
    assert kept > 64 and given_back < kept / 4, (kept, given_back)


@pytest.mark.parametrize(
    "latencies",
    [5, [5], [{}], [{"fp32": 5}], [{"fp32": {"peak_bytes": "many"}, "batch": 1}], [{"fp32": {"peak_bytes": 5}}], [{"fp32": {"peak_bytes": 1e400}, "batch": 1}]],
)
def test_evidence_that_makes_no_sense_tells_nothing(latencies: object) -> None:
    """Nobody vouches for it: no hash covers it."""
    assert measured_bytes_per_pixel({"speed": {"latencies": latencies}}, "fp32", CONTRACT) is None


def test_numbers_beyond_all_bounds_tell_nothing() -> None:
    latencies = [{"fp32": {"peak_bytes": 10**400}, "batch": 2}, {"fp32": {"peak_bytes": 1}, "batch": 1}]
    assert measured_bytes_per_pixel({"speed": {"latencies": latencies}}, "fp32", CONTRACT) is None
