"""Whether int8 variants keep the quality budget, and the images that have the last word about the one that is taken.

1. A classifier without truth is judged by its labels, everything else without truth by its distance from the float network (`image_roles`).
2. With truth, the fastest variant is judged on all held-out images. If it keeps the budget, nothing was chosen by them, and the figure is as good as they are.
3. If it does not, products go back to float until a variant keeps it. Of many variants the one that has luck on these images would be taken, so they are
   divided: every second one chooses, the others judge.
4. Where half of them could not tell the budget, the distance from the float network chooses, and all of them judge.
"""

from collections.abc import Callable

from edgeport_export.validation.quality import QualityEvaluator, drop, metric_is_sufficient, too_few_examples, unseen_outputs
from edgeport_runtime import Contract
from edgeport_runtime.engine import Engine

from .budget import Budget
from .image_roles import LEAST_JUDGED, LabelJudge
from .variants import Names, VariantBuilder


def choosing_half(evaluator: QualityEvaluator) -> QualityEvaluator:
    """Of rule 3."""
    return evaluator.every_second(0)


def judging_half(evaluator: QualityEvaluator) -> QualityEvaluator:
    """Of rule 3; it judges replays of such a plan and the others of its curve, too."""
    return evaluator.every_second(1)


class BudgetJudge:
    """For one search. `builder_of`: gives the builder of a variant.

    `evaluator`: has the last word, on held-out images with their truth; None without truth. `labels`: of a classifier without truth.
    `divided`: whether rule 3 divided the images, so that `evaluator` has half of them.
    """

    def __init__(
        self, contract: Contract, builder_of: Callable[[Names], VariantBuilder], evaluator: QualityEvaluator | None, labels: LabelJudge | None, budget: Budget
    ) -> None:
        self.contract = contract
        self.builder_of = builder_of
        self.evaluator = evaluator
        self.labels = labels
        self.budget = budget
        self._chooser: QualityEvaluator | None = evaluator
        self.divided = False
        self._failed = False

    def keeps(self, names: Names) -> bool:
        """Whether a variant keeps the budget, as far as images may be asked that choose."""
        if self.labels is not None:
            return self.labels.changes(self.builder_of(names), names, self.labels.chosen).percent <= self.budget.max_changed
        near = self.builder_of(names).sqnr_db(names) >= self.budget.sqnr_floor_db
        if self._chooser is None:
            return near
        if not (near or self._sufficient(self._chooser)):
            return False
        kept = self._drop(self._chooser, names) <= self.budget.max_drop
        if not kept and not self._failed:
            self._failed = True
            self._divide()
        return kept

    def _divide(self) -> None:
        """Rules 3 and 4."""
        assert self.evaluator is not None
        halves = [half(self.evaluator) for half in (choosing_half, judging_half)]
        self.divided = all(len(each.examples) >= LEAST_JUDGED and not too_few_examples(each.torch, self.budget.max_drop) for each in halves)
        if self.divided:
            self._chooser, self.evaluator = halves
        else:
            self._chooser = None

    def _sufficient(self, evaluator: QualityEvaluator) -> bool:
        return metric_is_sufficient(evaluator.torch, unseen_outputs(self.contract), self.budget.max_drop)

    def _drop(self, evaluator: QualityEvaluator, names: Names) -> float:
        builder = self.builder_of(names)
        with Engine(builder.file(names).read_bytes(), self.contract, builder.graph.target.session) as engine:
            return drop(evaluator.torch, evaluator.measure(engine))
