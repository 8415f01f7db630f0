import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeport_export.quantization.recovery.compensated_rounding import compensated


def rounded(weights: list[float], moments: list[list[float]]) -> list[float]:
    """One row of weights that are in steps already."""
    found = compensated(np.array([[weights]]), np.array([moments]), np.ones((1, 1)), 127)
    return found[0, 0].tolist()


@pytest.mark.parametrize(
    ("weights", "moments", "expected"),
    [
        # Inputs that have nothing to do with each other: each weight to its nearest integer.
        ([127.0, 0.4, 1.6, -2.7], np.diag([4.0, 3.0, 2.0, 1.0]).tolist(), [127, 0, 2, -3]),
        # The last two inputs are the same number. 0.4 + 0.4 of it is nearer to 1 than to 0: the first loses 0.4, and 0.8 becomes 1.
        ([127.0, 0.4, 0.4], [[9.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]], [127, 0, 1]),
        # The last input is minus the one before: what the one loses, 0.4, the other must lose too: -1.6 - 0.4 is -2.
        ([127.0, 1.4, -1.6], [[9.0, 0.0, 0.0], [0.0, 1.0, -1.0], [0.0, -1.0, 1.0]], [127, 1, -2]),
        # The input that comes first has more to say, wherever it stands: 0.4 of it is lost, and the weaker one, half of it, makes up with 0.8 more.
        ([0.4, 0.4, 127.0], [[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 9.0]], [1, 0, 127]),
        # A weight of zero stays zero, though it could make up for the others' 0.6.
        ([127.0, 1.3, 1.3, 0.0], [[9.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]], [127, 1, 1, 0]),
        # The largest weight becomes the largest integer, though it alone could make up for the first one's 0.4.
        ([1.4, -127.0], [[4.0, -1.0], [-1.0, 1.0]], [1, -127]),
        # Moments that rounding made impossible (they would need a negative square): damped until they are possible.
        ([127.0, 0.4, 0.4], [[9.0, 0.0, 0.0], [0.0, 1.0, 1.5], [0.0, 1.5, 1.0]], [127, 0, 1]),
        # Moments that are no numbers: each weight to its nearest integer.
        ([127.0, 0.4, 0.4], [[9.0, 0.0, 0.0], [0.0, np.nan, 1.0], [0.0, 1.0, 1.0]], [127, 0, 0]),
        # Inputs that never change.
        ([127.0, 0.4], [[0.0, 0.0], [0.0, 0.0]], [127, 0]),
    ],
)
def test_what_one_weight_loses_another_makes_up_for(weights: list[float], moments: list[list[float]], expected: list[float]) -> None:
    assert rounded(weights, moments) == expected


def cost(weights: np.ndarray, found: np.ndarray, steps: np.ndarray, inputs: np.ndarray) -> float:
    """The error of the sums, in float64."""
    return float(np.square(inputs @ (found * steps[:, :, None] - weights).swapaxes(1, 2)).mean())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), groups=st.sampled_from([1, 3]), rows=st.integers(8, 16), count=st.integers(20, 200))
def test_the_sums_of_alike_inputs_come_nearer(seed: int, groups: int, rows: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    shared = generator.normal(size=(groups, 4 * count + 50, 1))  # neighbors of an image are alike
    inputs = 3 * shared + generator.normal(size=(groups, 4 * count + 50, count))
    weights = generator.normal(size=(groups, rows, count))
    steps = np.abs(weights).max(axis=2) / 127
    moments = inputs.swapaxes(1, 2) @ inputs / inputs.shape[1]
    nearest, found = np.round(weights / steps[:, :, None]), compensated(weights, moments, steps, 127)
    assert np.array_equal(found, np.round(found)) and (np.abs(found).max(axis=2) == 127).all()
    # The shared part weighs nine times as much as one input's own, and is made up for.
    assert cost(weights, found, steps, inputs) < 0.5 * cost(weights, nearest, steps, inputs)


def test_each_group_is_rounded_by_itself() -> None:
    generator = np.random.default_rng(0)
    inputs, weights = generator.normal(size=(3, 99, 200)), generator.normal(size=(3, 2, 200))
    moments, steps = inputs.swapaxes(1, 2) @ inputs, np.abs(weights).max(axis=2) / 64
    together = compensated(weights, moments, steps, 64)
    for each in range(3):
        alone = slice(each, each + 1)
        assert np.array_equal(together[alone], compensated(weights[alone], moments[alone], steps[alone], 64))
