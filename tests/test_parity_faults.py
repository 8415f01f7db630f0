"""Faults put into sound bundles, with every hash, seal and golden answer rewritten, so that only the numbers can betray them: each is caught by `verify`, with
a message that names its cause, on at least two networks.

Eight of them run in `make test` on two small networks; `make parity-faults` runs all.
"""

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from edgeport_export import ExportOptions, ImageTask, export_bundle, image_contract, verify
from edgeport_export.diagnosis.bundle_blame import blame_bundle
from edgeport_export.diagnosis.reproduction import reproduce
from edgeport_export.network.reference import TorchReference
from edgeport_export.network.size_sweep import random_image
from edgeport_export.quantization.plan import SEAL
from edgeport_export.quantization.plan import _seal as sealed_plan
from edgeport_export.rewrites.finalize import finalize_fp32
from edgeport_export.rewrites.names import levels_name
from edgeport_export.tracing.exporter import trace
from edgeport_export.validation.sweep import with_levels
from edgeport_models.attention import AttentionNet
from edgeport_models.generator import Generator as EdgeportGenerator
from edgeport_runtime import Bundle, Contract, Example, Pixels, Range
from edgeport_runtime.contract import METADATA_KEY
from edgeport_runtime.device import SessionOptions, open_session
from edgeport_runtime.errors import EdgeportError
from edgeport_runtime.golden_inputs import formula_inputs, sampled
from edgeport_runtime.manifest import sealed

Words = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A sound bundle, what it was made from, and a bundle of the same network with other weights."""

    name: str
    bundle: Path
    network: nn.Module
    contract: Contract
    calibration: Sequence[Example]
    other: Path


class Planting:
    """A copy of a bundle while a fault is put into it."""

    def __init__(self, folder: Path, subject: Subject) -> None:
        self.folder, self.subject = folder, subject
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        self.models = {each["precision"]: onnx.load(folder / each["file"]) for each in self.manifest["variants"]}
        self.keeps_golden = False

    @property
    def fp32(self) -> onnx.ModelProto:
        return self.models["fp32"]

    @property
    def int8(self) -> onnx.ModelProto:
        return self.models["int8"]

    def finish(self) -> None:
        """Write everything, and make every hash and stored answer fit."""
        contract = Contract.from_dict(self.manifest["contract"])
        for each in self.manifest["variants"]:
            model = self.models[each["precision"]]
            next(entry for entry in model.metadata_props if entry.key == METADATA_KEY).value = contract.to_json()
            data = model.SerializeToString(deterministic=True)
            (self.folder / each["file"]).write_bytes(data)
            each |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            if each.get("plan"):
                body = {key: value for key, value in each["plan"].items() if key != SEAL}
                each["plan"][SEAL] = sealed_plan(body)
        if not self.keeps_golden:
            self._answer_golden(contract)
        for case in self.manifest["golden"]:
            for file in (*case["inputs"], *case["outputs"], *case["levels"].values(), *(each for files in case["host"].values() for each in files)):
                file["sha256"] = hashlib.sha256((self.folder / file["file"]).read_bytes()).hexdigest()
        (self.folder / "manifest.json").write_text(json.dumps(sealed(self.manifest)))

    def _answer_golden(self, contract: Contract) -> None:
        """Let the planted files give the stored answers, PyTorch's among them; where one cannot run, its old answers stay."""
        for precision, model in self.models.items():
            try:
                session = open_session(with_levels(model.SerializeToString(), contract), SessionOptions())
                for case in self.manifest["golden"]:
                    inputs = self._inputs(contract, case)
                    names = [each.name for each in contract.outputs]
                    for name, file in zip(names, case["host"].get(precision, []), strict=False):
                        self.write(file["file"], name, sampled(session.run([name], inputs)[0], case["every"]))
                    for name, file in zip(names, case["outputs"] if precision == "fp32" else [], strict=False):
                        self.write(file["file"], name, sampled(session.run([name], inputs)[0], case["every"]))
                        if name in case["levels"]:
                            self.write(case["levels"][name]["file"], name, sampled(session.run([levels_name(name)], inputs)[0], case["every"]))
            except (EdgeportError, Exception) as error:  # onnxruntime's exceptions derive from Exception directly
                assert "onnx" in str(error).lower() or isinstance(error, EdgeportError), error

    def _inputs(self, contract: Contract, case: dict[str, Any]) -> dict[str, np.ndarray]:
        if case["sizes"] is not None:
            return formula_inputs(contract, case["sizes"])
        return {each.name: self.tensor(file["file"]) for each, file in zip(contract.inputs, case["inputs"], strict=True)}

    def tensor(self, file: str) -> np.ndarray:
        return numpy_helper.to_array(onnx.TensorProto.FromString((self.folder / file).read_bytes()))

    def write(self, file: str, name: str, array: np.ndarray) -> None:
        (self.folder / file).write_bytes(numpy_helper.from_array(np.ascontiguousarray(array), name).SerializeToString(deterministic=True))


def stored(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(each for each in model.graph.initializer if each.name == name)


def products(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, str]]:
    """Convolutions and matrix products with stored float weights, and the weights' names."""
    names = {each.name for each in model.graph.initializer if len(each.dims) > 1}
    return [(node, node.input[1]) for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in names]


def module(node: onnx.NodeProto) -> str:
    return node.name.rpartition("/")[0]


def changed(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], Any]) -> None:
    """`change` works in place, or returns another array."""
    tensor = stored(model, name)
    values = numpy_helper.to_array(tensor).copy()
    made = change(values)
    tensor.CopyFrom(numpy_helper.from_array(values if made is None else np.asarray(made, values.dtype), name))


def median_place(values: np.ndarray) -> tuple[int, ...]:
    order = np.abs(values.astype(np.float64)).ravel().argsort()
    return tuple(np.unravel_index(order[len(order) // 2], values.shape))


def in_weights(which: int, change: Callable[[np.ndarray], Any]) -> Callable[[Planting], Words]:
    """In the fp32 product of this place among all."""

    def plant(planting: Planting) -> Words:
        node, name = products(planting.fp32)[which]
        changed(planting.fp32, name, change)
        return (f"fp32 is not what this network exports to: {module(node)}", name.removeprefix("network."))

    return plant


def scale_median(factor: float) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[median_place(values)] *= factor

    return change


def scale_channel(values: np.ndarray) -> None:
    values[values.shape[0] // 2] *= 1.01


def one_value(value: float) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[median_place(values)] = value

    return change


def halves(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).astype(np.float32)


def bias_off(planting: Planting) -> Words:
    node, _ = products(planting.fp32)[-1]
    changed(planting.fp32, node.input[2], lambda values: values.__setitem__(0, values[0] + 1e-3))
    return (f"fp32 is not what this network exports to: {module(node)}",)


def constant_swapped(name: str) -> Callable[[Planting], Words]:
    """The first and the last channel of mean or std, in the graph alone."""

    def plant(planting: Planting) -> Words:
        changed(planting.fp32, name, lambda values: values[::-1].copy())
        return ("fp32 is not what this network exports to: edgeport", name)

    return plant


def operator(old: str, new: str, **attributes: Any) -> Callable[[Planting], Words]:
    def plant(planting: Planting) -> Words:
        node = next(each for each in planting.fp32.graph.node if each.op_type == old)
        node.op_type = new
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        return (f"{module(node)}: {node.name} is {new} instead of {old}",)

    return plant


def attribute(op_type: str, name: str, change: Callable[[Any], Any]) -> Callable[[Planting], Words]:
    def plant(planting: Planting) -> Words:
        node = next(each for each in planting.fp32.graph.node if each.op_type == op_type and any(a.name == name for a in each.attribute))
        old = next(each for each in node.attribute if each.name == name)
        old.CopyFrom(helper.make_attribute(name, change(helper.get_attribute_value(old))))
        return (f"{name} of {node.name} is ",)

    return plant


def tail(op_type: str, *values: Any, **attributes: Any) -> Callable[[Planting], Words]:
    """One more node before the first output."""

    def plant(planting: Planting) -> Words:
        graph = planting.fp32.graph
        output = graph.output[0].name
        maker = next(node for node in graph.node if output in node.output)
        maker.output[list(maker.output).index(output)] = "before"
        names = []
        for index, value in enumerate(values):
            graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"planted{index}"))
            names.append(f"planted{index}")
        graph.node.append(helper.make_node(op_type, ["before", *names], [output], name="edgeport/planted", **attributes))
        return ("the node edgeport/planted", "FAILED")

    return plant


def channels_turned(planting: Planting) -> Words:
    graph = planting.fp32.graph
    graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))
    first = graph.node[0]
    source = first.input[0]
    first.input[0] = "turned"
    graph.node.insert(0, helper.make_node("Gather", [source, "order"], ["turned"], name="edgeport/turned", axis=3))
    return ("the node edgeport/turned (Gather) was added",)


def batch_frozen(planting: Planting) -> Words:
    planting.fp32.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    return ("the input pixels is uint8[2, ", "instead of uint8[batch, ")


def mean_baked(planting: Planting) -> Words:
    """A mean over height and width as a pooling of the size that the example's map had."""
    graph = planting.fp32.graph
    node = next(each for each in graph.node if each.op_type == "ReduceMean" or (each.op_type == "ReduceSum" and each.name))
    del node.attribute[:], node.input[1:]
    node.op_type = "AveragePool"
    node.attribute.extend([helper.make_attribute("kernel_shape", [2, 2])])
    return (f"{module(node)}",)


def other_variant(precision: str) -> Callable[[Planting], Words]:
    def plant(planting: Planting) -> Words:
        manifest = json.loads((planting.subject.other / "manifest.json").read_text())
        file = next(each["file"] for each in manifest["variants"] if each["precision"] == precision)
        planting.models[precision] = onnx.load(planting.subject.other / file)
        return (f"{precision} is not what this network exports to",)

    return plant


def exported_from(change: Callable[[nn.Module], None], kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> Callable[[Planting], Words]:
    """fp32 as the network exports to once `change` was made to its first module of this kind."""

    def plant(planting: Planting) -> Words:
        network = copy.deepcopy(planting.subject.network)
        change(next(each for each in network.modules() if isinstance(each, kind)))
        contract = planting.subject.contract
        planting.models["fp32"] = onnx.load_from_string(finalize_fp32(trace(network, contract).model, contract))
        return ("fp32 is not what this network exports to: ",)

    return plant


def other_epsilon(norm: Any) -> None:
    norm.eps = 1e-2


def statistics_of_a_batch(norm: Any) -> None:
    """What a BatchNorm in train mode would normalize with."""
    norm.running_mean += 0.1
    norm.running_var *= 1.3


def contract_field(name: str, change: Callable[[Any], Any], *words: str) -> Callable[[Planting], Words]:
    def plant(planting: Planting) -> Words:
        pixels = planting.manifest["contract"]["inputs"][0]["pixels"]
        pixels[name] = change(pixels[name])
        return (f"FAILED the contract is not the network's: {name} is ", *words)

    return plant


def recipe_swapped(planting: Planting) -> Words:
    """Mean and std of red and blue, in the contract and in every graph."""
    pixels = planting.manifest["contract"]["inputs"][0]["pixels"]
    pixels |= {name: pixels[name][::-1] for name in ("mean", "std")}
    for model in planting.models.values():
        for each in [each.name for each in model.graph.initializer if each.name in ("mean0", "scale0")]:
            changed(model, each, lambda values: values[::-1].copy())
    return ("FAILED the contract is not the network's: mean is ", "std is ")


def labels_moved(planting: Planting) -> Words:
    labels = planting.manifest["contract"]["labels"]
    labels[0], labels[1] = labels[1], labels[0]
    return ("the labels are in another order than the network's",)


def golden_answer(planting: Planting) -> Words:
    case = planting.manifest["golden"][0]
    file = next(iter(case["levels"].values()), case["outputs"][0])["file"]
    values = planting.tensor(file).copy()
    values[median_place(values)] += 0.01 * np.ptp(values)
    planting.write(file, "altered", values)
    planting.keeps_golden = True
    return ("the stored answer of test_data_set_0/", "is not PyTorch's: the golden case was altered")


def golden_host_answer(planting: Planting) -> Words:
    case = planting.manifest["golden"][0]
    file = case["host"]["int8"][0]["file"]
    values = planting.tensor(file).copy()
    planting.write(file, "altered", np.roll(values, 1, axis=-1))
    planting.keeps_golden = True
    return ("int8: ", "FAILED test_data_set_0/")


def loose_tolerance(planting: Planting) -> Words:
    for case in planting.manifest["golden"]:
        for each in case["tolerance"]["fp32"]:
            each["max_abs"] = 1000 * each["max_abs"]
    return ("FAILED the stored tolerance of ", "times what the network's noise explains")


def int8_weights(planting: Planting) -> str:
    return next(each.name for each in planting.int8.graph.initializer if each.data_type == onnx.TensorProto.INT8 and len(each.dims) > 1 and max(each.dims) > 3)


def three_steps(values: np.ndarray) -> None:
    place = median_place(values)
    values[place] += 3 if values[place] <= 0 else -3


def int8_three_steps(planting: Planting) -> Words:
    changed(planting.int8, int8_weights(planting), three_steps)
    return ("int8 is not what this network exports to: ", int8_weights(planting).removeprefix("network."))


def int8_steps(graph: onnx.GraphProto, weights: str) -> str:
    """The constant that has the steps of these weights: what dequantizes them reads it, or what scales the sums of a MatMulInteger."""
    reader = next(each for each in graph.node if weights in each.input)
    if reader.op_type == "DequantizeLinear":
        return reader.input[1]
    cast = next(each for each in graph.node if reader.output[0] in each.input)
    scaled = next(each for each in graph.node if cast.output[0] in each.input)
    return next(each for each in graph.node if scaled.input[1] in each.output).input[1]


def int8_scale(planting: Planting) -> Words:
    """One channel's weights come out a tenth larger."""
    steps = int8_steps(planting.int8.graph, int8_weights(planting))
    changed(planting.int8, steps, lambda values: values.__setitem__(0, values[0] * 1.1))
    return ("int8 is not what this network exports to: ", steps.removeprefix("network."))


def quantizer(planting: Planting) -> onnx.NodeProto:
    names = {each.name for each in planting.int8.graph.initializer}
    return next(each for each in planting.int8.graph.node if each.op_type == "QuantizeLinear" and each.input[1] in names)


def int8_range(planting: Planting) -> Words:
    node = quantizer(planting)
    changed(planting.int8, node.input[1], lambda values: values / 3)
    return ("int8 is not what this network exports to: ", node.input[1])


def int8_zero_point(planting: Planting) -> Words:
    node = quantizer(planting)
    changed(planting.int8, node.input[2], lambda values: values + 1)
    return ("int8 is not what this network exports to: ", node.input[2])


def int8_softmax(planting: Planting) -> Words:
    """Attention's weights with a step of 1/255, so that small ones vanish."""
    graph = planting.int8.graph
    place, node = next((index, each) for index, each in enumerate(graph.node) if each.op_type == "Softmax")
    output = node.output[0]
    node.output[0] = "soft"
    graph.initializer.extend([numpy_helper.from_array(np.float32(1 / 255), "soft_scale"), numpy_helper.from_array(np.uint8(0), "soft_zero")])
    graph.node.insert(place + 1, helper.make_node("QuantizeLinear", ["soft", "soft_scale", "soft_zero"], ["soft_q"], name="soft_q"))
    graph.node.insert(place + 2, helper.make_node("DequantizeLinear", ["soft_q", "soft_scale", "soft_zero"], [output], name="soft_d"))
    return ("int8 is not what this network exports to: ", "Softmax")


def pipeline(make: Callable[[Contract], Any], *words: str) -> tuple[Callable[[Planting], Words], Callable[[Contract], dict[str, Any]]]:
    """No fault in the bundle: what the user's own preprocessing does is another recipe."""
    return lambda planting: words, lambda contract: {"pipeline": make(contract)}


def own_pipeline(contract: Contract, **changes: Any) -> v2.Compose:
    pixels = contract.pixels
    size, given = (pixels.height, pixels.width), {"antialias": True, "scale": True, "mean": pixels.mean, "std": pixels.std, "bgr": False, **changes}
    steps = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=given["scale"])]
    steps += [v2.Resize(size, antialias=given["antialias"])] if pixels.resize != "keep" else []
    steps += [v2.Normalize(list(given["mean"]), list(given["std"]))]
    return v2.Compose([*steps, *([v2.Lambda(lambda made: made.flip(0))] if given["bgr"] else [])])


@dataclass(frozen=True, kw_only=True)
class Fault:
    """`only`: names of the subjects that it can be put into; None for all. `options`: more that `verify` is given. `quick`: one of the eight of `make test`."""

    plant: Callable[[Planting], Words]
    only: tuple[str, ...] | None = None
    options: Callable[[Contract], dict[str, Any]] = lambda contract: {}
    quick: bool = False


CLASSIFIERS, RESIZING = ("residual", "tokens"), ("residual", "tokens")
_no_antialias, _bgr = (
    pipeline(lambda c: own_pipeline(c, antialias=False), "antialias: the contract averages pixels"),
    pipeline(lambda c: own_pipeline(c, bgr=True), "the channel order is red, green, blue in the contract"),
)
_range, _mean = (
    pipeline(lambda c: own_pipeline(c, scale=False, mean=(0.0,) * 3, std=(1.0,) * 3), "the value range differs"),
    pipeline(lambda c: own_pipeline(c, mean=c.pixels.mean[::-1], std=c.pixels.std[::-1]), "mean is "),
)

FAULTS = {
    "a whole channel of the first product off by 1 %": Fault(plant=in_weights(0, scale_channel), quick=True),
    "a whole channel of the last product off by 1 %": Fault(plant=in_weights(-1, scale_channel)),
    "one median weight of the first product off by 1 %": Fault(plant=in_weights(0, scale_median(1.01)), quick=True),
    "one median weight of the last product off by 1 %": Fault(plant=in_weights(-1, scale_median(1.01)), quick=True),
    "one median weight in the middle off by 0.1 %": Fault(plant=in_weights(1, scale_median(1.001))),
    "one weight with its sign turned": Fault(plant=in_weights(1, scale_median(-1.0))),
    "one weight is NaN": Fault(plant=in_weights(1, one_value(np.nan)), quick=True),
    "one weight is infinite": Fault(plant=in_weights(1, one_value(np.inf))),
    "weights rounded to half precision": Fault(plant=in_weights(1, halves)),
    "one bias off by a thousandth": Fault(plant=bias_off),
    "mean of red and blue swapped in the graph": Fault(plant=constant_swapped("mean0")),
    "std of red and blue swapped in the graph": Fault(plant=constant_swapped("scale0")),
    "recipe of red and blue swapped everywhere": Fault(plant=recipe_swapped, quick=True),
    "blue, green, red in the graph": Fault(plant=channels_turned),
    "a ReLU became an ELU": Fault(plant=operator("Relu", "Elu"), only=("residual", "generator")),
    "a ReLU became leaky": Fault(plant=operator("Relu", "LeakyRelu", alpha=0.001), only=("residual", "generator")),
    "padding on one side": Fault(
        plant=attribute("Conv", "pads", lambda pads: [pads[0] + 1, pads[1], max(0, pads[2] - 1), pads[3]]), only=("residual", "generator")
    ),
    "dilation": Fault(plant=attribute("Conv", "dilations", lambda found: [2, 1]), only=("residual", "generator")),
    "batch frozen": Fault(plant=batch_frozen),
    "pooling baked at the example's size": Fault(plant=mean_baked, only=("residual", "pooled")),
    "outputs a thousandth larger": Fault(plant=tail("Mul", np.float32(1.001)), only=CLASSIFIERS),
    "outputs with an offset": Fault(plant=tail("Add", np.float32(1e-3)), only=CLASSIFIERS),
    "outputs in another order": Fault(plant=tail("Gather", np.array([1, 0, 2]), axis=1), only=CLASSIFIERS),
    "outputs rounded": Fault(plant=tail("Round"), only=CLASSIFIERS),
    "a softmax at the end": Fault(plant=tail("Softmax", axis=-1), only=CLASSIFIERS),
    "another epsilon": Fault(plant=exported_from(other_epsilon, (nn.BatchNorm2d, nn.LayerNorm)), only=("residual", "tokens", "pooled")),
    "a BatchNorm in train mode": Fault(plant=exported_from(statistics_of_a_batch, nn.BatchNorm2d), only=("residual", "pooled")),
    "fp32 of another checkpoint": Fault(plant=other_variant("fp32"), quick=True),
    "labels in another order": Fault(plant=labels_moved, only=CLASSIFIERS),
    "another interpolation in the contract": Fault(plant=contract_field("interpolation", lambda _: "bicubic"), only=RESIZING),
    "another fill in the contract": Fault(plant=contract_field("fill", lambda _: 0)),
    "another way of resizing in the contract": Fault(plant=contract_field("resize", lambda _: "letterbox"), only=RESIZING),
    "an altered golden answer": Fault(plant=golden_answer, quick=True),
    "an altered golden answer of int8": Fault(plant=golden_host_answer, only=CLASSIFIERS),
    "a tolerance that cannot fail": Fault(plant=loose_tolerance),
    "int8: a weight three steps off": Fault(plant=int8_three_steps, quick=True),
    "int8: one channel's step a tenth larger": Fault(plant=int8_scale),
    "int8: a range that clips": Fault(plant=int8_range),
    "int8: a zero point off by one": Fault(plant=int8_zero_point),
    "int8: softmax in int8": Fault(plant=int8_softmax, only=("tokens", "attention")),
    "int8 of another checkpoint": Fault(plant=other_variant("int8")),
    "a pipeline without antialias": Fault(plant=_no_antialias[0], options=_no_antialias[1], only=RESIZING),
    "a pipeline with blue, green, red": Fault(plant=_bgr[0], options=_bgr[1]),
    "a pipeline with levels of 0..255": Fault(plant=_range[0], options=_range[1]),
    "a pipeline with another mean": Fault(plant=_mean[0], options=_mean[1]),
}


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Residual(nn.Module):
    """Convolutions with BatchNorm, and one shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.first, self.second = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)
        self.activation, self.pool, self.head = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.stem(x)))
        x = x + self.second(self.activation(self.first(x)))
        return self.head(self.pool(self.activation(x)).flatten(1))


class Tokens(nn.Module):
    """Patches, LayerNorm, attention, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 32, 4, stride=4), nn.LayerNorm(32)
        self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        x = x + self.out(torch.softmax(3 * self.query(x) @ self.key(x).transpose(1, 2) / 32**0.5, -1) @ self.value(x))
        return self.head(x.mean(1))


class Pooled(nn.Module):
    """Another network with a mean over its map."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 24, 5, 2, 2), nn.BatchNorm2d(24), nn.Conv2d(24, 24, 3, padding=1)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(F.gelu(self.second(F.gelu(self.norm(self.first(x)))))).flatten(1))


class Attention(Tokens):
    """Another network with a softmax inside."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(x + self.out(torch.softmax(2 * self.query(x) @ self.key(x).transpose(1, 2) / 32**0.5, -1) @ self.value(x))).mean(1))


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 24, 3, padding=1), nn.Conv2d(24, 3, 3, padding=1)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.last(self.activation(self.second(self.activation(self.first(x))))))


class Narrow(EdgeportGenerator):
    """The generator that edgeport comes with, narrower."""

    def __init__(self) -> None:
        super().__init__(channels=32)


LARGE: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=3),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=3),
    "attention net": lambda: AttentionNet(num_classes=3),
    "edgeport's generator": Narrow,
}
KINDS: dict[str, Callable[[], nn.Module]] = {
    **LARGE,
    **{"residual": Residual, "tokens": Tokens, "pooled": Pooled, "attention": Attention, "generator": Generator},
}
GENERATORS = ("generator", "edgeport's generator")
EVERYWHERE = ("residual", "tokens", "generator")
CASES = [
    pytest.param(name, fault, id=f"{name}, {fault}", marks=[] if each.quick and name in ("residual", "tokens") else [pytest.mark.long])
    for fault, each in FAULTS.items()
    for name in (each.only or EVERYWHERE)
]


def settled(kind: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = kind()
    for each in network.modules():
        if isinstance(each, nn.BatchNorm2d):
            nn.init.uniform_(each.running_mean, -0.3, 0.3)  # type: ignore[arg-type]
            nn.init.uniform_(each.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(each.weight, 0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="session")
def subject(fix_latencies: Callable[[pytest.MonkeyPatch], None], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Subject]:
    """A network's sound bundle, made once, and another of the same network with other weights."""
    made: dict[str, Subject] = {}

    def of(name: str) -> Subject:
        if name not in made:
            folder, kind = tmp_path_factory.mktemp(name), KINDS[name]
            axes = {"batch": Range(low=1, high=4), "height": Range(low=16, high=48), "width": Range(low=16, high=48)}
            rule: dict[str, Any] = {"resize": "keep"} if name in GENERATORS else {}
            pixels = Pixels(height=32, width=32, mean=MEAN, std=STD, **rule)
            labels = () if name in GENERATORS else ("one", "two", "three")
            task = ImageTask(
                task="image-to-image" if name in GENERATORS else "classification", pixels=pixels, axes=axes, labels=labels, output_range=(-1.0, 1.0)
            )
            generator = np.random.default_rng(0)
            images = [Example(source=random_image((1, 32, 32, 3), generator)[0]) for _ in range(24)]
            networks = [settled(kind, seed) for seed in ((0,) if name in LARGE else (0, 1))]
            options = ExportOptions(always_keep_int8=True, search_seconds=2)
            with pytest.MonkeyPatch.context() as patch:
                fix_latencies(patch)
                folders = [folder / "sound", folder / "other"]
                for network, place in zip(networks, folders, strict=False):
                    export_bundle(network, task, place, name=name, calibration=images, options=options)
            made[name] = Subject(
                name=name, bundle=folders[0], network=networks[0], contract=image_contract(networks[0], task), calibration=images, other=folders[1]
            )
        return made[name]

    return of


def verified(subject: Subject, folder: Path, **options: Any) -> Any:
    return verify(folder, subject.network, contract=subject.contract, calibration=subject.calibration, **options)


@pytest.mark.parametrize("name", ["residual", "tokens", *(pytest.param(each, marks=pytest.mark.long) for each in ("pooled", "attention", "generator"))])
def test_a_sound_bundle_passes(name: str, subject: Callable[[str], Subject], tmp_path: Path) -> None:
    """As it is; and after a planting that changes nothing, so that it is the fault that each other test finds, and not the planting."""
    sound = subject(name)
    found = verified(sound, sound.bundle, stages=True)
    assert found, str(found)
    assert all(each.same for each in found.reproductions)
    shutil.copytree(sound.bundle, tmp_path / "copy")
    Planting(tmp_path / "copy", sound).finish()
    assert verified(sound, tmp_path / "copy")


@pytest.mark.parametrize(("name", "fault"), CASES)
def test_a_fault_is_caught_and_named(name: str, fault: str, subject: Callable[[str], Subject], tmp_path: Path) -> None:
    sound = subject(name)
    shutil.copytree(sound.bundle, tmp_path / "planted")
    planting = Planting(tmp_path / "planted", sound)
    words = FAULTS[fault].plant(planting)
    planting.finish()
    found = verified(sound, tmp_path / "planted", **FAULTS[fault].options(sound.contract))
    assert not found and "FAILED" in str(found)
    missing = [word for word in words if word not in str(found)]
    assert words and not missing, (missing, str(found))


def test_the_suite_is_as_large_as_it_says() -> None:
    """At least 30 kinds, each on two networks or more; eight of them quick."""
    assert len(FAULTS) >= 30 and all(len(each.only or EVERYWHERE) >= 2 for each in FAULTS.values())
    assert sum(each.quick for each in FAULTS.values()) == 8


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", LARGE)
def test_blame_names_the_module_of_a_weight(name: str, precision: str, subject: Callable[[str], Subject], tmp_path: Path) -> None:
    """In the first, the last and two products between: the median weight off by 1 % in fp32, three steps off in int8."""
    sound = subject(name)
    bundle = Bundle(sound.bundle)
    assert {each.precision for each in bundle.manifest.variants} == {"fp32", "int8"}
    weights = stored_weights(onnx.load(sound.bundle / bundle.variant(precision).file))
    reference = TorchReference(sound.network, bundle.manifest.contract)
    for place in sorted({0, len(weights) // 3, 2 * len(weights) // 3, len(weights) - 1}):
        folder = tmp_path / str(place)
        shutil.copytree(sound.bundle, folder)
        planting = Planting(folder, sound)
        owner, weight = weights[place]
        changed(planting.models[precision], weight, scale_median(1.01) if precision == "fp32" else three_steps)
        planting.keeps_golden = True
        planting.finish()
        planted = Bundle(folder)
        found = blame_bundle(planted, reference, reproduce(planted, sound.network, sound.calibration))
        assert not found and found.changed[precision] == (owner,), (place, owner, str(found))
        assert found.modules.first is None or precision == "int8" or any(each.startswith(f"{owner} (") for each in found.modules.first.modules)


def stored_weights(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Modules with their weights, as they are stored, in the graph's order: floats of products, or their integers."""
    sizes = {each.name: each for each in model.graph.initializer if len(each.dims) > 1 and each.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT8)}
    made = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    integers = any(each.data_type == onnx.TensorProto.INT8 for each in sizes.values())
    found = []
    for node in model.graph.node:
        weight = made.get(node.input[1], node.input[1]) if node.op_type in ("Conv", "Gemm", "MatMul") else ""
        if weight in sizes and (sizes[weight].data_type == onnx.TensorProto.INT8) is integers:
            found.append((module(node), weight))
    return found
