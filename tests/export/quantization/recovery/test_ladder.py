"""The steps before the search, on networks in which one of them must help, and on one in which none does."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from edgeport_export.quantization.calibration import METHODS, Calibration, calibrate, pixel_arrays
from edgeport_export.quantization.image_roles import Images, Roles, probes_of, roles_of
from edgeport_export.quantization.qdq import observed_values
from edgeport_export.quantization.recovery.ladder import BY_VALUE, Ladder, Rung, closest_ranges
from edgeport_export.quantization.variants import Probes, QuantizableGraph, VariantBuilder
from edgeport_runtime import Contract, Example

OUTLIERS, VALUES = "outliers moved into weights", "a range for each value"
Quantizable = Callable[..., QuantizableGraph]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


class Transformed(nn.Module):
    """A layer normalization two channels of which are `outlier` times as large as the others."""

    def __init__(self, outlier: float) -> None:
        super().__init__()
        self.patches, self.norm, self.mix, self.head = nn.Conv2d(3, 32, 4, 4), nn.LayerNorm(32), nn.Linear(32, 48), nn.Linear(48, 3)
        with torch.no_grad():
            self.norm.weight[3:5] *= outlier
            self.mix.weight[:, 3:5] /= outlier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.mix(self.norm(self.patches(x).flatten(2).transpose(1, 2)))).mean(1))


def noise(count: int, seed: int = 0) -> list[Example]:
    generator = np.random.default_rng(seed)
    return [Example(source=generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(count)]


def climbed(
    stack: ExitStack, graph: QuantizableGraph, examples: list[Example], effort: str = "quick", seconds: float = 60.0
) -> tuple[Rung, Roles, Calibration]:
    roles = roles_of(Images(sample=examples), None)
    calibration = calibrate(graph.model, observed_values(graph.model, graph.target), graph.contract, roles.fitted)
    return Ladder(stack, roles, probes_of(graph, roles.chosen), effort, seconds).climb(graph, calibration), roles, calibration


@pytest.mark.parametrize(("outlier", "taken"), [(64.0, True), (1.0, False)])
def test_smoothing_stays_where_there_are_outliers(outlier: float, taken: bool, stack: ExitStack, quantizable: Quantizable, class_contract: Contract) -> None:
    rung, _, _ = climbed(stack, quantizable(Transformed(outlier), class_contract), noise(40))
    found = {step.name: step for step in rung.steps}
    assert bool(rung.builder.graph.smoothing) == taken
    if taken:
        assert found[OUTLIERS].taken and found[OUTLIERS].after_db > found[OUTLIERS].before_db + 6
        assert found[VALUES].before_db == found[OUTLIERS].after_db  # one builds on the other
    else:
        assert OUTLIERS not in found or not found[OUTLIERS].taken


def test_a_network_without_normalizations_is_not_smoothed(stack: ExitStack, quantizable: Quantizable, tiny: ModuleType, class_contract: Contract) -> None:
    graph = quantizable(tiny.trained_classifier(), class_contract)
    rung, roles, _ = climbed(stack, graph, tiny.brightness_examples(40, seed=0))
    assert [step.name for step in rung.steps] == [VALUES] and rung.builder.graph is graph
    assert (rung.builder.method == BY_VALUE) == rung.steps[0].taken
    assert rung.steps[0].before_db == pytest.approx(max(step.before_db for step in rung.steps)) and len(roles.rounded_with) == 32


@pytest.mark.parametrize(("effort", "count"), [("off", 40), ("quick", 19)])
def test_without_effort_or_images_the_nearest_kind_is_all(
    effort: str, count: int, stack: ExitStack, quantizable: Quantizable, tiny: ModuleType, class_contract: Contract
) -> None:
    rung, _, calibration = climbed(stack, quantizable(tiny.trained_classifier(), class_contract), tiny.brightness_examples(count, seed=0), effort)
    assert rung.steps == () and rung.builder.ranges == calibration.ranges(rung.builder.method)


def test_without_time_each_value_keeps_the_nearest_kind(stack: ExitStack, quantizable: Quantizable, tiny: ModuleType, class_contract: Contract) -> None:
    rung, _, _ = climbed(stack, quantizable(tiny.trained_classifier(), class_contract), tiny.brightness_examples(40, seed=0), seconds=0.0)
    assert rung.steps[0].before_db == rung.steps[0].after_db and not rung.steps[0].taken and rung.builder.method in METHODS


@pytest.mark.parametrize(("gain_db", "taken"), [(0.4, False), (0.6, True), (-3.0, False)])
def test_a_step_that_gains_next_to_nothing_is_left_out(
    gain_db: float, taken: bool, stack: ExitStack, quantizable: Quantizable, tiny: ModuleType, class_contract: Contract
) -> None:
    graph = quantizable(tiny.trained_classifier(), class_contract)

    class Known(VariantBuilder):
        decibels = 20.0

        def sqnr_db(self, integer: frozenset[str]) -> float:
            return self.decibels

    first, second = Known(graph, {}, Probes(graph, []), "minmax"), Known(graph, {}, Probes(graph, []), "minmax")
    for each in (first, second):
        stack.callback(each.__exit__)
    second.decibels = 20.0 + gain_db
    rung = Rung(builder=first).beside("a step", second)
    assert rung.builder is (second if taken else first) and [vars(step) for step in rung.steps] == [
        {"name": "a step", "before_db": 20.0, "after_db": pytest.approx(20.0 + gain_db), "taken": taken}
    ]


def test_the_kind_of_ranges_with_the_smallest_error_is_taken(stack: ExitStack, quantizable: Quantizable, tiny: ModuleType, class_contract: Contract) -> None:
    graph, examples = quantizable(tiny.trained_classifier(), class_contract), tiny.brightness_examples(12, seed=0)
    probes = Probes(graph, pixel_arrays(class_contract, examples))
    calibration = calibrate(graph.model, observed_values(graph.model, graph.target), class_contract, examples)
    found = closest_ranges(stack, graph, calibration, probes)
    assert found.ranges == calibration.ranges(found.method)
    builders = [stack.enter_context(VariantBuilder(graph, calibration.ranges(each), probes, each)) for each in ("minmax", "percentile", "entropy", "squares")]
    errors = {each.method: each.sqnr_db(frozenset(graph.quantizable)) for each in builders}
    assert found.method == max(errors, key=lambda method: errors[method])
