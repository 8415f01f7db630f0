from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from edgeport_export.quantization.calibration import calibrate, pixel_arrays
from edgeport_export.quantization.output_error import agreement, scale_groups, sqnr_db, with_parts
from edgeport_export.quantization.qdq import observed_values
from edgeport_export.quantization.variants import Probes, QuantizableGraph, VariantBuilder
from edgeport_runtime import Contract, Output
from edgeport_runtime.contract import OutputKind


def test_what_an_output_always_holds_hides_no_error() -> None:
    exact = np.array([[100.0, -1.0], [100.0, 1.0], [100.0, -1.0], [100.0, 1.0]])  # two channels: a constant, and what varies by 1
    assert abs(sqnr_db([exact], [exact + 0.5]) - 10 * np.log10(4 / (8 * 0.25))) < 1e-9  # with one mean for both it would be 40 dB
    assert abs(sqnr_db([exact[:1], exact[1:]], [exact[:1] + 0.5, exact[1:] + 0.5]) - 10 * np.log10(2)) < 1e-9  # however they come in batches
    alone = [np.array([[1.0, 3.0]]), np.array([[0.0, 2.0, 4.0]])]  # of two sizes, each of one image
    assert abs(sqnr_db(alone, [each + 1 for each in alone]) - 10 * np.log10((2 + 8) / 5)) < 1e-9


def test_outputs_of_another_size_are_as_far_off_as_can_be() -> None:
    assert sqnr_db([np.ones((1, 3))], [np.ones((1, 2))]) == -np.inf
    classes = [np.array([[1, 2, 3]]), np.array([[4, 5, 6]])]
    assert agreement(classes, [np.array([[1, 2, 0]]), np.array([[4, 5]])]) == 2 / 6 and agreement(classes, classes) == 1.0


def test_an_error_that_is_no_number_is_the_largest() -> None:
    exact = [np.array([[1.0], [2.0]])]
    for broken in (np.nan, np.inf):
        assert sqnr_db(exact, [np.array([[1.0], [broken]])]) == -np.inf


def test_a_constant_of_the_output_hides_no_error() -> None:
    exact, got = [np.array([[100.0], [102.0]])], [np.array([[100.5], [101.5]])]
    assert abs(sqnr_db(exact, got) - 10 * np.log10(2 / 0.5)) < 1e-9  # 1 either side of the mean, 0.5 off; with the mean it would be 46 dB
    assert sqnr_db([np.full((3, 1), 7.0)], [np.full((3, 1), 8.0)]) == -np.inf and sqnr_db(exact, exact) == np.inf


GENERATOR = np.random.default_rng(0)
SCORES = GENERATOR.normal(0, 0.1, (8, 3, 20))
BOXES = GENERATOR.normal(100, 40, (8, 4, 20))


@pytest.mark.parametrize(
    ("scales", "groups"),
    [
        ([40.0, 0.1], [[1], [0]]),
        ([0.1, 40.0, 0.2], [[0, 2], [1]]),
        ([40.0, 3.0], [[0, 1]]),  # of like scale
        ([0.5, 7.0, 100.0], [[0, 1, 2]]),  # without a gap
        ([40.0, 0.0, 0.1], [[2], [0, 1]]),  # what never changes has no scale
        ([0.0, 0.0], [[0, 1]]),
    ],
)
def test_parts_of_like_scale_are_a_group(scales: list[float], groups: list[list[int]]) -> None:
    assert [group.tolist() for group in scale_groups(np.array(scales))] == groups


def test_the_worst_part_counts() -> None:
    exact = np.concatenate([BOXES, SCORES], 1)
    got = exact.copy()
    got[:, 4:] = 0.0  # the scores collapsed
    which = np.concatenate([np.zeros_like(BOXES), np.ones_like(SCORES)], 1)
    varying = SCORES - SCORES.mean(axis=0)
    alone = 10 * np.log10(np.square(varying).sum() / np.square(SCORES).sum())
    assert sqnr_db([exact], [got]) > 45 and sqnr_db([exact], [got], [which]) == pytest.approx(alone)
    assert sqnr_db([exact[:3], exact[3:]], [got[:3], got[3:]], [which[:3], which[3:]]) == pytest.approx(alone)
    assert sqnr_db([exact], [exact[:, :3]], [which]) == -np.inf


def outputs(*shapes: tuple[str, OutputKind, tuple[int | str, ...]]) -> tuple[Output, ...]:
    return tuple(Output(name=name, dtype="float32", shape=shape, kind=kind) for name, kind, shape in shapes)


class Ends(nn.Module):
    """Four ways in which an answer may end: two levels of boxes and scores, one layer's channels, one value laid out, and slices put back together."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        half = x[:, :, ::2, ::2]
        levels = [torch.cat((self.one(each).exp(), self.two(each).sigmoid()), 1).flatten(2) for each in (x, half)]
        rows = self.one(x).sigmoid().flatten(2)
        return torch.cat(levels, 2).transpose(1, 2), self.two(x).flatten(2), self.one(x).transpose(2, 3), torch.cat((rows[:, :1] * 8, rows[:, 1:]), 1)


def test_parts_are_what_the_graph_joins_at_its_end(quantizable: Callable[..., QuantizableGraph], class_contract: Contract) -> None:
    described = outputs(
        ("levels", "tensor", ("batch", "?", 6)),
        ("layer", "tensor", ("batch", 2, "?")),
        ("turned", "tensor", ("batch", 4, "width", "height")),
        ("rows", "tensor", ("batch", 4, "?")),
    )
    contract = replace(class_contract, task="tensors", labels=(), outputs=described)
    graph = quantizable(Ends(), contract)
    model, names = with_parts(graph.model, contract)
    assert names == ["levels", "rows"]
    pixels = GENERATOR.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    found = Probes(graph, [{contract.inputs[0].name: pixels}]).outputs(model, names)[0]
    numbers = [row[[0, 4]].tolist() for row in found["levels"][0][[0, -1]]]
    assert found["levels"].shape == (2, 16 * 16 + 8 * 8, 6) and sorted(number for row in numbers for number in row) == [0, 1, 2, 3]
    assert all((row[:4] == row[0]).all() and (row[4:] == row[4]).all() for row in found["levels"][1])
    assert (found["rows"][:, 0] == 0).all() and (found["rows"][:, 1:] == 1).all()


def test_what_a_task_says_of_its_answer_is_one_thing(quantizable: Callable[..., QuantizableGraph], class_contract: Contract) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 1), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            means = x.mean((2, 3))
            return torch.cat((self.one(means), self.two(means).exp()), 1)

    assert with_parts(quantizable(Joined(), class_contract).model, class_contract)[1] == []
    contract = replace(class_contract, task="tensors", labels=(), outputs=outputs(("logits", "tensor", ("batch", 3))))
    assert with_parts(quantizable(Joined(), contract).model, contract)[1] == ["logits"]


class Detector(nn.Module):
    """Boxes in pixels and scores in one tensor. `loud`: one channel before the scores is large and counts for nothing, so its steps are too coarse."""

    def __init__(self, *, loud: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.box, self.middle, self.score = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 3, 1)
        with torch.no_grad():
            self.box.weight *= 500
            if loud:
                self.middle.bias[0] = 300.0
                self.score.weight[:, 0] = 0
            self.score.weight *= 20

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.body(x)
        return torch.cat((self.box(features), self.score(torch.relu(self.middle(features))).sigmoid()), 1).flatten(2)


@pytest.fixture(scope="module", params=[False, True], ids=["quiet", "loud"])
def detector(request: pytest.FixtureRequest, quantizable: Callable[..., QuantizableGraph], tiny: ModuleType, class_contract: Contract) -> QuantizableGraph:
    torch.manual_seed(0)
    described = outputs(("rows", "tensor", ("batch", 7, "?")))
    return quantizable(Detector(loud=request.param), replace(class_contract, task="tensors", labels=(), outputs=described))


def test_scores_beside_boxes(detector: QuantizableGraph, tiny: ModuleType, request: pytest.FixtureRequest) -> None:
    """The scores' own distance decides, and they are not rounded with the boxes' step."""
    examples = tiny.brightness_examples(16, seed=5)
    found = calibrate(detector.model, observed_values(detector.model, detector.target), detector.contract, examples)
    probes = Probes(detector, pixel_arrays(detector.contract, examples))
    expected = [each["rows"] for each in probes.expected]
    loud = "loud" in request.node.name
    with VariantBuilder(detector, found.ranges("minmax"), probes, "minmax") as builder:
        everything = frozenset(detector.quantizable)
        got = [each["rows"] for each in probes.outputs(builder.model(everything), ["rows"])]
        boxes, scores = (sqnr_db([each[:, part] for each in expected], [each[:, part] for each in got]) for part in (slice(0, 4), slice(4, 7)))
        assert boxes > 20 and (scores < 5 if loud else scores > 15), (boxes, scores)
        assert builder.sqnr_db(everything) <= min(boxes, scores) + 0.5
        assert builder.sqnr_db(everything - {"score/Conv", "middle/Conv"}) > 20
