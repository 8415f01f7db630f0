import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgeport_export.quantization import variants
from edgeport_export.quantization.calibration import calibrate, pixel_arrays
from edgeport_export.quantization.qdq import observed_values
from edgeport_export.quantization.variants import Probes, QuantizableGraph, VariantBuilder
from edgeport_export.rewrites.graph import Ranges
from edgeport_runtime import Contract, Output

Quantizable = Callable[..., QuantizableGraph]


def ranges(graph: QuantizableGraph, tiny: ModuleType) -> Ranges:
    return calibrate(graph.model, observed_values(graph.model, graph.target), graph.contract, tiny.brightness_examples(16, seed=5)).ranges("minmax")


def probes(graph: QuantizableGraph, tiny: ModuleType) -> Probes:
    return Probes(graph, pixel_arrays(graph.contract, tiny.brightness_examples(16, seed=5)))


class Wide(nn.Module):
    """One product in float64 among others, and an answer in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.relu(self.first(x)).flatten(2).double()
        return self.head(torch.relu(rows @ rows.transpose(1, 2)).mean(2).float()).double()


def test_products_in_float64_stay_so_and_answers_in_float64_are_measured(quantizable: Quantizable, tiny: ModuleType, class_contract: Contract) -> None:
    contract = replace(class_contract, outputs=(Output(name="logits", dtype="float64", shape=("batch", 3), kind="logits"),))
    graph = quantizable(Wide(), contract)
    assert graph.not_quantizable == {"MatMul": "computed in another type than float32"} and sum(graph.macs.values()) > 0
    with VariantBuilder(graph, ranges(graph, tiny), probes(graph, tiny), "minmax") as builder:
        assert 20 < builder.sqnr_db(frozenset(graph.quantizable)) < 100


class Mixed(nn.Module):
    """Activations after convolutions and linear layers, read by products, by float operators and by nobody: each of three outputs ends in one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.map = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)
        self.norm, self.hidden, self.head = nn.LayerNorm(16), nn.Linear(16, 20), nn.Linear(20, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = torch.relu(self.stem(x))
        rows = x.flatten(2).transpose(1, 2)
        mixed = self.norm(rows + torch.relu(self.down(F.relu6(self.up(rows)))))
        hidden = torch.relu(self.hidden(mixed.mean(1)))
        return torch.relu(self.map(x)), torch.relu(self.head(hidden)), F.gelu(hidden)


@pytest.fixture(scope="module")
def mixed(quantizable: Quantizable, tiny: ModuleType, class_contract: Contract) -> Iterator[VariantBuilder]:
    torch.manual_seed(0)
    outputs = (("map", ("batch", 32, "height", "width")), ("head", ("batch", 4)), ("hidden", ("batch", 20)))
    described = tuple(Output(name=name, dtype="float32", shape=shape, kind="tensor") for name, shape in outputs)
    contract = replace(class_contract, task="tensors", labels=(), outputs=described)
    graph = quantizable(Mixed(), contract)
    with VariantBuilder(graph, ranges(graph, tiny), probes(graph, tiny), "minmax") as builder:
        yield builder


@pytest.fixture(scope="module")
def alone_db(mixed: VariantBuilder) -> dict[str, float]:
    return {name: mixed.sqnr_db(frozenset([name])) for name in mixed.graph.quantizable}


def test_each_product_alone_as_integers_stays_near(alone_db: dict[str, float]) -> None:
    assert len(alone_db) == 6 and min(alone_db.values()) > 24  # a Relu that is lost leaves less than 0


def test_whatever_part_of_a_network_runs_as_integers_errors_do_no_more_than_add_up(mixed: VariantBuilder, alone_db: dict[str, float]) -> None:
    for count in range(2, len(mixed.graph.quantizable) + 1):
        for names in itertools.combinations(mixed.graph.quantizable, count):
            together = -20 * np.log10(sum(10 ** (-alone_db[name] / 20) for name in names))  # errors that all point the same way
            assert mixed.sqnr_db(frozenset(names)) > together - 3, names  # 3: one rounding moves where the next one falls; -1.4 at worst


@pytest.fixture
def builder(quantizable: Quantizable, tiny: ModuleType, class_contract: Contract) -> Iterator[VariantBuilder]:
    graph = quantizable(tiny.trained_classifier(), class_contract)
    with VariantBuilder(graph, ranges(graph, tiny), probes(graph, tiny), "minmax") as made:
        yield made


def test_the_standard_error_is_the_jackknifes(builder: VariantBuilder, tiny: ModuleType) -> None:
    """Held to leaving one array out at a time by hand; 16 images come in four arrays."""
    everything, given = frozenset(builder.graph.quantizable), builder.probes.arrays
    apart = [builder.sqnr_db_on(everything, Probes(builder.graph, [each for each in given if each is not left_out])) for left_out in given]
    mean = sum(apart) / 4
    whole, error = builder.sqnr_and_error_db(everything, builder.probes)
    assert whole == builder.sqnr_db(everything) and error == pytest.approx((3 / 4 * sum((each - mean) ** 2 for each in apart)) ** 0.5)
    assert builder.sqnr_and_error_db(everything, Probes(builder.graph, given[:2]))[1] is None and builder.probes.images == 16
    assert builder.sqnr_and_error_db(frozenset(), builder.probes) == (np.inf, None)


def test_a_variant_is_made_once(builder: VariantBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[frozenset[str]] = []
    quantize = variants.quantize

    def counted(model: onnx.ModelProto, contract: Contract, integer: frozenset[str], *rest: object) -> onnx.ModelProto:
        made.append(integer)
        return quantize(model, contract, integer, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(variants, "quantize", counted)
    names = frozenset(builder.graph.quantizable)
    assert builder.model(names) is builder.model(names)
    assert builder.file(names) == builder.file(names) and builder.sqnr_db(names) == builder.sqnr_db(names)
    assert made == [names]


def test_without_names_the_variant_is_the_float_graph(builder: VariantBuilder) -> None:
    assert builder.model(frozenset()) is builder.graph.model and builder.sqnr_db(frozenset()) == np.inf


def test_the_files_that_were_not_used_for_longest_go_first(builder: VariantBuilder) -> None:
    first, second, head = (frozenset([name]) for name in builder.graph.quantizable)
    paths = {names: builder.file(names) for names in (first, second, head, first | second)}
    builder.file(first)  # so the second is now the oldest
    builder.file(first | head)
    assert [path.exists() for path in paths.values()] == [True, False, True, True]
    assert builder.file(second).exists()


def test_nothing_is_left_of_a_builder(quantizable: Quantizable, tiny: ModuleType, class_contract: Contract) -> None:
    graph = quantizable(tiny.trained_classifier(), class_contract)
    with VariantBuilder(graph, ranges(graph, tiny), Probes(graph, []), "minmax") as made:
        folder = made.file(frozenset()).parent
        assert folder.exists()
    assert not folder.exists()


def test_a_quantizable_graph_lists_its_products_in_order(quantizable: Quantizable, tiny: ModuleType, class_contract: Contract) -> None:
    graph = quantizable(tiny.trained_classifier(), class_contract)
    assert graph.quantizable == ("conv1/Conv", "conv2/Conv", "head/Gemm") and graph.not_quantizable == {}
    assert graph.macs == {"conv1/Conv": 16 * 16 * 16 * 27, "conv2/Conv": 16 * 16 * 16 * 144, "head/Gemm": 48}
    assert graph.sha256 == quantizable(tiny.trained_classifier(), class_contract).sha256
    changed = tiny.trained_classifier()
    with torch.no_grad():
        changed.head.bias += 1
    assert graph.sha256 != quantizable(changed, class_contract).sha256
