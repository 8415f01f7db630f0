import itertools
import logging
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgeport_export.calibration import calibrate, fed
from edgeport_export.quantization import calibration_sample
from edgeport_export.quantize import candidates, observed_values, preprocess, quantize, sources
from edgeport_export.sweep import measured_cost
from edgeport_export.targets import TARGETS
from edgeport_export.trace import finish, trace
from edgeport_export.workshop import Workshop, _agreement, _sqnr_db
from edgeport_models import AttentionNet, network
from edgeport_runtime import Contract, Output, Range, SessionOptions
from edgeport_runtime.device import open_session
from edgeport_runtime.evaluate import Example

VNNI = TARGETS["x86-vnni"]


def run(model: bytes, pixels: np.ndarray) -> np.ndarray:
    return np.asarray(open_session(model, SessionOptions()).run(None, {"pixels": pixels})[0])


def everything(prepared: onnx.ModelProto, contract: Contract, examples: list[Example], target: str = "x86-vnni") -> onnx.ModelProto:
    limits = calibrate(prepared, observed_values(prepared, TARGETS["x86-vnni"]), contract, examples).limits("minmax")
    return quantize(prepared, contract, set(candidates(prepared, TARGETS["x86-vnni"])[0]), limits, TARGETS[target])


def test_int8_is_integer_near_and_smaller_for_every_target(tiny: ModuleType, class_contract: Contract) -> None:
    prepared = preprocess(trace(tiny.trained_classifier(), class_contract).model)
    fp32 = finish(prepared, class_contract)
    pixels = np.stack([example.source for example in tiny.brightness_examples(8, seed=6)])
    exact = run(fp32, pixels)
    weights: dict[str, int] = {}
    for name in TARGETS:
        made = everything(prepared, class_contract, tiny.brightness_examples(24, seed=5), name)
        data = finish(made, class_contract)
        rounded = run(data, pixels)
        assert not np.array_equal(exact, rounded) and len(data) < len(fp32)
        assert np.abs(exact - rounded).max() < 0.05 * np.ptp(exact)
        stored = [onnx.numpy_helper.to_array(each) for each in made.graph.initializer if each.data_type == onnx.TensorProto.INT8]
        weights[name] = max(int(np.abs(each.astype(int)).max()) for each in stored if each.ndim == 4)
        activations = {each.data_type for each in made.graph.initializer if "zero_point" in each.name and "weight" not in each.name and not each.dims}
        assert activations & {onnx.TensorProto.INT8, onnx.TensorProto.UINT8} == ({onnx.TensorProto.INT8} if name == "arm64" else {onnx.TensorProto.UINT8})
    assert weights["x86-vnni"] >= 127 and weights["x86"] <= 64  # 7 bits cannot saturate two products in 16: 2 * 255 * 64 < 32,768


class Patches(nn.Module):
    """Patch embedding straight into a linear layer: the rewritten sequence is quantised itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Conv2d(3, 24, 4, 4), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.mix(self.embed(x).flatten(2).transpose(1, 2))).mean(1))


@pytest.mark.parametrize("sides", [(16, 16), (24, 40)])
def test_positions_that_a_linear_layer_reads_have_the_range_of_their_map(tiny: ModuleType, class_contract: Contract, sides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    prepared = preprocess(trace(Patches().eval(), class_contract).model)
    made = everything(prepared, class_contract, tiny.brightness_examples(24, seed=5))
    pixels = np.random.default_rng(0).integers(0, 256, (2, *sides, 3), dtype=np.uint8)
    exact, rounded = run(finish(prepared, class_contract), pixels), run(finish(made, class_contract), pixels)
    assert not np.array_equal(exact, rounded) and np.abs(exact - rounded).max() < 0.05 * np.ptp(exact)


def test_constants_on_the_left_stay_float(class_contract: Contract) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.table @ x.flatten(2)).mean(2)

    possible, never = candidates(preprocess(trace(Mixed().eval(), class_contract).model), VNNI)
    assert possible == [] and list(never.values()) == ["constants times an activation, for which onnxruntime has no integer kernel"]


def test_what_an_output_always_holds_hides_no_error() -> None:
    exact = np.array([[100.0, -1.0], [100.0, 1.0], [100.0, -1.0], [100.0, 1.0]])  # two channels: a constant, and what varies by 1
    assert abs(_sqnr_db([exact], [exact + 0.5]) - 10 * np.log10(4 / (8 * 0.25))) < 1e-9  # with one mean for both it would be 40 dB
    assert abs(_sqnr_db([exact[:1], exact[1:]], [exact[:1] + 0.5, exact[1:] + 0.5]) - 10 * np.log10(2)) < 1e-9  # however they come in batches
    alone = [np.array([[1.0, 3.0]]), np.array([[0.0, 2.0, 4.0]])]  # of two sizes, each of one image
    assert abs(_sqnr_db(alone, [each + 1 for each in alone]) - 10 * np.log10((2 + 8) / 5)) < 1e-9


def test_outputs_of_another_size_are_as_far_off_as_can_be() -> None:
    assert _sqnr_db([np.ones((1, 3))], [np.ones((1, 2))]) == -np.inf
    classes = [np.array([[1, 2, 3]]), np.array([[4, 5, 6]])]
    assert _agreement(classes, [np.array([[1, 2, 0]]), np.array([[4, 5]])]) == 2 / 6 and _agreement(classes, classes) == 1.0


def test_an_error_that_is_no_number_is_the_largest() -> None:
    exact = [np.array([[1.0], [2.0]])]
    for broken in (np.nan, np.inf):
        assert _sqnr_db(exact, [np.array([[1.0], [broken]])]) == -np.inf


class Clamped(nn.Module):
    def __init__(self, low: float | None, high: float | None) -> None:
        super().__init__()
        self.first, self.second, self.limits = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3), (low, high)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).clamp(*self.limits)).mean((2, 3))


@pytest.mark.parametrize(("low", "high", "follows"), [(0.0, 6.0, True), (-0.2, 0.3, True), (0.2, None, False), (None, -0.1, False), (None, 0.3, True)])
def test_limits_on_one_side_of_zero_are_kept(tiny: ModuleType, class_contract: Contract, low: float | None, high: float | None, follows: bool) -> None:
    torch.manual_seed(0)
    contract = replace(class_contract, task="embedding", labels=(), outputs=(Output(name="out", dtype="float32", shape=("batch", 4), kind="tensor"),))
    prepared = preprocess(trace(Clamped(low, high).eval(), contract).model)
    clips = {node.name for node in prepared.graph.node if node.op_type == "Clip" and not node.name.startswith("edgeport/")}
    assert (clips <= set(sources(prepared))) == follows
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    exact = run(finish(prepared, contract), pixels)
    rounded = run(finish(everything(prepared, contract, tiny.brightness_examples(24, seed=5)), contract), pixels)
    assert np.square(exact - exact.mean()).sum() > 10**1.5 * np.square(exact - rounded).sum()  # 15 dB; 0 and less where the limits went


class Wide(nn.Module):
    """One product in float64 among others, and an answer in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.relu(self.first(x)).flatten(2).double()
        return self.head(torch.relu(rows @ rows.transpose(1, 2)).mean(2).float()).double()


def test_products_in_float64_stay_so_and_answers_in_float64_are_measured(tiny: ModuleType, class_contract: Contract) -> None:
    contract = replace(class_contract, outputs=(Output(name="logits", dtype="float64", shape=("batch", 3), kind="logits"),))
    examples = tiny.brightness_examples(16, seed=5)
    with Workshop(trace(Wide().eval(), contract).model, contract, VNNI) as shop:
        assert shop.never == {"MatMul": "computed in another type than float32"} and sum(shop.multiplications.values()) > 0
        shop.probes = list(fed(contract, examples))
        shop.limits = calibrate(shop.prepared, observed_values(shop.prepared, VNNI), contract, examples).limits("minmax")
        assert 20 < shop.sqnr_db(shop.possible) < 100


class Branching(nn.Module):
    """Asks its values, not its sizes, while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.head(torch.cond(x.mean() > 0, lambda each: each.relu(), lambda each: each * 2, (x,)).mean((2, 3)))


def test_a_graph_that_branches_while_it_runs_is_costed_and_left_in_float(class_contract: Contract) -> None:
    contract = replace(class_contract, axes={**class_contract.axes, "batch": Range(low=1, high=1)})
    assert measured_cost(Branching().eval(), contract)({"batch": 1, "height": 16, "width": 16}) > 0
    possible, never = candidates(preprocess(trace(Branching().eval(), contract).model), VNNI)
    assert possible == [] and len(never) == 2 and all("branches or loops while it runs" in reason for reason in never.values())


def test_the_root_logger_is_left_as_it_was(tiny: ModuleType, class_contract: Contract) -> None:
    before = logging.getLogger().level
    preprocess(trace(tiny.trained_classifier(), class_contract).model)
    assert logging.getLogger().level == before


def test_a_constant_of_the_output_hides_no_error() -> None:
    exact, got = [np.array([[100.0], [102.0]])], [np.array([[100.5], [101.5]])]
    assert abs(_sqnr_db(exact, got) - 10 * np.log10(2 / 0.5)) < 1e-9  # 1 either side of the mean, 0.5 off; with the mean it would be 46 dB
    assert _sqnr_db([np.full((3, 1), 7.0)], [np.full((3, 1), 8.0)]) == -np.inf and _sqnr_db(exact, exact) == np.inf


class Mixed(nn.Module):
    """Activations behind convolutions and linear layers, read by products, by float operators and by nobody: each of three outputs ends in one."""

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
def mixed(tiny: ModuleType, class_contract: Contract) -> Iterator[Workshop]:
    torch.manual_seed(0)
    outputs = (("map", ("batch", 32, "height", "width")), ("head", ("batch", 4)), ("hidden", ("batch", 20)))
    described = tuple(Output(name=name, dtype="float32", shape=shape, kind="tensor") for name, shape in outputs)
    contract = replace(class_contract, task="tensors", labels=(), outputs=described)
    examples = tiny.brightness_examples(16, seed=5)
    with Workshop(trace(Mixed().eval(), contract).model, contract, VNNI) as shop:
        shop.probes = list(fed(contract, examples))
        shop.limits = calibrate(shop.prepared, observed_values(shop.prepared, VNNI), contract, examples).limits("minmax")
        yield shop


@pytest.fixture(scope="module")
def alone_db(mixed: Workshop) -> dict[str, float]:
    return {name: mixed.sqnr_db([name]) for name in mixed.possible}


def test_each_product_alone_as_integers_stays_near(alone_db: dict[str, float]) -> None:
    assert len(alone_db) == 6 and min(alone_db.values()) > 24  # a Relu that is lost leaves less than 0


def test_whatever_part_of_a_network_runs_as_integers_errors_do_no_more_than_add_up(mixed: Workshop, alone_db: dict[str, float]) -> None:
    for count in range(2, len(mixed.possible) + 1):
        for names in itertools.combinations(mixed.possible, count):
            together = -20 * np.log10(sum(10 ** (-alone_db[name] / 20) for name in names))  # errors that all point the same way
            assert mixed.sqnr_db(names) > together - 3, names  # 3: one rounding moves where the next one falls; -1.4 at worst


def test_the_last_pair_is_dropped_so_the_answer_is_not_rounded(tiny: ModuleType, class_contract: Contract) -> None:
    prepared = preprocess(trace(tiny.trained_classifier(), class_contract).model)
    graph = onnx.load_from_string(finish(everything(prepared, class_contract, tiny.brightness_examples(24, seed=5)), class_contract)).graph
    last = next(node for node in graph.node if "logits" in node.output)
    assert {each.name for each in graph.initializer} <= {name for node in graph.node for name in node.input}
    assert last.op_type == "Gemm"


def test_the_softmax_itself_and_its_scores_stay_float() -> None:
    contract = network("attention").contract(tuple("0123456789"), 64)
    torch.manual_seed(0)
    prepared = preprocess(trace(AttentionNet(channels=32).eval(), contract).model)
    photos = [Example(source=np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8), truth=0) for i in range(4)]
    graph = everything(prepared, contract, photos).graph
    softmax = next(node for node in graph.node if node.op_type == "Softmax")
    producers = {out: node.op_type for node in graph.node for out in node.output}
    assert producers[softmax.input[0]] == "MatMul"
    assert {node.op_type for node in graph.node if softmax.output[0] in node.input} == {"Mul", "ReduceMax"}


def test_followers_are_integers_only_where_all_their_products_are(tiny: ModuleType, class_contract: Contract) -> None:
    prepared = preprocess(trace(tiny.trained_classifier(), class_contract).model)
    limits = calibrate(prepared, observed_values(prepared, TARGETS["x86-vnni"]), class_contract, tiny.brightness_examples(8, seed=5)).limits("minmax")
    relu = next(node for node in prepared.graph.node if node.op_type == "Relu")
    assert sources(prepared)[relu.name] == {"conv1/Conv"}

    def quantised(integer: set[str]) -> bool:
        made = quantize(prepared, class_contract, integer, limits, VNNI)
        left = [each for each in made.graph.node if each.name == relu.name]  # a quantised Relu is nothing but a zero point at 0
        return not left or next(each.op_type for each in made.graph.node if left[0].input[0] in each.output) == "DequantizeLinear"

    assert quantised({"conv1/Conv"}) and not quantised({"conv2/Conv"})


class Gated(nn.Module):
    """Squeeze-and-excitation, SiLU, and a scale for each channel; the mean at the end drops its axes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.narrow, self.wide = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.scale, self.last = nn.Parameter(torch.rand(16, 1, 1)), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.silu(self.conv(x))
        x = x * torch.sigmoid(self.wide(torch.relu(self.narrow(x.mean((2, 3), keepdim=True)))))
        y: torch.Tensor = self.last((torch.relu(self.conv(x[:, :3])) * self.scale).mean((2, 3)))
        return y


def test_gates_and_means_follow_into_integers_and_a_scale_does_not(class_contract: Contract) -> None:
    torch.manual_seed(0)
    network = Gated().eval()
    prepared = preprocess(trace(network, class_contract).model)
    photos = [Example(source=np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8), truth=0) for i in range(8)]
    made = everything(prepared, class_contract, photos)
    producers = {out: node.op_type for node in made.graph.node for out in node.output}
    fed = {node.name: {producers.get(each) for each in node.input if each in producers} for node in made.graph.node}
    kinds = [node.op_type for node in made.graph.node]
    assert kinds.count("GlobalAveragePool") == 1 and kinds.count("ReduceMean") == 1  # the second mean follows the float scale
    by_kind = {kind: [fed[node.name] for node in made.graph.node if node.op_type == kind] for kind in ("Sigmoid", "Mul", "GlobalAveragePool")}
    assert by_kind["Sigmoid"] == [{"DequantizeLinear"}] * 2 and by_kind["GlobalAveragePool"] == [{"DequantizeLinear"}]
    assert sum(each == {"DequantizeLinear"} for each in by_kind["Mul"]) >= 2
    scale = next(node for node in made.graph.node if node.op_type == "Mul" and any("scale" in name for name in node.input))
    assert not any("QuantizeLinear" in name for name in scale.input if "scale" in name)
    pixels = np.stack([photo.source for photo in photos])
    exact, rounded = run(finish(prepared, class_contract), pixels), run(finish(made, class_contract), pixels)
    assert 0 < np.abs(exact - rounded).max() < 0.1 * np.ptp(exact)


class Mixer(nn.Module):
    """Two linear layers over the channels of each position, with `between` them; from patches of 4x4 to three classes."""

    def __init__(self, between: nn.Module, bias: bool = True) -> None:
        super().__init__()
        self.patches, self.first, self.between = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 32, bias=bias), between
        self.second, self.last = nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.layer_norm(self.patches(x).flatten(2).transpose(1, 2), (16,))
        x = x + 0.5 * self.second(self.between(self.first(x)))
        y: torch.Tensor = self.last(nn.functional.layer_norm(x.mean(1), (16,)))
        return y


@pytest.mark.parametrize(
    ("between", "bias", "first"),
    [
        (nn.GELU(), True, ["Add", "Gelu"]),
        (nn.GELU(), False, ["Gelu"]),
        (nn.Sequential(nn.Unflatten(2, (2, 16)), nn.Tanh(), nn.Flatten(2)), True, ["Add", "Reshape"]),
        (nn.ReLU(), True, ["QuantizeLinear", "DequantizeLinear", "Add", "QuantizeLinear"]),
        (nn.Sequential(nn.Unflatten(2, (2, 16)), nn.Flatten(2)), True, ["QuantizeLinear", "DequantizeLinear", "Add", "QuantizeLinear"]),
        (nn.Identity(), True, ["QuantizeLinear", "DequantizeLinear", "Add", "QuantizeLinear"]),
    ],
    ids=["gelu", "no bias", "through layout", "an integer follower", "an integer product through layout", "an integer product"],
)
def test_a_linear_layer_between_float_operators_gives_floats(class_contract: Contract, between: nn.Module, bias: bool, first: list[str]) -> None:
    torch.manual_seed(0)
    network = Mixer(between, bias).eval()
    prepared = preprocess(trace(network, class_contract).model)
    photos = [Example(source=np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8), truth=0) for i in range(8)]
    made = everything(prepared, class_contract, photos)
    for name, expected in (("first", first), ("second", ["Add", "Mul"])):
        value = next(node.output[0] for node in made.graph.node if node.name == f"{name}/MatMul")
        way = []
        while len(way) < len(expected):
            reader = next(node for node in made.graph.node if value in node.input)
            way.append(reader.op_type)
            value = reader.output[0]
        assert way == expected
    pixels = np.stack([photo.source for photo in photos])
    exact, rounded = run(finish(prepared, class_contract), pixels), run(finish(made, class_contract), pixels)
    assert 0 < np.abs(exact - rounded).max() < 0.05 * np.ptp(exact)


def test_a_shape_is_asked_of_the_integers(tiny: ModuleType, image_contract: Contract) -> None:
    torch.manual_seed(0)
    prepared = preprocess(trace(tiny.TinyGenerator().eval(), image_contract).model)
    photos = [Example(source=np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8), truth=0) for i in range(2)]
    graph = everything(prepared, image_contract, photos).graph
    kinds = {out: node.op_type for node in graph.node for out in node.output}
    asked = [kinds.get(node.input[0], "input") for node in graph.node if node.op_type == "Shape"]
    assert "QuantizeLinear" in asked and "DequantizeLinear" not in asked


def test_one_product_alone_leaves_the_others_float(tiny: ModuleType, class_contract: Contract) -> None:
    prepared = preprocess(trace(tiny.trained_classifier(), class_contract).model)
    before = prepared.SerializeToString()
    limits = calibrate(prepared, observed_values(prepared, TARGETS["x86-vnni"]), class_contract, tiny.brightness_examples(8, seed=5)).limits("minmax")
    made = quantize(prepared, class_contract, {"conv2/Conv"}, limits, VNNI)
    stored = [each.name for each in made.graph.initializer if each.data_type == onnx.TensorProto.INT8 and len(each.dims) == 4]
    assert len(stored) == 1 and "conv2" in stored[0] and prepared.SerializeToString() == before


def test_pixels_are_fed_a_few_at_a_time(tiny: ModuleType, class_contract: Contract) -> None:
    examples = tiny.brightness_examples(11, seed=0)
    arrays = [each["pixels"] for each in fed(class_contract, examples)]
    assert [len(each) for each in arrays] == [4, 4, 3]
    np.testing.assert_array_equal(np.concatenate(arrays), np.stack([example.source for example in examples]))


def test_a_sample_is_even_ordered_and_repeatable() -> None:
    examples = [Example(source=f"{i}.png", truth=0) for i in range(50)]
    sample = calibration_sample(examples, 10)
    assert len(sample) == 10 and sample == calibration_sample(examples, 10)
    assert [examples.index(e) for e in sample] == sorted(examples.index(e) for e in sample)
    assert calibration_sample(examples, 100) == examples
