from collections.abc import Callable
from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_sample_images
from torch import nn

from edgeport_export.quantization.calibration import calibrate
from edgeport_export.quantization.qdq import observed_values, quantize
from edgeport_export.quantization.recovery import frontier, weight_recovery
from edgeport_export.quantization.recovery.product_sums import ProductSums
from edgeport_export.quantization.recovery.recovered_weights import NOTHING, Recovered, recovered_sha256
from edgeport_export.quantization.recovery.weight_recovery import (
    EFFORTS,
    Effort,
    Moments,
    _window,
    best_steps,
    fitted,
    images_sha256,
    images_to_round_with,
    recover,
)
from edgeport_export.quantization.variants import QuantizableGraph
from edgeport_export.rewrites.graph import GraphEditor
from edgeport_runtime import Contract, Example
from edgeport_runtime.engine import Arrays

Quantizable = Callable[..., QuantizableGraph]
SIDE_PX = 16


def crops(count: int, seed: int) -> list[Example]:
    """Of scikit-learn's two photographs, whose neighboring pixels are alike."""
    photos, generator = load_sample_images().images, np.random.default_rng(seed)
    corners = [(photos[index % 2], *(int(generator.integers(0, side - SIDE_PX)) for side in photos[0].shape[:2])) for index in range(count)]
    return [Example(source=photo[top : top + SIDE_PX, left : left + SIDE_PX]) for photo, top, left in corners]


class Inverted(nn.Module):
    """Narrow to wide, depthwise, and narrow again, three times, as in MobileNet: errors of weights add up through it."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6()]
        for _ in range(3):
            layers += [nn.Conv2d(16, 48, 1), nn.ReLU6(), nn.Conv2d(48, 48, 3, 1, 1, groups=48), nn.ReLU6(), nn.Conv2d(48, 16, 1)]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(16, 3)
        for each in self.modules():
            if isinstance(each, nn.Conv2d):
                each.weight.data *= torch.exp(1.5 * torch.randn_like(each.weight)) / 3  # a few large weights, as trained ones have, set the step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean((2, 3)))


class Sequences(nn.Module):
    """Linear layers on sequences, one of them without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 64, 4, 4), nn.LayerNorm(64)
        self.up, self.down, self.head = nn.Linear(64, 96), nn.Linear(96, 64, bias=False), nn.Linear(64, 3)
        for each in (self.up, self.down):
            each.weight.data *= torch.exp(1.5 * torch.randn_like(each.weight)) / 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head((x + self.down(nn.functional.gelu(self.up(self.norm(x))))).mean(1))


class Enlarging(nn.Module):
    """A transposed convolution, whose phases are filters of their own, and a convolution with three filters, which is computed in blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.last = nn.Conv2d(3, 32, 3, 1, 1), nn.ConvTranspose2d(32, 32, 4, 2, 1), nn.Conv2d(32, 3, 3, 1, 1)
        for each in (self.first, self.up, self.last):
            each.weight.data *= torch.exp(1.5 * torch.randn_like(each.weight)) / 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.up(torch.relu(self.first(x))))).mean((2, 3))


def pixels_of(examples: list[Example]) -> np.ndarray:
    return np.stack([np.asarray(each.source) for each in examples])


def ranges_of(graph: QuantizableGraph) -> dict[str, tuple[float, float]]:
    return dict(calibrate(graph.model, observed_values(graph.model, graph.target), graph.contract, crops(48, seed=1)).ranges("minmax"))


def recovered(graph: QuantizableGraph, effort: Effort = EFFORTS["quick"], count: int = 48) -> Recovered:
    return recover(graph, frozenset(graph.quantizable), ranges_of(graph), images_to_round_with(graph, crops(count, seed=1)), effort)


def int8(graph: QuantizableGraph, weights: Recovered = NOTHING) -> onnx.ModelProto:
    return quantize(graph.model, graph.contract, frozenset(graph.quantizable), ranges_of(graph), graph.target, weights)


def distance_db(model: onnx.ModelProto, network: nn.Module, run_first: Callable[[bytes, np.ndarray], np.ndarray]) -> float:
    """From PyTorch in float64, on crops that nothing was fitted to."""
    pixels = pixels_of(crops(64, seed=2))
    with torch.no_grad():
        exact = network.double().eval()(torch.from_numpy(pixels).double().permute(0, 3, 1, 2) / 127.5 - 1).numpy()
    network.float()
    error = run_first(model.SerializeToString(), pixels) - exact
    return float(10 * np.log10(np.square(exact - exact.mean(axis=0)).sum() / np.square(error).sum()))


@pytest.mark.parametrize(
    ("network", "target", "gain_db"),
    [
        (Inverted, "x86-vnni", 9.0),  # 7 if each product were rounded as if those before it were exact
        (Inverted, "x86", 7.5),
        (Sequences, "x86-vnni", 0.3),  # its activations are what costs
        (Sequences, "x86", 5.0),
        (Sequences, "arm64", 0.3),
        (Enlarging, "x86-vnni", 4.0),
        (Enlarging, "x86", 8.0),
    ],
)
def test_weights_rounded_for_each_other_come_nearer_to_pytorch(
    network: type[nn.Module],
    target: str,
    gain_db: float,
    quantizable: Quantizable,
    class_contract: Contract,
    run_first: Callable[[bytes, np.ndarray], np.ndarray],
) -> None:
    module = network()
    graph = quantizable(module, class_contract, target)
    before, after = (distance_db(int8(graph, weights), module, run_first) for weights in (NOTHING, recovered(graph)))
    assert after > before + gain_db, f"{before:.1f} -> {after:.1f} dB"


class Head(nn.Module):
    """A linear layer whose inputs have a mean: the error of their sum would stay if nothing made up for it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 64, 3, 2, 1), nn.Linear(64, 3)
        self.head.weight.data *= torch.exp(1.5 * torch.randn_like(self.head.weight))
        self.first.bias.data += 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.first(x)).mean((2, 3)))


def test_with_too_few_positions_for_an_offset_the_mean_counts(
    quantizable: Quantizable, class_contract: Contract, run_first: Callable[[bytes, np.ndarray], np.ndarray]
) -> None:
    module = Head()
    graph = quantizable(module, class_contract)
    head = {"head/Gemm": recovered(graph, count=40)["head/Gemm"]}
    assert np.allclose(head["head/Gemm"].added, module.head.bias.detach().numpy())
    before, after = (distance_db(int8(graph, weights), module, run_first) for weights in (NOTHING, head))
    assert after > before + 6, f"{before:.1f} -> {after:.1f} dB"


def integers_of(model: onnx.ModelProto) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each product's integers and their steps. A first convolution for widths of two kinds stands in the branches of an If, and is left out."""
    editor = GraphEditor(model)
    pairs = {node.name: editor.producers[node.input[1]] for node in editor.nodes if node.op_type in ("Conv", "Gemm")}
    return {name: (editor.array(pair.input[0]), editor.array(pair.input[1])) for name, pair in pairs.items()}


@pytest.mark.parametrize(("target", "largest"), [("x86-vnni", 127), ("x86", 64)])
@pytest.mark.parametrize("network", [Inverted, Enlarging])
def test_the_quantizer_finds_the_very_integers(network: type[nn.Module], target: str, largest: int, quantizable: Quantizable, class_contract: Contract) -> None:
    graph = quantizable(network(), class_contract, target)
    found = recovered(graph)
    assert set(found) == set(graph.quantizable)
    made = integers_of(int8(graph, found))
    assert len(made) >= len(found) - 1
    for name, (integers, steps) in made.items():
        rows, given = (array.reshape(len(steps), -1) if array.shape[0] == len(steps) else array.T for array in (integers, found[name].weights))
        np.testing.assert_allclose(rows * steps[:, None].astype(np.float64), given, rtol=1e-6, atol=1e-9)
        assert np.abs(rows[np.abs(given).max(axis=1) > 0]).max(axis=1).min() == largest


def test_everything_comes_out_the_same_again(quantizable: Quantizable, class_contract: Contract) -> None:
    torch.manual_seed(0)
    graph = quantizable(Inverted(), class_contract)
    first, again, other = recovered(graph), recovered(graph), recovered(graph, count=40)
    assert recovered_sha256(first) == recovered_sha256(again) != recovered_sha256(other)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.head = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, 1, 1), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.head(torch.relu(self.second(x) + self.third(x)).mean((2, 3)))


def test_products_that_read_the_same_share_a_pass_and_no_more_images_are_read_than_it_takes(
    quantizable: Quantizable, class_contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[list[str], int]] = []
    observed = weight_recovery._observed

    def counted(network: object, names: list[str], batches: list[Arrays], *rest: object) -> object:
        found = observed(network, names, batches, *rest)  # type: ignore[arg-type]
        passes.append((names, found[names[0]].images))
        return found

    monkeypatch.setattr(weight_recovery, "_observed", counted)
    monkeypatch.setattr(weight_recovery, "TOGETHER", 1)
    recovered(quantizable(Branches(), class_contract), Effort(images=8, per_input=1))
    assert passes == [(["first/Conv"], 8), (["second/Conv", "third/Conv"], 8), (["head/Gemm"], 16)]  # 16 inputs, one position an image
    passes.clear()
    recovered(quantizable(Branches(), class_contract), Effort(images=8, per_input=9), count=40)
    assert [images for _, images in passes] == [24, 24, 40]  # 72 inputs, in fours of pixels, at 32 positions an image; 144 at 64; the head takes all there are
    passes.clear()
    monkeypatch.setattr(frontier, "MOST_BYTES", 1)  # nothing is kept beyond one batch, and the others are run from the pixels on
    recovered(quantizable(Branches(), class_contract), Effort(images=8, per_input=1))
    assert [images for _, images in passes] == [8, 8, 16]


@pytest.mark.parametrize("why", ["too many inputs", "no numbers"])
def test_without_moments_each_weight_goes_to_its_nearest_step(
    why: str, quantizable: Quantizable, class_contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = quantizable(Branches(), class_contract)
    if why == "too many inputs":
        monkeypatch.setattr(weight_recovery, "MOST_INPUTS", 15)
    else:
        monkeypatch.setattr(weight_recovery.ProductSums, "sampled", lambda self, given, made, generator: nothing(self))
    found = recovered(graph)
    for name in graph.quantizable:
        float_weights = found[name].before.astype(np.float64)
        rows = float_weights.reshape(len(float_weights), -1)
        got = found[name].weights.reshape(rows.shape).astype(np.float64)
        steps = best_steps(rows[None], np.ones((1, rows.shape[1])), 127)[0][:, None]
        gains = np.abs(got).max(axis=1, keepdims=True) / (127 * steps)
        nearest = np.clip(np.round(rows / steps), -127, 127) * steps
        np.testing.assert_allclose(got, nearest * np.where(gains > 0, gains, 1), rtol=1e-5, atol=1e-7)


def nothing(sums: weight_recovery.ProductSums) -> tuple[np.ndarray, np.ndarray]:
    groups, rows, inputs = sums.rows.shape
    return np.full((groups, 9, inputs), np.nan, np.float32), np.full((groups, 9, rows), np.nan, np.float32)


@pytest.mark.parametrize(
    ("row", "squares", "share"),
    [
        (np.arange(-127.0, 128.0), np.ones(255), 1.0),  # every weight stands on a step already
        (np.array([127.0, *[0.6] * 50]), np.array([0.0, *[1.0] * 50]), 0.6),  # nothing reads the largest: the others come as near as they can
        (np.array([127.0, *[0.4] * 5]), np.ones(6), 1.0),  # cutting the largest off costs more than the others gain
        (np.zeros(3), np.ones(3), 1 / 127),
    ],
)
def test_the_step_of_a_row_is_the_one_with_the_least_squared_error(row: np.ndarray, squares: np.ndarray, share: float) -> None:
    """`row` is in steps of 1 with which nothing is cut off; `share`: of that."""
    steps = best_steps(row[None, None], squares[None], 127)
    assert steps[0, 0] == pytest.approx(share)


def clip(value: str, made: str, low: str = "zero", high: str = "six") -> onnx.NodeProto:
    return helper.make_node("Clip", [value, low, high], [made])


@pytest.mark.parametrize(
    ("nodes", "ranges", "expected"),
    [
        ([], {}, (-np.inf, np.inf)),
        ([], {"y": (-9.0, 8.0)}, (-9.0, 8.0)),
        ([helper.make_node("Relu", ["y"], ["a"])], {"y": (-9.0, 8.0)}, (0.0, 8.0)),
        ([clip("y", "a")], {"y": (-90.0, 80.0), "a": (0.0, 5.9)}, (0.0, 5.9)),
        ([clip("y", "a", low="")], {"y": (-90.0, 80.0)}, (-90.0, 6.0)),
        ([helper.make_node("Clip", ["y", "zero"], ["a"])], {}, (0.0, np.inf)),
        ([helper.make_node("Transpose", ["y"], ["a"]), helper.make_node("Reshape", ["a", "shape"], ["b"]), clip("b", "c")], {}, (0.0, 6.0)),
        ([helper.make_node("Relu", ["y"], ["a"]), helper.make_node("Sigmoid", ["a"], ["b"]), clip("b", "c")], {}, (0.0, np.inf)),
        ([helper.make_node("Relu", ["y"], ["a"]), helper.make_node("Neg", ["y"], ["b"])], {"y": (-9.0, 8.0)}, (-9.0, 8.0)),  # Neg sees all of it
        ([clip("y", "a", high="x")], {}, (-np.inf, np.inf)),  # a limit that is computed
    ],
)
def test_the_window_is_what_the_next_operator_sees(nodes: list[onnx.NodeProto], ranges: dict[str, tuple[float, float]], expected: tuple[float, float]) -> None:
    constants = {"w": np.zeros((1, 1, 1, 1), np.float32), "zero": np.float32(0), "six": np.float32(6), "shape": np.array([-1])}
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    product = helper.make_node("Conv", ["x", "w"], ["y"], name="product")
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "end"))
    editor = GraphEditor(helper.make_model(helper.make_graph([product, *nodes], "graph", [given], [made], initializer=initializers)))
    sums = ProductSums.of(editor, product)
    assert sums is not None and _window(editor, sums, ranges) == expected


@pytest.mark.parametrize("mean", [0.0, 3000.0])
def test_moments_are_exact_beside_a_large_mean_and_shrink_to_the_diagonal(mean: float, quantizable: Quantizable, class_contract: Contract) -> None:
    graph = quantizable(Branches(), class_contract)
    sums = ProductSums.of(graph.editor, next(node for node in graph.editor.nodes if node.name == "second/Conv"))
    assert sums is not None and sums.rows.shape == (1, 16, 16)
    moments, generator = Moments(sums), np.random.default_rng(0)
    batches = [(mean + generator.normal(size=(1, 40, 16)) * 0.5).astype(np.float32) for _ in range(2)]
    for inputs in batches:
        moments.add(inputs, np.zeros((1, 40, 16), np.float32))
    seen = np.concatenate(batches, axis=1)[0].astype(np.float64)
    shrunk = np.where(np.eye(16, dtype=bool), 1.0, 80 / (80 + 16))  # 80 positions, 16 inputs
    np.testing.assert_allclose(moments.second(about_mean=True)[0], np.cov(seen.T, bias=True) * shrunk, atol=1e-6)
    np.testing.assert_allclose(moments.second(about_mean=False)[0], seen.T @ seen / 80 * shrunk, rtol=1e-6, atol=1e-6)


LINE = np.linspace(-10, 10, 201)[:, None]


@pytest.mark.parametrize(
    ("got", "wanted", "added", "window", "expected"),
    [
        (LINE, 0.9 * LINE + 2, 0.0, (-np.inf, np.inf), (0.9, 2.0)),
        (LINE, 0.9 * LINE + 2, 0.0, (-20.0, 20.0), (0.9, 2.0)),
        # Beyond the window the line bends, which nobody sees: ReLU cuts it off.
        (LINE, np.where(LINE > 0, 1.1 * LINE, 7 * LINE), 0.0, (0.0, np.inf), (1.1, 0.0)),
        (LINE, np.where(LINE < 5, 0.8 * LINE + 1, 100.0), 0.0, (-np.inf, 5.0), (0.8, 1.0)),
        (LINE, 0.01 * LINE, 0.0, (-np.inf, np.inf), (0.5, 0.0)),  # a gain that makes the row vanish is held
        (0 * LINE, 0 * LINE + 3, 1.0, (-np.inf, np.inf), (1.0, 3.0)),  # a row that never changes
        (LINE, LINE + 4, 4.0, (-np.inf, np.inf), (1.0, 4.0)),  # nothing to mend
        (LINE[:50], 0.9 * LINE[:50] + 2, 1.0, (-np.inf, np.inf), (1.0, 1.0)),  # too few positions to tell
        (LINE, np.full_like(LINE, np.nan), 1.0, (-np.inf, np.inf), (1.0, 1.0)),
    ],
)
def test_gain_and_offset_bring_a_row_nearest_where_it_counts(
    got: np.ndarray, wanted: np.ndarray, added: float, window: tuple[float, float], expected: tuple[float, float]
) -> None:
    gain, offset = fitted(got, wanted, np.array([added]), window)
    assert (float(gain[0]), float(offset[0])) == pytest.approx(expected, abs=1e-6)


def test_a_row_whose_line_is_no_better_keeps_its_own() -> None:
    """By hand: of -10, 50 times, and 2.5, 100 times, 2.5 is wanted, between 2.4 and 2.6. The least gain, 0.5, with the offset 10 / 3 makes 4.6 of 2.5."""
    got = np.concatenate([np.full((50, 1), -10.0), np.full((100, 1), 2.5)])
    gain, offset = fitted(got, np.full_like(got, 2.5), np.zeros(1), (2.4, 2.6))
    assert (gain[0], offset[0]) == (1.0, 0.0)


def test_images_come_in_an_order_of_chance_within_the_memory(quantizable: Quantizable, class_contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, examples = quantizable(Branches(), class_contract), crops(24, seed=3)
    batches = images_to_round_with(graph, examples)
    taken = np.concatenate([each["pixels"] for each in batches])
    assert sorted(map(bytes, taken)) == sorted(map(bytes, pixels_of(examples))) and not np.array_equal(taken, pixels_of(examples))
    assert images_sha256(batches) == images_sha256(images_to_round_with(graph, examples)) != images_sha256(batches[1:])
    monkeypatch.setattr(weight_recovery, "MOST_BYTES", batches[0]["pixels"].nbytes * 2.5)
    assert len(images_to_round_with(graph, examples)) == 2
    monkeypatch.setattr(weight_recovery, "MOST_BYTES", 1)
    assert len(images_to_round_with(graph, examples)) == 1
    assert all(first is not second for first, second in pairwise(batches))
