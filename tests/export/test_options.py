"""What may be asked of an export, and what is said of what may not."""

import math
from typing import Any

import numpy as np
import pytest

from edgeport_export import ExportError, ExportOptions


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"precisions": ("int8",)}, "precisions must include fp32"),
        ({"precisions": ("fp32", "int4")}, r"among fp32, int8, fp16, got \('fp32', 'int4'\)"),
        ({"precisions": "fp32"}, "got 'fp32'"),
        ({"max_drop": -1}, "max_drop must be a number of at least 0, got -1"),
        ({"max_drop": "1"}, "max_drop must be a number of at least 0, got '1'"),
        ({"max_drop": math.nan}, "got nan"),
        ({"planning_seconds": None}, "planning_seconds must be a number of at least 0, got None"),
        ({"sqnr_floor_db": math.inf}, "sqnr_floor_db must be a number of dB, got inf"),
        ({"sqnr_floor_db": math.nan}, "sqnr_floor_db must be a number of dB, got nan"),
        ({"calibration_images": 0}, "calibration_images must be a whole number of at least 1, got 0"),
        ({"race_batch": 8.0}, "race_batch must be a whole number of at least 1, got 8.0"),
        ({"metric": max}, "metric must be the name of a function as my.module:function, got <built-in function max>"),
        ({"target": None}, "target must be the name of a kind of CPU, or empty, got None"),
        ({"insist": "no"}, "insist must be True or False, got 'no'"),
        ({"precisions": None}, "precisions must include fp32 .* got None"),
        ({"precisions": ("fp32", ["int8"])}, "precisions must .* got"),
        ({"max_drop": 10**400}, "max_drop must be a number of at least 0"),
        ({"max_drop": True}, "max_drop must be a number of at least 0, got True"),
        ({"calibration_images": True}, "calibration_images must be a whole number of at least 1, got True"),
        ({"plan": "bundles/cnn"}, r"plan must be a Plan, as edgeport_export.plan.read_plan\(path\) gives it, got str"),
        ({"target": "riscv"}, "riscv"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        ExportOptions(**asked)


def test_what_can_be_asked() -> None:
    options = ExportOptions(max_drop=math.inf, planning_seconds=0, sqnr_floor_db=np.float32(-3.0), calibration_images=np.int64(4))  # type: ignore[arg-type]
    assert (options.budget.max_drop, options.budget.seconds, options.budget.sqnr_floor_db) == (math.inf, 0, -3.0)
