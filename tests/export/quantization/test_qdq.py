import logging
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeport_export.network.size_sweep import measured_cost
from edgeport_export.quantization.calibration import calibrate
from edgeport_export.quantization.qdq import follower_products, observed_values, preprocess, quantize
from edgeport_export.quantization.targets import TARGETS
from edgeport_export.quantization.variants import QuantizableGraph
from edgeport_export.rewrites.finalize import finalize
from edgeport_export.rewrites.graph import GraphEditor
from edgeport_export.tracing.exporter import trace
from edgeport_models import AttentionNet, network
from edgeport_runtime import Contract, Example, Output, Range

VNNI = TARGETS["x86-vnni"]
Quantizable = Callable[..., QuantizableGraph]
AllInteger = Callable[..., onnx.ModelProto]
Run = Callable[..., np.ndarray]


def test_int8_is_integer_near_and_smaller_for_every_target(
    quantizable: Quantizable, all_integer: AllInteger, run_first: Run, tiny: ModuleType, class_contract: Contract
) -> None:
    graphs = {name: quantizable(tiny.trained_classifier(), class_contract, name) for name in TARGETS}
    fp32 = finalize(graphs["x86"].model, class_contract)
    pixels = np.stack([example.source for example in tiny.brightness_examples(8, seed=6)])
    exact = run_first(fp32, pixels)
    weights: dict[str, int] = {}
    for name, graph in graphs.items():
        made = all_integer(graph, tiny.brightness_examples(24, seed=5))
        data = finalize(made, class_contract)
        rounded = run_first(data, pixels)
        assert not np.array_equal(exact, rounded) and len(data) < len(fp32)
        assert np.abs(exact - rounded).max() < 0.05 * np.ptp(exact)
        stored = [onnx.numpy_helper.to_array(each) for each in made.graph.initializer if each.data_type == onnx.TensorProto.INT8]
        weights[name] = max(int(np.abs(each.astype(int)).max()) for each in stored if each.ndim == 4)
        activations = {each.data_type for each in made.graph.initializer if "zero_point" in each.name and "weight" not in each.name and not each.dims}
        assert activations & {onnx.TensorProto.INT8, onnx.TensorProto.UINT8} == ({onnx.TensorProto.INT8} if name == "arm64" else {onnx.TensorProto.UINT8})
    assert weights["x86-vnni"] >= 127 and weights["x86"] <= 64  # 7 bits cannot saturate two products in 16: 2 * 255 * 64 < 32,768


class Patches(nn.Module):
    """Patch embedding straight into a linear layer: the rewritten sequence is quantized itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Conv2d(3, 24, 4, 4), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.mix(self.embed(x).flatten(2).transpose(1, 2))).mean(1))


@pytest.mark.parametrize("sides", [(16, 16), (24, 40)])
def test_positions_that_a_linear_layer_reads_have_the_range_of_their_map(
    quantizable: Quantizable, all_integer: AllInteger, run_first: Run, tiny: ModuleType, class_contract: Contract, sides: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    graph = quantizable(Patches().eval(), class_contract)
    made = all_integer(graph, tiny.brightness_examples(24, seed=5))
    pixels = np.random.default_rng(0).integers(0, 256, (2, *sides, 3), dtype=np.uint8)
    exact, rounded = run_first(finalize(graph.model, class_contract), pixels), run_first(finalize(made, class_contract), pixels)
    assert not np.array_equal(exact, rounded) and np.abs(exact - rounded).max() < 0.05 * np.ptp(exact)


def test_constants_on_the_left_stay_float(quantizable: Quantizable, class_contract: Contract) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.table @ x.flatten(2)).mean(2)

    graph = quantizable(Mixed().eval(), class_contract)
    assert graph.quantizable == () and list(graph.not_quantizable.values()) == ["constants times an activation, for which onnxruntime has no integer kernel"]


class Clamped(nn.Module):
    def __init__(self, low: float | None, high: float | None) -> None:
        super().__init__()
        self.first, self.second, self.limits = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3), (low, high)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).clamp(*self.limits)).mean((2, 3))


@pytest.mark.parametrize(("low", "high", "follows"), [(0.0, 6.0, True), (-0.2, 0.3, True), (0.2, None, False), (None, -0.1, False), (None, 0.3, True)])
def test_clips_between_limits_on_one_side_of_zero_are_kept(
    quantizable: Quantizable,
    all_integer: AllInteger,
    run_first: Run,
    tiny: ModuleType,
    class_contract: Contract,
    low: float | None,
    high: float | None,
    follows: bool,
) -> None:
    torch.manual_seed(0)
    contract = replace(class_contract, task="embedding", labels=(), outputs=(Output(name="out", dtype="float32", shape=("batch", 4), kind="tensor"),))
    graph = quantizable(Clamped(low, high).eval(), contract)
    clips = {node.name for node in graph.model.graph.node if node.op_type == "Clip" and not node.name.startswith("edgeport/")}
    assert (clips <= set(follower_products(GraphEditor(graph.model)))) == follows
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    exact = run_first(finalize(graph.model, contract), pixels)
    rounded = run_first(finalize(all_integer(graph, tiny.brightness_examples(24, seed=5)), contract), pixels)
    assert np.square(exact - exact.mean()).sum() > 10**1.5 * np.square(exact - rounded).sum()  # 15 dB; 0 and less where the limits went


class Branching(nn.Module):
    """Asks its values, not its sizes, while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.head(torch.cond(x.mean() > 0, lambda each: each.relu(), lambda each: each * 2, (x,)).mean((2, 3)))


@pytest.mark.skipif(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14), reason="torch 2.11 cannot trace torch.cond: it is refused")
def test_a_graph_that_branches_while_it_runs_is_costed_and_left_in_float(quantizable: Quantizable, class_contract: Contract) -> None:
    contract = replace(class_contract, axes={**class_contract.axes, "batch": Range(low=1, high=1)})
    assert measured_cost(Branching().eval(), contract)({"batch": 1, "height": 16, "width": 16}) > 0
    graph = quantizable(Branching().eval(), contract)
    reasons = graph.not_quantizable.values()
    assert graph.quantizable == () and len(reasons) == 2 and all("branches or loops while it runs" in reason for reason in reasons)


def test_the_root_logger_is_left_as_it_was(tiny: ModuleType, class_contract: Contract) -> None:
    before = logging.getLogger().level
    preprocess(trace(tiny.trained_classifier(), class_contract).model)
    assert logging.getLogger().level == before


def test_the_last_pair_is_dropped_so_the_answer_is_not_rounded(
    quantizable: Quantizable, all_integer: AllInteger, tiny: ModuleType, class_contract: Contract
) -> None:
    graph = quantizable(tiny.trained_classifier(), class_contract)
    graph = onnx.load_from_string(finalize(all_integer(graph, tiny.brightness_examples(24, seed=5)), class_contract)).graph
    last = next(node for node in graph.node if "logits" in node.output)
    assert {each.name for each in graph.initializer} <= {name for node in graph.node for name in node.input}
    assert last.op_type == "Gemm"


def test_the_softmax_itself_and_its_scores_stay_float(quantizable: Quantizable, all_integer: AllInteger) -> None:
    contract = network("attention").contract(tuple("0123456789"), 64)
    torch.manual_seed(0)
    graph = quantizable(AttentionNet(channels=32).eval(), contract)
    photos = [Example(source=np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8), truth=0) for i in range(4)]
    graph = all_integer(graph, photos).graph
    softmax = next(node for node in graph.node if node.op_type == "Softmax")
    producers = {out: node.op_type for node in graph.node for out in node.output}
    assert producers[softmax.input[0]] == "MatMul"
    readers = {node.op_type: node for node in graph.node if softmax.output[0] in node.input}
    assert set(readers) == {"QuantizeLinear", "ReduceMax"}
    assert producers[readers["QuantizeLinear"].input[1]] == "Mul"  # a step for each row, by its largest weight, and none for all


def test_followers_are_integers_only_if_all_their_products_are(quantizable: Quantizable, tiny: ModuleType, class_contract: Contract) -> None:
    graph = quantizable(tiny.trained_classifier(), class_contract)
    ranges = calibrate(graph.model, observed_values(graph.model, VNNI), class_contract, tiny.brightness_examples(8, seed=5)).ranges("minmax")
    relu = next(node for node in graph.model.graph.node if node.op_type == "Relu")
    assert follower_products(GraphEditor(graph.model))[relu.name] == {"conv1/Conv"}

    def quantized(integer: set[str]) -> bool:
        made = quantize(graph.model, class_contract, frozenset(integer), ranges, VNNI)
        left = [each for each in made.graph.node if each.name == relu.name]  # a quantized Relu is nothing but a zero point at 0
        return not left or next(each.op_type for each in made.graph.node if left[0].input[0] in each.output) == "DequantizeLinear"

    assert quantized({"conv1/Conv"}) and not quantized({"conv2/Conv"})


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


def test_gates_and_means_follow_into_integers_and_a_scale_does_not(
    quantizable: Quantizable, all_integer: AllInteger, run_first: Run, class_contract: Contract
) -> None:
    torch.manual_seed(0)
    network = Gated().eval()
    graph = quantizable(network, class_contract)
    photos = [Example(source=np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8), truth=0) for i in range(8)]
    made = all_integer(graph, photos)
    producers = {out: node.op_type for node in made.graph.node for out in node.output}
    read_from = {node.name: {producers.get(each) for each in node.input if each in producers} for node in made.graph.node}
    kinds = [node.op_type for node in made.graph.node]
    assert kinds.count("GlobalAveragePool") == 1 and kinds.count("ReduceMean") == 1  # the second mean follows the float scale
    by_kind = {kind: [read_from[node.name] for node in made.graph.node if node.op_type == kind] for kind in ("Sigmoid", "Mul", "GlobalAveragePool")}
    assert by_kind["Sigmoid"] == [{"DequantizeLinear"}] * 2 and by_kind["GlobalAveragePool"] == [{"DequantizeLinear"}]
    assert sum(each == {"DequantizeLinear"} for each in by_kind["Mul"]) >= 2
    scale = next(node for node in made.graph.node if node.op_type == "Mul" and any("scale" in name for name in node.input))
    assert not any("QuantizeLinear" in name for name in scale.input if "scale" in name)
    pixels = np.stack([photo.source for photo in photos])
    exact, rounded = run_first(finalize(graph.model, class_contract), pixels), run_first(finalize(made, class_contract), pixels)
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
        (nn.GELU(), True, ["Cast", "Mul", "Add", "Gelu"]),
        (nn.GELU(), False, ["Gelu"]),
        (nn.Sequential(nn.Unflatten(2, (2, 16)), nn.Tanh(), nn.Flatten(2)), True, ["Cast", "Mul", "Add", "Reshape"]),
        (nn.ReLU(), True, ["QuantizeLinear", "DequantizeLinear", "Add", "QuantizeLinear"]),
        (nn.Sequential(nn.Unflatten(2, (2, 16)), nn.Flatten(2)), True, ["QuantizeLinear", "DequantizeLinear", "Add", "QuantizeLinear"]),
        (nn.Identity(), True, ["QuantizeLinear", "DequantizeLinear", "Add", "QuantizeLinear"]),
    ],
    ids=["gelu", "no bias", "through layout", "an integer follower", "an integer product through layout", "an integer product"],
)
def test_a_linear_layer_between_float_operators_gives_floats(
    quantizable: Quantizable, all_integer: AllInteger, run_first: Run, class_contract: Contract, between: nn.Module, bias: bool, first: list[str]
) -> None:
    torch.manual_seed(0)
    network = Mixer(between, bias).eval()
    graph = quantizable(network, class_contract)
    photos = [Example(source=np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8), truth=0) for i in range(8)]
    made = all_integer(graph, photos)
    for name, expected in (("first", first), ("second", ["Cast", "Mul", "Add", "Mul"])):  # Cast, Mul and Add: of the integer sums, their scale, the bias
        value = next(node.output[0] for node in made.graph.node if node.name == f"{name}/MatMul")
        way = []
        while len(way) < len(expected):
            reader = next(node for node in made.graph.node if value in node.input)
            way.append(reader.op_type)
            value = reader.output[0]
        assert way == expected
    pixels = np.stack([photo.source for photo in photos])
    exact, rounded = run_first(finalize(graph.model, class_contract), pixels), run_first(finalize(made, class_contract), pixels)
    assert 0 < np.abs(exact - rounded).max() < 0.05 * np.ptp(exact)


def test_a_shape_is_asked_of_the_integers(quantizable: Quantizable, all_integer: AllInteger, tiny: ModuleType, image_contract: Contract) -> None:
    torch.manual_seed(0)
    graph = quantizable(tiny.TinyGenerator().eval(), image_contract)
    photos = [Example(source=np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8), truth=0) for i in range(2)]
    graph = all_integer(graph, photos).graph
    kinds = {out: node.op_type for node in graph.node for out in node.output}
    asked = [kinds.get(node.input[0], "input") for node in graph.node if node.op_type == "Shape"]
    assert "QuantizeLinear" in asked and "DequantizeLinear" not in asked


def test_one_product_alone_leaves_the_others_float(quantizable: Quantizable, tiny: ModuleType, class_contract: Contract) -> None:
    graph = quantizable(tiny.trained_classifier(), class_contract)
    before = graph.model.SerializeToString()
    ranges = calibrate(graph.model, observed_values(graph.model, VNNI), class_contract, tiny.brightness_examples(8, seed=5)).ranges("minmax")
    made = quantize(graph.model, class_contract, frozenset({"conv2/Conv"}), ranges, VNNI)
    stored = [each.name for each in made.graph.initializer if each.data_type == onnx.TensorProto.INT8 and len(each.dims) == 4]
    assert len(stored) == 1 and "conv2" in stored[0] and graph.model.SerializeToString() == before
