"""int8: static QDQ, U8 activations and S8 weights per channel, calibrated through the runtime's own image code.

What is quantised and what stays float, by rule:

1. Products with constant weights (Conv, Gemm, MatMul) are quantised.
2. A product of two activations, and the softmax between them, stay float: quantised softmax weights under 1/510 become zero
   (3 dB instead of 49 dB at 1,024 positions), and the products become three times slower.
3. Relu, Clip, MaxPool, Add and their like are quantised where they follow a quantised product, because left float they break
   the fusion of their neighbours; before the first product (normalisation) and after the network they stay float.
4. The last Q/DQ pair before an output is removed: it would round the answer and save nothing.
"""

import hashlib
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgeport_runtime import Contract
from edgeport_runtime.engine import Arrays
from edgeport_runtime.evaluate import Example
from edgeport_runtime.images import describe, prepare, require_size, stack
from edgeport_runtime.model import batches
from edgeport_runtime.timing import example_inputs

from .errors import ExportError
from .multiplications import PRODUCTS, count_multiplications, integer_nodes, share
from .trace import WRAPPER, finish

# Elementwise and pooling operators that fuse with a quantised neighbour; see rule 3.
FOLLOWERS = ("Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Add", "Concat", "LeakyRelu")
CALIBRATION_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which products run as integers, and why the others do not.

    `integer`: node names. `kept_float`: node name -> reason. `integer_share`: of all multiplications at the contract's size, 0..1.
    `calibration`: number of images and one hash over their pixels.
    """

    formats: str
    integer: tuple[str, ...]
    kept_float: dict[str, str]
    integer_share: float
    calibration_images: int
    calibration_sha256: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class CalibrationReader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Feeds calibration images, a batch at a time, so that memory stays flat; keeps a hash over every pixel it fed."""

    def __init__(self, contract: Contract, examples: Sequence[Example], step: Callable[[int], None]) -> None:
        self.contract = contract
        self.examples = examples
        self.step = step
        self.hash = hashlib.sha256()
        self._feed = self._batches()

    def _batches(self) -> Any:
        for start in range(0, len(self.examples), CALIBRATION_BATCH):
            examples = self.examples[start : start + CALIBRATION_BATCH]
            part = [prepare(example.source, self.contract.pixels) for example in examples]
            for example, array in zip(examples, part, strict=True):
                require_size(array.shape, self.contract, describe(example.source))
                self.hash.update(repr(array.shape).encode() + array.tobytes())
            for group in batches([array.shape for array in part], self.contract.largest_batch):
                yield {self.contract.inputs[0].name: stack([part[index] for index in group])}
            self.step(len(part))

    def get_next(self) -> Arrays | None:
        return next(self._feed, None)


def quantize(model: onnx.ModelProto, contract: Contract, examples: Sequence[Example], step: Callable[[int], None] = lambda done: None) -> tuple[bytes, Plan]:
    """The int8 variant of a traced model, and its plan. Raises ExportError without calibration images, ImageError for unreadable ones."""
    if not examples:
        raise ExportError("int8 needs calibration images, and there are none: name data with --calibration, or leave int8 out with --precision fp32")
    reader = CalibrationReader(contract, examples, step)
    with tempfile.TemporaryDirectory() as folder:
        prepared = preprocess(model, Path(folder))
        excluded = float_nodes(prepared)
        target = Path(folder) / "int8.onnx"
        quantize_static(
            Path(folder) / "prepared.onnx",
            target,
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*PRODUCTS, *FOLLOWERS],
            nodes_to_exclude=sorted(excluded),
            per_channel=True,
            activation_type=QuantType.QUInt8,  # S8 activations, the library's default, have no fast kernels on x86
            weight_type=QuantType.QInt8,
        )
        quantised = onnx.load(target)
    drop_last_pairs(quantised)
    data = finish(quantised, contract)
    return data, _plan(prepared, data, contract, excluded, reader)


def _plan(prepared: onnx.ModelProto, data: bytes, contract: Contract, excluded: dict[str, str], reader: CalibrationReader) -> Plan:
    counts = count_multiplications(prepared, example_inputs(contract, batch=1))
    running = integer_nodes(data) & set(counts)
    reasons = {name: excluded.get(name, "onnxruntime has no integer kernel for it here") for name in counts if name not in running}
    return Plan(
        formats="U8S8 per channel",
        integer=tuple(name for name in counts if name in running),
        kept_float=reasons,
        integer_share=round(share(counts, running), 6),
        calibration_images=len(reader.examples),
        calibration_sha256=reader.hash.hexdigest(),
    )


def preprocess(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Shapes inferred and constants folded, as the quantizer wants them. Names of nodes survive."""
    source, target = folder / "traced.onnx", folder / "prepared.onnx"
    onnx.save(model, source)  # handed over as a file: given a ModelProto, the library moves the caller's weights to external data
    logging.getLogger().setLevel(logging.ERROR)  # the library advises on the root logger to preprocess what is preprocessed
    quant_pre_process(source, target, skip_symbolic_shape=True)  # symbolic inference fails on Attention (PR #21330)
    return onnx.load(target)


def float_nodes(model: onnx.ModelProto) -> dict[str, str]:
    """Names of the nodes that stay float, each with the reason. Rules 2 and 3."""
    constants = {each.name for each in model.graph.initializer} | {out for node in model.graph.node if node.op_type == "Constant" for out in node.output}
    after_product: set[str] = set()  # values that come, through float arithmetic, from a quantised product
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in PRODUCTS:
            if node.input[1] not in constants and node.input[0] not in constants:
                found[node.name] = "a product of two activations is slower and far less exact as integers"
            else:
                after_product.update(node.output)
        elif node.name.startswith(WRAPPER):
            found[node.name] = "outside the network"
        elif any(name in after_product for name in node.input) and node.op_type != "Shape":
            after_product.update(node.output)
        elif node.op_type in FOLLOWERS:
            found[node.name] = "before the first product"
    return found


def drop_last_pairs(model: onnx.ModelProto) -> None:
    """Rule 4: DequantizeLinear(QuantizeLinear(x)) right before an output becomes x, under the output's name."""
    graph = model.graph
    producers = {out: node for node in graph.node for out in node.output}
    readers = {name: [node for node in graph.node if name in node.input] for out in graph.output for name in (out.name,)}
    for output in graph.output:
        last = producers[output.name]
        first = producers.get(last.input[0])
        if last.op_type != "DequantizeLinear" or first is None or first.op_type != "QuantizeLinear" or readers[output.name]:
            continue
        value = first.input[0]
        for node in graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == value:
                        names[index] = output.name
        graph.node.remove(last)
        if not any(first.output[0] in node.input for node in graph.node):
            graph.node.remove(first)
    used = {name for node in graph.node for name in node.input}
    for unused in [each for each in graph.initializer if each.name not in used]:
        graph.initializer.remove(unused)  # onnxruntime warns of every one left behind


def calibration_sample(examples: Sequence[Example], most: int, seed: int = 0) -> list[Example]:
    """At most `most` examples, drawn evenly at random, in their own order."""
    if len(examples) <= most:
        return list(examples)
    return [examples[index] for index in sorted(np.random.default_rng(seed).choice(len(examples), most, replace=False))]
