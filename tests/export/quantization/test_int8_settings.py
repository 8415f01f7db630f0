from dataclasses import FrozenInstanceError

import pytest

from edgeport_export import ExportError, ExportOptions
from edgeport_export.benchmark import runner
from edgeport_export.quantization.int8_settings import Measuring
from edgeport_runtime import Contract
from edgeport_runtime.threads import usable_threads


def test_time_is_measured_by_processes_unless_something_else_is_given() -> None:
    assert Measuring() == Measuring(benchmark=runner.benchmark, pair_timer=runner.PairTimer, threads=usable_threads)
    with pytest.raises(FrozenInstanceError):
        Measuring().threads = lambda: 1  # type: ignore[misc]


def test_what_a_caller_asks_is_what_the_search_gets(class_contract: Contract) -> None:
    settings = ExportOptions(pick="balanced", recover="off", max_drop=2.0, benchmark_batch=99, target="x86").int8(class_contract)
    assert (settings.pick, settings.recover, settings.budget.max_drop, settings.target.name) == ("balanced", "off", 2.0, "x86")
    assert settings.batch == class_contract.largest_batch == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pick": "best"}, "pick must be one of fastest, balanced, closest, got 'best'"),
        ({"recover": "much"}, "recover must be one of off, quick, thorough, got 'much'"),
        ({"pick": "closest", "precisions": ("fp32",)}, "a pick was given, but int8 is not among the precisions"),
    ],
)
def test_what_cannot_be_asked_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        ExportOptions(**options)  # type: ignore[arg-type]
