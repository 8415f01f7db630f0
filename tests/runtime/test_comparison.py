import math

import numpy as np
import pytest

from edgeport_runtime.comparison import compare
from edgeport_runtime.manifest import Tolerance

ANY = Tolerance(max_abs=math.inf)


def test_metrics_of_a_case_worked_out_by_hand() -> None:
    found = compare("y", np.array([[1.0, 2.0], [3.0, 6.0]], np.float32), np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), Tolerance(max_abs=2.0))
    assert found
    assert (found.elements, found.max_abs, found.worst) == (4, 2.0, (1, 1))
    assert found.rms == pytest.approx(1.0)  # sqrt(2² / 4)
    assert found.snr_db == pytest.approx(10 * math.log10((1 + 4 + 9 + 16) / 4))  # mean square of the signal 7.5, of the difference 1


@pytest.mark.parametrize(
    ("actual", "expected", "tolerance", "passes"),
    [
        ([1.0], [1.0], Tolerance(max_abs=0.0), True),
        ([1.0], [1.1], Tolerance(max_abs=0.05), False),
        ([1.0, 1.0], [1.1, 1.1], Tolerance(max_abs=0.2, rms=0.05), False),
        ([1.0, 1.0], [1.1, 1.1], Tolerance(max_abs=0.2, rms=0.15), True),
        ([math.inf], [math.inf], Tolerance(max_abs=0.0), True),
        ([math.nan], [math.nan], ANY, False),
        ([math.nan], [1.0], ANY, False),
        ([math.inf], [1.0], ANY, False),
        ([math.inf], [-math.inf], ANY, False),
        ([], [], ANY, False),
        ([1.0, 2.0], [1.0], ANY, False),
        ([[1.0]], [1.0], ANY, False),
    ],
)
def test_a_comparison_passes_or_not(actual: list[float], expected: list[float], tolerance: Tolerance, passes: bool) -> None:
    assert bool(compare("y", np.array(actual), np.array(expected), tolerance)) is passes


def test_uint8_does_not_wrap_around() -> None:
    found = compare("y", np.array([0], np.uint8), np.array([255], np.uint8), Tolerance(max_abs=10))
    assert not found
    assert found.max_abs == 255


def test_a_failure_names_the_place() -> None:
    text = str(compare("logits", np.array([[0.0, 5.0]]), np.array([[0.0, 1.0]]), Tolerance(max_abs=0.5)))
    assert "logits" in text and "(0, 1)" in text and "0.5 allowed" in text
