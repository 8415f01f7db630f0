"""Small maps as the depth of one volume, so that integer kernels see the images of a batch as one run of positions.

onnxruntime's QLinearConv goes image by image, in blocks of six positions for each thread: the 49 positions of a 7x7 map are five blocks for each of
two threads where 4.1 would do. Channels last, (N, H, W, C) is the same memory as (1, N, H, W, C), and a convolution with the kernel (h, w) over the
one is the convolution with the kernel (1, h, w) over the other. onnxruntime takes the transpositions that say so out again: what is left is an
Unsqueeze where such maps begin and a Squeeze where they end. Exact: no number changes. Measured with 16 images of 224x224 on two threads: ResNet18's
last stage 8.1 instead of 9.3 ms, and resnet50 4 % less in all.

Applies to a graph with its Q/DQ pairs.

1. A dense convolution that gives at most `POSITIONS`, and more than one, at the contract's own size, between quantised values, becomes one of rank 3;
   not the one that reads pixels, which other rewrites have shaped, nor one of such channels that onnxruntime copies what it reads: of the whole
   volume at once.
2. An elementwise operator all of whose maps come from there follows.
3. Of what is connected at least one convolution is larger than 1x1: for others the views cost what blocks lose.
4. Whoever else reads such a value gets it as it was.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel

from edgeport_runtime import Contract

from .constants import drop_unread_values
from .nodes import Chain, attributes

POSITIONS = 64  # 8x8: maps of 7x7 took 13 % less, and of 14x14 4 % more, because a volume costs more to address
ELEMENTWISE = ("Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid")
PREFIX = "edgeport.depth."
SHORT = 64  # entries of a constant that may name sizes
BATCH = 2  # at which shapes are looked at, so that a size of 1 is one that is stretched
SWAP = [1, 0, 2, 3]  # images and channels

Shapes = Mapping[str, tuple[int, ...]]


class _Quantised:
    """What is read from a graph with its Q/DQ pairs: who makes a value, and who reads it."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.makers = {out: node for node in graph.node for out in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)
        self.constants = {each.name: each for each in graph.initializer}
        self.answers = {each.name for each in graph.output}

    def integers(self, value: str) -> str:
        """What a float value is dequantised from, with one scale for all of it; empty where it is not."""
        maker = self.makers.get(value)
        scale = self.constants.get(maker.input[1]) if maker is not None and maker.op_type == "DequantizeLinear" else None
        return maker.input[0] if maker is not None and scale is not None and not scale.dims else ""

    def maps(self, node: onnx.NodeProto) -> list[str]:
        """What a node reads, but for weights, biases and numbers that hold for all of a map."""
        read = node.input[:1] if node.op_type == "Conv" else node.input
        return [value for value in dict.fromkeys(read) if value and not self._is_number(value)]

    def _is_number(self, value: str) -> bool:
        constant = self.constants.get(value) or self.constants.get(self.integers(value))
        return constant is not None and not constant.dims

    def quantised(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The only reader of what the node makes, if it quantises it."""
        readers = self.readers.get(node.output[0], []) if node.output else []
        alone = len(readers) == 1 and readers[0].op_type == "QuantizeLinear" and node.output[0] not in self.answers
        return readers[0] if alone else None

    def weights(self, node: onnx.NodeProto) -> onnx.TensorProto | None:
        """The integer weights of a convolution that has them for itself."""
        maker = self.makers.get(node.input[1])
        found = self.constants.get(maker.input[0]) if maker is not None and maker.op_type == "DequantizeLinear" else None
        alone = found is not None and len(self.readers[found.name]) == 1 and len(self.readers[node.input[1]]) == 1
        return found if alone else None


def batch_as_depth(model: onnx.ModelProto, contract: Contract) -> int:
    """Rewrite `model` in place. Returns the number of convolutions that became ones of rank 3."""
    first, read = contract.inputs[0], _Quantised(model.graph)
    batched = first.pixels is not None and first.shape[0] == "batch" and contract.axes["batch"].high >= BATCH
    if not batched or not any(_is_dense_convolution(read, node) for node in model.graph.node):
        return 0
    moved, volumes = _chosen(read, _own_shapes(model, contract))
    if not moved:
        return 0
    chain = Chain(model.graph, PREFIX)
    chain.constant("axis", [0])
    idle = dict.fromkeys(value for node in moved for value in _read_volumes(chain, read, node, volumes))
    for value in volumes:
        _give_back(chain, read.makers[value], value)
    convolutions = [node for node in moved if node.op_type == "Conv"]
    for node in convolutions:
        _raise_rank(read, node)
    _forget_ranks(model.graph, {node.output[0] for node in moved} | {node.input[1] for node in convolutions})
    model.graph.node.extend(chain.nodes)
    ONNXModel(model).topological_sort()
    for value in idle:
        drop_unread_values(model.graph, value)
    return len(convolutions)


def _chosen(read: _Quantised, shapes: Shapes) -> tuple[list[onnx.NodeProto], list[str]]:
    """Rules 1 to 3: the nodes, and the quantised values that they make, in the graph's order, so that equal plans give equal bytes."""
    moved: dict[str, onnx.NodeProto] = {}
    groups: list[set[str]] = []  # of connected values
    for node in read.graph.node:
        quantised = read.quantised(node)
        small = _is_dense_convolution(read, node) and 1 < math.prod(shapes.get(node.output[0], ())[2:]) <= POSITIONS
        if quantised is None or not (small or _follows(read, node, shapes, moved)):
            continue
        moved[quantised.output[0]] = node
        touched = {quantised.output[0], *(read.integers(value) for value in read.maps(node))}
        groups = [*(each for each in groups if not each & touched), touched.union(*(each for each in groups if each & touched))]
    worth = {value for group in groups if any(max(_kernel(read, moved[value]), default=1) > 1 for value in group & set(moved)) for value in group}
    kept = {value: node for value, node in moved.items() if value in worth}
    return list(kept.values()), list(kept)


def _is_dense_convolution(read: _Quantised, node: onnx.NodeProto) -> bool:
    """Rule 1, but for the map's size."""
    if node.op_type != "Conv":
        return False
    maker, weights, given = read.makers.get(read.integers(node.input[0])), read.weights(node), attributes(node)
    if maker is None or maker.op_type != "QuantizeLinear" or weights is None or len(weights.dims) != 4:
        return False
    direct = weights.dims[1] % 4 == 0 and weights.dims[0] % 8 == 0 and weights.dims[0] >= 16  # onnxruntime's MlasConvSym on x86
    return bool(direct and given.get("group", 1) == 1 and given.get("auto_pad", b"NOTSET") == b"NOTSET")


def _kernel(read: _Quantised, node: onnx.NodeProto) -> Sequence[int]:
    weights = read.weights(node) if node.op_type == "Conv" else None
    return () if weights is None else weights.dims[2:]


def _follows(read: _Quantised, node: onnx.NodeProto, shapes: Shapes, volumes: Collection[str]) -> bool:
    """Rule 2."""
    shape = shapes.get(node.output[0])
    return node.op_type in ELEMENTWISE and all(read.integers(value) in volumes and shapes.get(value) == shape for value in read.maps(node))


def _read_volumes(chain: Chain, read: _Quantised, node: onnx.NodeProto, volumes: Collection[str]) -> Iterator[str]:
    """Let `node` read volumes where it reads maps of integers; gives the values that it does not read any more."""
    for value in read.maps(node):
        integers = read.integers(value)
        made = {out for each in chain.nodes for out in each.output}
        if integers not in volumes and PREFIX + integers not in made:
            chain.add("Unsqueeze", [chain.add("Transpose", [integers], f"{integers}.swapped", perm=SWAP), PREFIX + "axis"], integers)
        if PREFIX + value not in made:
            chain.add("DequantizeLinear", [PREFIX + integers, *read.makers[value].input[1:]], value)
        for index, name in enumerate(node.input):
            if name == value:
                node.input[index] = PREFIX + value
        yield value


def _give_back(chain: Chain, maker: onnx.NodeProto, value: str) -> None:
    """Rule 4."""
    maker.output[0] = PREFIX + value
    chain.add("Transpose", [chain.add("Squeeze", [PREFIX + value, PREFIX + "axis"], f"{value}.map")], to=value, perm=SWAP)


def _raise_rank(read: _Quantised, node: onnx.NodeProto) -> None:
    """From (out, in, h, w) to (out, in, 1, h, w)."""
    weights = read.weights(node)
    if weights is not None:
        weights.CopyFrom(numpy_helper.from_array(np.expand_dims(numpy_helper.to_array(weights), 2), weights.name))
    for each in node.attribute:
        if each.name in ("kernel_shape", "strides", "dilations"):
            each.ints[:] = [1, *each.ints]
        elif each.name == "pads":
            each.ints[:] = [0, *each.ints[:2], 0, *each.ints[2:]]


def _forget_ranks(graph: onnx.GraphProto, values: set[str]) -> None:
    for each in [each for each in graph.value_info if each.name in values]:
        graph.value_info.remove(each)


def _own_shapes(model: onnx.ModelProto, contract: Contract) -> Shapes:
    """The sizes of all values that are known, at the contract's own size. Only small constants are looked at: the others name no sizes."""
    pixels, graph = contract.pixels, model.graph
    sized = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    sized.graph.name = graph.name
    sized.graph.node.extend(graph.node)
    sized.graph.initializer.extend(each for each in graph.initializer if math.prod(each.dims) <= SHORT)
    large = [each for each in graph.initializer if math.prod(each.dims) > SHORT]
    own = [BATCH, pixels.height, pixels.width, pixels.channels]
    sized.graph.input.append(helper.make_tensor_value_info(contract.inputs[0].name, TensorProto.UINT8, own))
    sized.graph.input.extend(helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in large)
    inferred = onnx.shape_inference.infer_shapes(sized, data_prop=True)
    return {each.name: tuple(dim.dim_value for dim in each.type.tensor_type.shape.dim) for each in inferred.graph.value_info}
