"""Ranges chosen value by value, on a network in which no single kind fits."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from edgeport_export.quantization.calibration import METHODS, Calibration, calibrate, pixel_arrays
from edgeport_export.quantization.qdq import observed_values
from edgeport_export.quantization.recovery.value_ranges import RangedNetwork, ranges_by_value
from edgeport_export.quantization.variants import Probes, QuantizableGraph, VariantBuilder
from edgeport_models import network as registered
from edgeport_runtime import Contract, Example

Quantizable = Callable[..., QuantizableGraph]


class TwoTails(nn.Module):
    """Two branches whose maps have rare large numbers: rare white pixels make them. In `noise` they are cut off at once and mean nothing; in `signal` they
    alone are the answer."""

    def __init__(self, tails: bool = True) -> None:
        super().__init__()
        self.noise, self.signal = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.cut, self.passed, self.tails = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), tails
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rare = 40 * torch.relu(x[:, :1] - 0.9) if self.tails else torch.zeros_like(x[:, :1])
        noise = torch.tanh(self.cut(self.noise(x) + 30 * rare))
        signal = self.passed(torch.relu(self.signal(x)) + 3 * rare)
        return self.head(torch.cat([noise, 0.1 * signal], 1).mean((2, 3)))


def images(count: int, seed: int) -> list[Example]:
    """Gray noise, with one white pixel in 500."""
    generator, found = np.random.default_rng(seed), []
    for _ in range(count):
        pixels = generator.integers(60, 180, (16, 16, 3), dtype=np.uint8)
        pixels[generator.random((16, 16)) < generator.uniform(0, 0.004)] = 255
        found.append(Example(source=pixels))
    return found


@pytest.fixture(scope="module")
def made(quantizable: Quantizable, class_contract: Contract) -> Callable[[bool], tuple[QuantizableGraph, Calibration]]:
    def fitted(tails: bool) -> tuple[QuantizableGraph, Calibration]:
        torch.manual_seed(0)
        graph = quantizable(TwoTails(tails), class_contract)
        return graph, calibrate(graph.model, observed_values(graph.model, graph.target), class_contract, images(32, seed=0))

    return fitted


def probes(graph: QuantizableGraph, seed: int) -> Probes:
    return Probes(graph, pixel_arrays(graph.contract, images(16, seed=seed)))


def nearest(graph: QuantizableGraph, calibration: Calibration, seed: int) -> dict[str, float]:
    found = {}
    for method in METHODS:
        with VariantBuilder(graph, calibration.ranges(method), probes(graph, seed), method) as builder:
            found[method] = builder.sqnr_db(frozenset(graph.quantizable))
    return found


def test_each_value_takes_what_suits_it(made: Callable[[bool], tuple[QuantizableGraph, Calibration]]) -> None:
    graph, calibration = made(True)
    kinds, alone = {method: calibration.ranges(method) for method in METHODS}, nearest(graph, calibration, seed=2)
    start = max(alone, key=lambda method: alone[method])
    ranges = ranges_by_value(graph, kinds, start, probes(graph, seed=1))
    taken = {next(method for method in METHODS if kinds[method][value] == pair) for value, pair in ranges.items() if pair != kinds[start][value]}
    assert taken and set(ranges) == set(kinds[start])
    with VariantBuilder(graph, ranges, probes(graph, seed=2), "by value") as builder:
        assert builder.sqnr_db(frozenset(graph.quantizable)) > max(alone.values()) + 3  # on images by which nothing was chosen


def test_where_one_kind_fits_all_it_gains_nothing(made: Callable[[bool], tuple[QuantizableGraph, Calibration]]) -> None:
    graph, calibration = made(False)
    kinds, alone = {method: calibration.ranges(method) for method in METHODS}, nearest(graph, calibration, seed=2)
    start = max(alone, key=lambda method: alone[method])
    with VariantBuilder(graph, ranges_by_value(graph, kinds, start, probes(graph, seed=1)), probes(graph, seed=2), "by value") as builder:
        assert builder.sqnr_db(frozenset(graph.quantizable)) < alone[start] + 0.5


def test_when_time_is_up_the_others_keep_the_kind_that_there_is(made: Callable[[bool], tuple[QuantizableGraph, Calibration]]) -> None:
    graph, calibration = made(True)
    kinds = {method: calibration.ranges(method) for method in METHODS}
    asked: list[tuple[int, int]] = []

    def goes_on(done: int, total: int) -> bool:
        asked.append((done, total))
        return False

    assert ranges_by_value(graph, kinds, "entropy", probes(graph, seed=1), goes_on) == kinds["entropy"] and len(asked) == 1 and asked[0][1] > 1


def test_scales_are_those_of_the_quantizer(made: Callable[[bool], tuple[QuantizableGraph, Calibration]]) -> None:
    graph, calibration = made(True)
    network = RangedNetwork(graph, calibration.ranges("minmax"))
    assert network.pairs
    same = {name: array for pair, values in network.pairs.items() for name, array in network.inputs(pair, calibration.ranges("minmax")[values[0]]).items()}
    given = probes(graph, seed=3)
    assert len(same) > 4 and network.sqnr_db(given, same) == pytest.approx(network.sqnr_db(given, {}), abs=1e-6)
    pair = next(iter(network.pairs))
    scale, zero = network.inputs(pair, (-1.0, 3.0)).values()
    assert scale == np.float32(4 / 255) and zero == 64  # 255 / 4 rounded, by hand


def test_steps_that_are_computed_while_it_runs_are_left_alone(quantizable: Quantizable, class_contract: Contract) -> None:
    entry = registered("attention")
    graph = quantizable(entry.make(entry.untrained), entry.contract(tuple("0123456789"), 32))
    examples = [Example(source=np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)) for index in range(8)]
    calibration = calibrate(graph.model, observed_values(graph.model, graph.target), graph.contract, examples)
    given = Probes(graph, pixel_arrays(graph.contract, examples))
    ranges = ranges_by_value(graph, {method: calibration.ranges(method) for method in METHODS}, "minmax", given)
    assert set(ranges) == set(calibration.histograms) and any("MatMul" in name for name in graph.quantizable)
