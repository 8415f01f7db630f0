"""Who judges: variants whose answers are written down, on a contract of three classes."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgeport_export.network.reference import TorchReference
from edgeport_export.quantization import budget_judge
from edgeport_export.quantization.budget import Budget
from edgeport_export.quantization.budget_judge import BudgetJudge
from edgeport_export.validation.quality import QualityEvaluator
from edgeport_runtime import Contract, Example, Quality

FULL, FEWER, FEWEST = frozenset("abc"), frozenset("bc"), frozenset("c")


class Answers:
    """Stands for an evaluator: int8 is wrong at these indices, PyTorch nowhere. It notes which images were asked about which variant."""

    def __init__(self, wrong: dict[int, set[int]], indices: range, asked: list[tuple[int, int]]) -> None:
        self.wrong, self.examples, self.asked = wrong, list(indices), asked
        self.torch = self._quality(0)

    def _quality(self, wrong: int) -> Quality:
        return Quality(metric="accuracy", value=1 - wrong / len(self.examples), count=len(self.examples))

    def every_second(self, first: int) -> "Answers":
        return Answers(self.wrong, range(self.examples[0] + first, self.examples[-1] + 1, 2), self.asked)

    def measure(self, engine: int) -> Quality:
        self.asked.append((engine, len(self.examples)))
        return self._quality(len(self.wrong[engine] & set(self.examples)))


class Builder:
    """Stands for a builder: a variant's file is its number of products, and its distance from fp32."""

    graph: Any = type("Graph", (), {"target": type("Target", (), {"session": None})})

    def sqnr_db(self, names: frozenset[str]) -> float:
        return 40.0 - 5 * len(names)  # 25, 30, 35 dB

    def file(self, names: frozenset[str]) -> Any:
        return type("File", (), {"read_bytes": lambda _: len(names)})()


@pytest.fixture
def judge(class_contract: Contract, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[BudgetJudge, list[tuple[int, int]]]]:
    class Opened:
        def __init__(self, model: int, *_: object) -> None:
            self.model = model

        def __enter__(self) -> int:
            return self.model

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(budget_judge, "Engine", Opened)

    def made(count: int, wrong: dict[int, set[int]], max_drop: float = 1.0) -> tuple[BudgetJudge, list[tuple[int, int]]]:
        asked: list[tuple[int, int]] = []
        evaluator: Any = Answers(wrong, range(count), asked)
        builder: Any = Builder()
        return BudgetJudge(class_contract, lambda names: builder, evaluator, None, Budget(max_drop=max_drop, sqnr_floor_db=30.0)), asked

    return made


def test_a_fastest_variant_that_keeps_the_budget_was_chosen_by_no_image(judge: Callable[..., Any]) -> None:
    found, asked = judge(400, {3: {0, 1}})
    assert found.keeps(FULL) and asked == [(3, 400)] and len(found.evaluator.examples) == 400 and not found.divided


def test_otherwise_one_half_chooses_and_the_other_judges(judge: Callable[..., Any]) -> None:
    found, asked = judge(400, {3: set(range(20)), 2: {0, 2, 4, 6}, 1: {1, 3, 5}})
    assert not found.keeps(FULL)
    assert not found.keeps(FEWER) and found.keeps(FEWEST)  # 4 of the 200 even ones are wrong, and none
    assert asked == [(3, 400), (2, 200), (1, 200)]
    assert found.evaluator.examples == list(range(1, 400, 2)) and found.divided  # which have the last word: 3 of 200


def test_where_half_of_them_could_not_tell_the_distance_chooses(judge: Callable[..., Any]) -> None:
    found, asked = judge(150, {3: set(range(20))})  # one of 75 is more than one percent
    assert not found.keeps(FULL) and found.keeps(FEWER) and found.keeps(FEWEST)  # 30 and 35 dB
    assert asked == [(3, 150)] and len(found.evaluator.examples) == 150 and not found.divided


def test_too_few_images_need_the_distance_as_well(judge: Callable[..., Any]) -> None:
    found, asked = judge(50, {3: set(), 2: set()})
    assert not found.keeps(FULL) and asked == [] and found.keeps(FEWER) and asked == [(2, 50)]


def test_without_truth_the_distance_decides_alone(class_contract: Contract) -> None:
    builder: Any = Builder()
    found = BudgetJudge(class_contract, lambda names: builder, None, None, Budget(sqnr_floor_db=30.0))
    assert [found.keeps(names) for names in (FULL, FEWER, FEWEST)] == [False, True, True] and found.evaluator is None


def test_half_of_the_examples_are_evaluated_as_all_are(tiny: ModuleType, class_contract: Contract) -> None:
    examples = [Example(source=each.source, truth=index % 3) for index, each in enumerate(tiny.brightness_examples(31, seed=0))]
    evaluator = QualityEvaluator(TorchReference(tiny.trained_classifier(), class_contract), examples)
    halves = [evaluator.every_second(first) for first in (0, 1)]
    assert [each.torch.count for each in halves] == [16, 15]
    right = sum(each.torch.value * each.torch.count for each in halves)
    assert right == pytest.approx(evaluator.torch.value * 31) and np.array_equal(halves[1].torch.answers, evaluator.torch.answers[1::2])
