import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxruntime.quantization import QuantType

from edgeport_export import ExportError, ExportOptions, Target
from edgeport_export.quantization.plan import read_plan
from edgeport_runtime import Contract
from edgeport_runtime.manifest import TargetCpu


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"precisions": ("int8",)}, "precisions must include fp32"),
        ({"precisions": ("fp32", "int4")}, r"among fp32, int8, fp16, got \('fp32', 'int4'\)"),
        ({"precisions": "fp32"}, "got 'fp32'"),
        ({"max_drop": -1}, "max_drop must be a number of at least 0, got -1"),
        ({"recover": "hard"}, "recover must be one of off, quick, thorough, got 'hard'"),
        ({"max_changed": -1}, "max_changed must be a number of at least 0, got -1"),
        ({"max_drop": "1"}, "max_drop must be a number of at least 0, got '1'"),
        ({"max_drop": math.nan}, "got nan"),
        ({"search_seconds": None}, "search_seconds must be a number of at least 0, got None"),
        ({"sqnr_floor_db": math.inf}, "sqnr_floor_db must be a number of dB, got inf"),
        ({"sqnr_floor_db": math.nan}, "sqnr_floor_db must be a number of dB, got nan"),
        ({"calibration_images": 0}, "calibration_images must be a whole number of at least 1, got 0"),
        ({"benchmark_batch": 8.0}, "benchmark_batch must be a whole number of at least 1, got 8.0"),
        ({"metric": 0.5}, r"metric must be a function, its name as my\.module:function, or None, got 0\.5"),
        ({"target": ""}, "expected a target among x86-vnni, x86, arm64, got ''"),
        ({"target": 3}, "target must be a Target, the name of one, or None, got 3"),
        ({"always_keep_int8": "no"}, "always_keep_int8 must be True or False, got 'no'"),
        ({"precisions": None}, "precisions must include fp32 .* got None"),
        ({"precisions": ("fp32", ["int8"])}, "precisions must .* got"),
        ({"max_drop": 10**400}, "max_drop must be a number of at least 0"),
        ({"max_drop": True}, "max_drop must be a number of at least 0, got True"),
        ({"calibration_images": True}, "calibration_images must be a whole number of at least 1, got True"),
        ({"plan": "bundles/cnn"}, r"plan must be a Plan, as edgeport_export.read_plan\(path\) gives it, got str"),
        ({"target": "riscv"}, "riscv"),
        ({"translations": [len]}, "translations must be a mapping from aten operators to functions"),
        ({"translations": {"aten::relu": "Relu"}}, "translations must be a mapping from aten operators to functions"),
        ({"passes": len}, "passes must be a list of functions, got <built-in function len>"),
        ({"passes": ["my.module:function"]}, "passes must be a list of functions"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        ExportOptions(**asked)


def test_options_at_the_ends_of_their_ranges() -> None:
    options = ExportOptions(max_drop=math.inf, search_seconds=0, sqnr_floor_db=np.float32(-3.0), calibration_images=np.int64(4))  # type: ignore[arg-type]
    assert (options.budget.max_drop, options.budget.seconds, options.budget.sqnr_floor_db) == (math.inf, 0, -3.0)


def test_a_plan_asks_for_int8_and_names_its_target(tiny_bundle: Path, class_contract: Contract) -> None:
    plan = read_plan(tiny_bundle)
    options = ExportOptions(plan=plan)
    assert options.requires_int8 and not ExportOptions().requires_int8 and ExportOptions(always_keep_int8=True).requires_int8
    assert options.int8(class_contract).target.name == plan.target
    assert ExportOptions(plan=plan, target="arm64").int8(class_contract).target.name == "arm64"  # which the export then refuses
    with pytest.raises(ExportError, match="a plan was given, but int8 is not among the precisions"):
        ExportOptions(plan=plan, precisions=("fp32",))


@pytest.mark.parametrize(("asked", "batch"), [(1, 1), (8, 8), (64, 8)])
def test_speed_is_measured_at_no_larger_batch_than_the_contract_allows(asked: int, batch: int, class_contract: Contract) -> None:
    options = ExportOptions(benchmark_batch=asked)
    assert options.batch(class_contract) == options.int8(class_contract).batch == batch


def test_a_target_of_the_users_own_is_taken_as_it_is(class_contract: Contract) -> None:
    own = Target(name="my-board", activations=QuantType.QInt8, narrow_weights=True, machines=("riscv64",))
    target = ExportOptions(target=own).int8(class_contract).target
    assert target is own and not target.is_here and target.cpu == TargetCpu(name="my-board", machines=("riscv64",), narrow_weights=True)
