"""The stem image by image: which pixels its columns read is worked out by hand, and its integers are those of the graph that takes a batch at once,
whose first convolution is held to PyTorch (`test_column_quads.py`)."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn

from edgeport_export.calibration import calibrate
from edgeport_export.multiplications import integer_nodes
from edgeport_export.quantize import candidates, observed_values, preprocess, quantize
from edgeport_export.rewrites import image_by_image as room
from edgeport_export.rewrites.column_quads import Geometry
from edgeport_export.rewrites.image_by_image import Window, large_stem, moved, window
from edgeport_export.rewrites.nodes import every_node
from edgeport_export.targets import TARGETS
from edgeport_export.trace import finish, trace
from edgeport_runtime import Contract, Pixels, Range, SessionOptions
from edgeport_runtime.contract import Output, pixel_input
from edgeport_runtime.device import open_session
from edgeport_runtime.evaluate import Example

SIDE = 208  # 64 filters at 104x104 are more than half a MB
COLOUR = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
EVEN = {"mean": (0.4, 0.4, 0.4), "std": (0.2, 0.25, 0.3)}
GREY = {"mode": "L", "mean": (0.2,), "std": (0.5,)}
MAPS = 16


class Stem(nn.Module):
    """Convolution, norm, activation, pool, and a convolution behind them."""

    def __init__(self, *, channels: int = 3, filters: int = 64, activation: nn.Module | None = None, pool: nn.Module | None = None, **options: Any) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, filters, **{"stride": 2, **options}), nn.BatchNorm2d(filters), activation or nn.ReLU())
        self.pool, self.last = pool or nn.MaxPool2d(3, 2, 1), nn.Conv2d(filters, MAPS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.last(self.pool(self.first(x)))
        return made


class Forked(Stem):
    """Somebody else reads what the pool reads."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.first(x)
        made: torch.Tensor = self.last(self.pool(seen)) + seen.mean()
        return made


def contract(normalisation: dict[str, Any], *, side: int = SIDE, step: int = 1, width: int = 0) -> Contract:
    """Any height; widths by `step`, or just one."""
    pixels = Pixels(height=side, width=width or side, **normalisation)
    output = Output(name="maps", dtype="float32", shape=("batch", MAPS, "?", "?"), kind="tensor")
    sides = {"height": Range(low=24, high=side + 16), "width": Range(low=24 // step * step, high=side + 16, step=step)}
    image = pixel_input(pixels)
    if width:
        image = replace(image, shape=("batch", "height", width, pixels.channels))
        del sides["width"]
    return Contract(task="tensors", inputs=(image,), outputs=(output,), axes={"batch": Range(low=1, high=4), **sides})


def integers(network: nn.Module, described: Contract) -> onnx.ModelProto:
    """Every product as integers."""
    target = TARGETS["x86-vnni"]
    prepared = preprocess(trace(network.eval(), described).model)
    width, channels = described.inputs[0].shape[2:]
    images = np.random.default_rng(0).integers(0, 256, (4, 32, width if isinstance(width, int) else 32, channels), dtype=np.uint8)
    limits = calibrate(prepared, observed_values(prepared, target), described, [Example(source=each, truth=0) for each in images]).limits("minmax")
    return quantize(prepared, described, set(candidates(prepared, target)[0]), limits, target)


def both(network: nn.Module, described: Contract, monkeypatch: pytest.MonkeyPatch) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A batch at once, and image by image."""
    with monkeypatch.context() as patch:
        patch.setattr(room, "LEAST_BYTES", 1 << 60)
        at_once = integers(network, described)
    return at_once, integers(network, described)


def scans(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in every_node(model.graph) if node.op_type == "Scan"]


def every_branch(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for each in [each.g for node in graph.node for each in node.attribute if each.type == onnx.AttributeProto.GRAPH]:
        yield each
        yield from every_branch(each)


def answers(model: onnx.ModelProto, described: Contract, pixels: np.ndarray) -> np.ndarray:
    return np.asarray(open_session(finish(model, described), SessionOptions(threads=1)).run(["maps"], {"pixels": pixels})[0])


@pytest.mark.parametrize(
    ("columns", "left", "right", "expected"),
    [
        (7, 3, 3, Window(positions=2, at=0, before=(3, 1), behind=(1, 3))),
        (5, 2, 2, Window(positions=2, at=0, before=(2, 0), behind=(2, 4))),
        (8, 3, 3, Window(positions=2, at=0, before=(3, 1), behind=(1, 3))),
        (9, 4, 4, Window(positions=3, at=0, before=(4, 2), behind=(4, 6))),
        (6, 1, 3, Window(positions=2, at=1, before=(2, 0), behind=(2, 4))),
        (3, 1, 1, None),  # the even ones would read four pixels less than there are
        (4, 1, 1, None),  # five taps with the free one before them, and four places
    ],
)
def test_where_even_and_odd_columns_find_their_pixels(columns: int, left: int, right: int, expected: Window | None) -> None:
    own = {"columns": columns, "left": left, "room": left + right - columns, "top": 0, "bottom": 0, "down": 2, "step": 2}
    shape = Geometry(outputs=2, before=-(-left // 4), behind=(columns - 1 - left + 2) // 4, past=0, **own)
    assert window(shape) == expected
    assert window(replace(shape, outputs=1)) is None


def test_taps_are_moved_one_by_one() -> None:
    """A kernel of 1x5 with two columns of padding on one grey channel: before, the taps are pixels 2 to 6 of positions -1 and 0."""
    shape = Geometry(outputs=2, before=1, behind=1, past=1, room=-1, columns=5, left=2, top=0, bottom=0, down=2, step=2)
    weights = np.array([[0, 0, 1, 2], [3, 4, 5, 0], [0, 0, 0, 0]], np.int8).T.reshape(1, 4, 1, 3)  # channel p of position q is pixel 4 q + p
    found = moved(weights, shape, Window(positions=2, at=0, before=(2, 0), behind=(2, 4)))
    assert found.tolist() == np.array([[1, 2, 3, 4], [5, 0, 0, 0]]).T.reshape(1, 4, 1, 2).tolist()


STEMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "7x7": ({"kernel_size": 7, "padding": 3, "bias": False}, COLOUR),
    "7x7, even means": ({"kernel_size": 7, "padding": 3}, EVEN),
    "5x5": ({"kernel_size": 5, "padding": 2, "activation": nn.ReLU6()}, COLOUR),
    "5x7, no rows around": ({"kernel_size": (5, 7), "padding": (0, 3), "activation": nn.Identity()}, COLOUR),
    "one row down": ({"kernel_size": 7, "padding": 3, "stride": (1, 2)}, EVEN),
    "grey, 96 filters": ({"kernel_size": 7, "padding": 3, "channels": 1, "filters": 96}, GREY),
    "a pool that rounds up": ({"kernel_size": 7, "padding": 3, "pool": nn.MaxPool2d(3, 2, ceil_mode=True)}, COLOUR),
    "a pool of 2x2": ({"kernel_size": 7, "padding": 3, "pool": nn.MaxPool2d(2)}, COLOUR),
}
_MADE: dict[str, tuple[Any, Any]] = {}


def _sessions(name: str) -> tuple[Any, Any]:
    if name not in _MADE:
        options, normalisation = STEMS[name]
        described = contract(normalisation)
        with pytest.MonkeyPatch.context() as patch:
            models = both(Stem(**options), described, patch)
        assert [len(scans(each)) for each in models] == [0, 1]
        onnx.checker.check_model(models[1], full_check=True)
        first, second = (open_session(finish(each, described), SessionOptions(threads=1)) for each in models)
        _MADE[name] = first, second
    return _MADE[name]


@pytest.mark.parametrize("name", STEMS)
@settings(max_examples=12)
@given(st.integers(1, 4), st.integers(24, 40), st.integers(24, 44), st.integers(0, 9))
def test_image_by_image_gives_what_the_batch_gave(name: str, batch: int, height: int, width: int, seed: int) -> None:
    channels = STEMS[name][0].get("channels", 3)
    pixels = np.random.default_rng(seed).integers(0, 256, (batch, height, width, channels), dtype=np.uint8)
    pixels[:, :, -1] = 255  # what lies beyond the border would show
    at_once, one_by_one = (each.run(["maps"], {"pixels": pixels})[0] for each in _sessions(name))
    np.testing.assert_array_equal(one_by_one, at_once)


@pytest.mark.parametrize(("width", "step"), [(0, 4), (SIDE, 1)])
def test_where_the_contract_knows_the_width_there_is_one_branch_less(width: int, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    described = contract(COLOUR, step=step, width=width)
    at_once, one_by_one = both(Stem(kernel_size=7, padding=3), described, monkeypatch)
    kinds = [node.op_type for node in every_node(one_by_one.graph)]
    assert (kinds.count("Scan"), kinds.count("If"), kinds.count("Slice"), kinds.count("Conv")) == (1, 1, 0, 3)
    for batch in (1, 3):
        pixels = np.random.default_rng(batch).integers(0, 256, (batch, 30, width or 32, 3), dtype=np.uint8)
        np.testing.assert_array_equal(answers(one_by_one, described, pixels), answers(at_once, described, pixels))


def test_the_integer_kernels_run_in_every_branch_on_its_own_constants(tmp_path: Any) -> None:
    """Where products saturate, onnxruntime changes the weights that it finds beside the convolution, and those alone."""
    described = contract(COLOUR)
    model = integers(Stem(kernel_size=7, padding=3), described)
    found = [graph for graph in every_branch(model.graph) if any(node.op_type == "Conv" for node in graph.node)]
    assert len(found) == 3
    for graph in found:
        own = {each.name for each in graph.initializer}
        weights = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.input[1:]}
        assert len(weights) >= 6 and weights < own and any(node.op_type == "MaxPool" for node in graph.node)
    assert not any("first.0.weight" in each.name for each in model.graph.initializer)
    file = finish(model, described)
    assert integer_nodes(file) == {"first.0/Conv"}  # it has kept its name, and what gives the answer gives floats
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in every_node(onnx.load(tmp_path / "optimised.onnx").graph)]
    assert (kinds.count("QLinearConv"), kinds.count("NhwcMaxPool"), kinds.count("Conv"), kinds.count("MaxPool")) == (3, 3, 1, 0)


@pytest.mark.parametrize(
    ("network", "options", "side"),
    [
        (Stem, {"kernel_size": 7, "padding": 3}, 176),
        (Stem, {"kernel_size": 7, "padding": 3, "filters": 48}, 240),
        (Stem, {"kernel_size": 3, "padding": 1}, SIDE),
        (Stem, {"kernel_size": 7, "padding": 3, "activation": nn.SiLU()}, SIDE),
        (Stem, {"kernel_size": 7, "padding": 3, "pool": nn.AvgPool2d(2)}, SIDE),
        (Forked, {"kernel_size": 7, "padding": 3}, SIDE),
    ],
    ids=["a map of 484 KiB", "few filters", "3x3", "floats before the pool", "another pool", "another reader"],
)
def test_other_stems_take_the_batch_at_once(network: type[Stem], options: dict[str, Any], side: int) -> None:
    model = integers(network(**options), contract(COLOUR, side=side))
    assert not scans(model) and [node.op_type for node in model.graph.node].count("If") == 1


SEVEN = Geometry(outputs=2, before=1, behind=1, past=1, room=-1, columns=7, left=3, top=3, bottom=3, down=2, step=2)


@pytest.mark.parametrize(("changed", "expected"), [("", True), ("scale", False), ("zero_point", False)])
def test_a_pool_that_rounds_otherwise_stays(changed: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    described = contract(COLOUR, width=SIDE)
    model, _ = both(Stem(kernel_size=7, padding=3), described, monkeypatch)
    pool = next(node for node in model.graph.node if node.op_type == "MaxPool")
    rounded = next(node for node in model.graph.node if node.input[0] == pool.output[0])
    if changed:
        place = 1 + ["scale", "zero_point"].index(changed)
        old = next(numpy_helper.to_array(each) for each in model.graph.initializer if each.name == rounded.input[place])
        model.graph.initializer.append(numpy_helper.from_array(np.array(old + old.dtype.type(1), old.dtype), "other"))
        rounded.input[place] = "other"
    assert (large_stem(model, described, SEVEN) is not None) is expected


@pytest.mark.parametrize(("width", "batch"), [(SIDE + 1, 4), (SIDE + 2, 4), (SIDE, 1)])
def test_without_batches_or_a_width_of_fours_there_is_nothing_to_do(width: int, batch: int) -> None:
    described = contract(COLOUR, width=width)
    described = replace(described, axes={**described.axes, "batch": Range(low=1, high=batch)})
    assert not scans(integers(Stem(kernel_size=7, padding=3), described))
