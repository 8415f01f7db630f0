from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeport_export.quantization.calibration import BINS, METHODS, Histogram, calibrate, clipping, pixel_arrays
from edgeport_export.quantization.qdq import observed_values, preprocess
from edgeport_export.quantization.targets import TARGETS
from edgeport_export.tracing.exporter import trace
from edgeport_runtime import Contract, Example, ImageError

VNNI = TARGETS["x86-vnni"]


def filled(*batches: np.ndarray) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch.astype(np.float32))
    return histogram


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50), min_size=1, max_size=6))
def test_no_value_is_lost_however_the_span_grows(batches: list[list[float]]) -> None:
    histogram = filled(*map(np.array, batches))
    values = np.concatenate([np.array(batch, np.float32) for batch in batches])
    assert histogram.range("minmax") == (min(0.0, float(values.min())), max(0.0, float(values.max())))
    taken = [batch for i, batch in enumerate(batches) if np.abs(np.concatenate([np.array(each) for each in batches[: i + 1]])).max() > 0]
    assert histogram.counts.sum() == sum(map(len, taken)) and histogram.counts.shape == (2 * BINS,)


def test_percentile_cuts_what_lies_beyond_and_keeps_the_rest() -> None:
    normal = np.random.default_rng(0).standard_normal(200_000)
    low, high = filled(normal, np.array([500.0])).range("percentile")
    assert high == pytest.approx(np.quantile(normal, 1 - 5e-5), abs=2 * 512 / BINS) and low == pytest.approx(np.quantile(normal, 5e-5), abs=2 * 512 / BINS)
    assert filled(normal, np.array([500.0])).range("minmax")[1] == 500


def test_entropy_clips_a_lone_outlier_and_not_a_uniform_range() -> None:
    generator = np.random.default_rng(0)
    even = np.abs(generator.uniform(0, 4, 100_000))
    assert filled(even).range("entropy")[1] > 3.8
    relu = np.maximum(generator.standard_normal(100_000), 0)  # half of it zeros, which must not decide
    outlier = filled(relu, np.array([60.0])).range("entropy")[1]
    assert 2 < outlier < 30


def quantized_error(values: np.ndarray, low: float, high: float) -> float:
    """Of 8-bit integers between two limits, each value by itself."""
    step = (high - low) / 255
    return float(np.square(np.clip(np.round(values / step), round(low / step), round(high / step)) * step - values).mean())


@pytest.mark.parametrize("tail", [1.0, 3.0, 12.0])
def test_squares_finds_the_limits_with_the_least_error(tail: float) -> None:
    generator = np.random.default_rng(0)
    values = generator.laplace(size=60_000) * np.where(generator.random(60_000) < 0.01, tail, 1.0)  # so few that all are counted
    histogram = filled(values)
    low, high = histogram.range("squares")
    found, everything = quantized_error(values, low, high), quantized_error(values, *histogram.range("minmax"))
    shares = np.linspace(0.1, 1, 37)
    best = min(quantized_error(values, histogram.low * below, histogram.high * above) for below in shares for above in shares)
    assert found < 1.05 * best and found < 0.95 * everything


def test_squares_leaves_an_even_range_as_it_is_and_zeros_weigh_nothing() -> None:
    even = np.random.default_rng(0).uniform(-1, 4, 100_000)
    low, high = filled(even).range("squares")
    assert low == pytest.approx(-1, abs=0.1) and high == pytest.approx(4, abs=0.1)
    normal = np.maximum(np.random.default_rng(0).standard_normal(100_000), 0)  # half of it zeros, which are exact
    alone = filled(normal[normal > 0]).range("squares")
    assert filled(normal).range("squares") == (0.0, pytest.approx(alone[1], rel=0.05))


def test_zero_always_lies_inside_and_odd_values_are_left_out() -> None:
    for method in METHODS:
        low, high = filled(np.linspace(5, 9, 1000)).range(method)
        assert low == 0.0 and high > 5
    assert filled(np.array([np.nan, np.inf, 2.0, -1.0])).range("minmax") == (-1.0, 2.0)
    assert filled(np.zeros(9)).range("percentile") == (0.0, 0.0)


def test_every_image_counts_and_the_hash_is_theirs(tiny: ModuleType, class_contract: Contract) -> None:
    prepared = preprocess(trace(tiny.trained_classifier(), class_contract).model)
    values = observed_values(prepared, VNNI)
    steps: list[int] = []
    examples = tiny.brightness_examples(9, seed=0)
    first = calibrate(prepared, values, class_contract, examples, steps.append)
    assert first.images == sum(steps) == 9 and set(first.ranges("minmax")) == set(values)
    assert first.sha256 == calibrate(prepared, values, class_contract, examples).sha256
    assert first.sha256 != calibrate(prepared, values, class_contract, tiny.brightness_examples(9, seed=1)).sha256


def test_what_clips_is_counted_worst_first(tiny: ModuleType, class_contract: Contract) -> None:
    prepared = preprocess(trace(tiny.trained_classifier(), class_contract).model)
    values = observed_values(prepared, VNNI)
    examples = tiny.brightness_examples(8, seed=0)
    ranges = calibrate(prepared, values, class_contract, examples).ranges("minmax")
    assert {each.share for each in clipping(prepared, ranges, class_contract, examples)} == {0.0}
    tight = {name: (0.0, 0.0) if name == values[-1] else pair for name, pair in ranges.items()}
    found = clipping(prepared, tight, class_contract, examples)
    assert (found[0].value, found[0].layer) == (values[-1], "head/Gemm") and found[0].share > 0.5
    assert [each.share for each in found] == sorted((each.share for each in found), reverse=True)


def test_an_unreadable_image_is_named(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> None:
    prepared = preprocess(trace(tiny.trained_classifier(), class_contract).model)
    with pytest.raises(ImageError, match=r"gone\.png: there is no such file"):
        calibrate(prepared, observed_values(prepared, VNNI), class_contract, [Example(source=tmp_path / "gone.png", truth=0)])


def test_pixels_come_a_few_at_a_time(tiny: ModuleType, class_contract: Contract) -> None:
    examples = tiny.brightness_examples(11, seed=0)
    arrays = [each["pixels"] for each in pixel_arrays(class_contract, examples)]
    assert [len(each) for each in arrays] == [4, 4, 3]
    np.testing.assert_array_equal(np.concatenate(arrays), np.stack([example.source for example in examples]))
