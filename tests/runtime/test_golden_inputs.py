from pathlib import Path

import numpy as np
import pytest

from edgeport_runtime import Bundle, Contract, FormatError, Input, Output, Pixels, Range
from edgeport_runtime.contract import classification
from edgeport_runtime.golden_inputs import case_inputs, formula_inputs, sampled

AXES = {"batch": Range(low=1, high=4), "height": Range(low=1, high=64), "width": Range(low=1, high=64)}


def test_pixels_follow_the_formula_value_by_value() -> None:
    """The formula of the docstring, in Python's own whole numbers."""
    contract = classification(Pixels(height=8, width=8), ("a", "b"), AXES)
    made = formula_inputs(contract, {"batch": 2, "height": 33, "width": 20})["pixels"]
    assert made.shape == (2, 33, 20, 3) and made.dtype == np.uint8
    for n, y, x, c in [(0, 0, 0, 0), (1, 32, 19, 2), (0, 17, 5, 1), (1, 1, 1, 0)]:
        assert made[n, y, x, c] == (7 * y + 11 * x + 53 * c + 89 * n + x * y // 16) % 256


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("float32", lambda i: (7919 * i % 2048 - 1024) / 512),
        ("float16", lambda i: (7919 * i % 2048 - 1024) / 512),
        ("float64", lambda i: (7919 * i % 2048 - 1024) / 512),
        ("uint8", lambda i: 31 * i % 256),
        ("int64", lambda i: i % 2),
        ("bool", lambda i: bool(i % 2)),
    ],
)
def test_tensors_follow_the_formula_exactly_in_every_dtype(dtype: str, value: object) -> None:
    output = Output(name="y", dtype="float32", shape=("n",), kind="tensor")
    contract = Contract(task="tensors", inputs=(Input(name="x", dtype=dtype, shape=("n", 7)),), outputs=(output,), axes={"n": Range(low=1, high=900)})
    made = formula_inputs(contract, {"n": 500})["x"]
    assert made.shape == (500, 7) and str(made.dtype) == dtype
    assert made.ravel().tolist() == [value(i) for i in range(3500)]  # type: ignore[operator]


def test_samples_are_each_so_many_th_value_of_the_flat_array() -> None:
    values = np.arange(24).reshape(2, 3, 4)
    assert sampled(values, 1) is values and sampled(values, 5).tolist() == [0, 5, 10, 15, 20]
    assert sampled(values.transpose(2, 1, 0), 5).tolist() == values.transpose(2, 1, 0).ravel()[::5].tolist()


def test_stored_inputs_are_read_and_others_made(classifier: Path) -> None:
    bundle = Bundle(classifier)
    for case in bundle.manifest.golden:
        if case.sizes is None:
            np.testing.assert_array_equal(case_inputs(bundle, case)["pixels"], bundle.tensor(case.inputs[0]))


def test_inputs_that_would_fill_memory_are_refused() -> None:
    output = Output(name="y", dtype="float32", shape=("n",), kind="tensor")
    contract = Contract(task="tensors", inputs=(Input(name="x", dtype="float32", shape=("n", "n")),), outputs=(output,), axes={"n": Range(low=1, high=10**6)})
    with pytest.raises(FormatError, match=r"a golden case at {'n': 1000000} would have 1,000,000,000,000 values, more than 134,217,728"):
        formula_inputs(contract, {"n": 10**6})
