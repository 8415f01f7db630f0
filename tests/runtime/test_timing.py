from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeport_runtime import InputError, load
from edgeport_runtime.contract import Input
from edgeport_runtime.timing import LEAST_CALLS, example_inputs, measure_calls, random_array


def test_calls_are_counted_after_the_warm_up() -> None:
    calls = []
    timing = measure_calls(lambda: calls.append(1), seconds=0.0, warm_up=3)
    assert timing.calls == LEAST_CALLS and len(calls) == LEAST_CALLS + 3
    assert timing.fastest_ms <= timing.median_ms <= timing.slowest_ms


def test_example_inputs_fit_the_contract(classifier: Path) -> None:
    contract = load(classifier).contract
    assert example_inputs(contract, batch=3)["pixels"].shape == (3, 16, 16, 3)
    pixels = example_inputs(contract, batch=1, size_px=(9, 33))["pixels"]
    assert pixels.shape == (1, 9, 33, 3) and pixels.dtype == np.uint8 and pixels.max() > 250
    with pytest.raises(InputError, match=r"cannot run at batch 9: .*batch must be within 1\.\.8"):
        example_inputs(contract, batch=9)


@pytest.mark.parametrize("size_px", [(12, 21), (24, 40), (1, 7)])
def test_another_size_than_the_contracts_is_refused_and_not_passed_over(size_px: tuple[int, int]) -> None:
    contract = load(Path(__file__).parents[1] / "fixtures" / "format1" / "classifier").contract
    fixed = replace(contract, inputs=(replace(contract.inputs[0], shape=("batch", 12, 20, 3)),), axes={"batch": contract.axes["batch"]})
    assert example_inputs(fixed, batch=1, size_px=(12, 20))["pixels"].shape == example_inputs(fixed, batch=1)["pixels"].shape == (1, 12, 20, 3)
    with pytest.raises(InputError, match=rf"cannot run at batch 1 and {size_px[0]}x{size_px[1]}: input 'pixels': expected"):
        example_inputs(fixed, batch=1, size_px=size_px)


def test_a_size_for_a_model_without_an_image_is_refused() -> None:
    contract = load(Path(__file__).parents[1] / "fixtures" / "format1" / "classifier").contract
    tensors = replace(contract, task="tensors", inputs=(Input(name="x", shape=("batch", 4), dtype="float32"),), axes={"batch": contract.axes["batch"]})
    assert example_inputs(tensors, batch=2)["x"].shape == (2, 4)
    with pytest.raises(InputError, match="takes plain tensors and no image"):
        example_inputs(tensors, batch=2, size_px=(5, 5))


@pytest.mark.parametrize(
    ("dtype", "low", "high", "distinct"),
    [("uint8", 0, 255, 256), ("bool", 0, 1, 2), ("int64", 0, 1, 2), ("int8", 0, 1, 2)],
)
def test_tensors_take_the_values_of_their_dtype(dtype: str, low: int, high: int, distinct: int) -> None:
    array = random_array((9000,), dtype, np.random.default_rng(0))
    assert array.dtype == dtype and (array.min(), array.max(), len(np.unique(array))) == (low, high, distinct)


def test_floats_come_from_a_normal_distribution() -> None:
    array = random_array((100, 100), "float32", np.random.default_rng(0))
    assert array.dtype == np.float32 and abs(array.mean()) < 0.05 and abs(array.std() - 1) < 0.05
