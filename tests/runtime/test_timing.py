from pathlib import Path

import numpy as np
import pytest

from edgeport_runtime import InputError, load
from edgeport_runtime.timing import LEAST_CALLS, example_inputs, measure_calls


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
