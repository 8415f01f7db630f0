"""The int8 graph of a plan: which products run as integers is given, the ranges are given, and what follows from them is done here.

Static Q/DQ with int8 weights per channel. By rule:

1. Products with constant weights (Conv, Gemm, MatMul) can be quantised, and attention's product of softmax weights and values, row by row
   (`rewrites/attention_product.py`). Other products of two activations stay float: their sums are as short as a head is wide, and one float
   product costs less than making integers of two activations.
2. Relu, Clip, MaxPool, Add and their like are quantised where every product that they follow is, because left float they break the
   fusion of their neighbours; before the first product (normalisation) and after the network they stay float. So are the mean over a map
   (`rewrites/global_pool.py`), Sigmoid, HardSigmoid (`rewrites/hard_sigmoid.py`), nearest upsampling (`rewrites/nearest_upsampling.py`), and Mul by
   something computed (a gate); Mul by constants is not, whose small ones would become zero, nor is a Clip between limits on one side of zero.
3. The first convolution reads uint8 pixels (`rewrites/pixel_convolution.py`), four at a time where it moves on by two or by patches
   (`rewrites/column_quads.py`, for widths of every kind `rewrites/width_branches.py`, and with a large map and a pool behind it one image after the
   other, `rewrites/image_by_image.py`), after a depthwise one on the picture has become part of it (`rewrites/separable_fusion.py`).
   A transposed convolution becomes an ordinary one (`rewrites/transposed_convolution.py`). Few filters are
   padded (`rewrites/channel_padding.py`), very few compute a square of positions at a time (`rewrites/position_blocks.py`), and maps that become
   sequences keep the integer kernels' layout (`rewrites/positions_last.py`).
4. A linear layer between float operators gives floats, to which its bias is added and its Relu applied (`rewrites/float_linear.py`).
5. Small maps become the depth of one volume, so that all images of a batch are one run of positions (`rewrites/batch_as_depth.py`).
6. An answer of pixels behind Tanh or Sigmoid is looked up (`rewrites/pixel_table.py`). The last Q/DQ pair before another output is removed: it
   would round the answer and save nothing. Who asks for a value's shape asks its integers: onnxruntime would dequantise all of it for that.
"""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgeport_runtime import Contract
from edgeport_runtime.contract import NARROW_KEY

from .calibration import Limits
from .multiplications import PRODUCTS, RECURRENT
from .rewrites.attention_product import LAYOUT, attention_parts, attention_product, keep_steps
from .rewrites.batch_as_depth import batch_as_depth
from .rewrites.channel_padding import channel_padding
from .rewrites.column_quads import Geometry, column_quads
from .rewrites.constants import drop_unread
from .rewrites.float_linear import float_followers, give_floats
from .rewrites.global_pool import global_pool, is_global_pool
from .rewrites.hard_sigmoid import drop_factors, hard_sigmoid, has_steps
from .rewrites.image_by_image import image_by_image, large_stem
from .rewrites.nearest_upsampling import nearest_upsampling, repeats
from .rewrites.pixel_convolution import REAL, pixel_convolution
from .rewrites.pixel_table import pixel_table
from .rewrites.position_blocks import position_blocks
from .rewrites.positions_last import positions_last
from .rewrites.separable_fusion import separable_fusion
from .rewrites.transposed_convolution import refusal, transposed_convolution
from .rewrites.width_branches import width_branches
from .targets import Target
from .trace import WRAPPER

# Elementwise and pooling operators that fuse with a quantised neighbour; see rule 2.
FOLLOWERS = ("Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Add", "Concat", "LeakyRelu", "Mul", "Sigmoid", "HardSigmoid", "Resize")
TWO_ACTIVATIONS = "a product of two activations, whose sums are as short as a head is wide: left as it is, unmeasured"


def preprocess(model: onnx.ModelProto) -> onnx.ModelProto:
    """Shapes inferred and constants folded, as the quantizer wants them. Names of nodes survive, and every node has one."""
    with tempfile.TemporaryDirectory() as folder:
        source, prepared = Path(folder) / "traced.onnx", Path(folder) / "prepared.onnx"
        onnx.save(model, source)  # handed over as a file: given a ModelProto, the library moves the caller's weights to external data
        level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)  # the library advises on the root logger to preprocess what is preprocessed
        try:
            quant_pre_process(source, prepared, skip_symbolic_shape=True)  # symbolic inference fails on Attention (PR #21330)
        finally:
            logging.getLogger().setLevel(level)
        made = onnx.load(prepared)
    for node in made.graph.node:  # onnxruntime puts the parts of functions (HardSwish) in their place without a name, and plans go by names
        node.name = node.name or f"{node.output[0]}/{node.op_type}"
    return made


def candidates(model: onnx.ModelProto, target: Target) -> tuple[list[str], dict[str, str]]:
    """Names of the products that can be quantised, in the graph's order; and of those that never are, with the reason. Rule 1."""
    constants, types = _constants(model), {each.name: each.type.tensor_type.elem_type for each in model.graph.value_info}
    branching = any(each.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for node in model.graph.node for each in node.attribute)
    possible, never = [], {}
    for node in [each for each in model.graph.node if each.op_type in PRODUCTS]:
        if branching:
            never[node.name] = "the graph branches or loops while it runs, and the quantizer does not look inside"
        elif types.get(node.output[0], onnx.TensorProto.FLOAT) != onnx.TensorProto.FLOAT:
            never[node.name] = "computed in another type than float32"
        elif reason := _refusal(model.graph, node, constants, target):
            never[node.name] = reason
        else:
            possible.append(node.name)
    return possible, never


def _refusal(graph: onnx.GraphProto, node: onnx.NodeProto, constants: set[str], target: Target) -> str:
    """Why the product has no integer kernel, or none that pays; empty where it has one."""
    if node.op_type in ("Einsum", *RECURRENT):
        return f"onnxruntime has no integer kernel for {node.op_type}"
    if node.input[0] in constants:
        return "constants times an activation, for which onnxruntime has no integer kernel"
    if node.input[1] not in constants and attention_parts(graph, node) is None:
        return TWO_ACTIVATIONS
    if node.input[1] not in constants and target.activations != QuantType.QUInt8:
        return "attention's product was not measured on this target"
    if node.op_type == "ConvTranspose" and (lacking := refusal(graph, node)):
        return f"onnxruntime has no integer kernel for {lacking}"
    if node.op_type == "ConvTranspose" and target.activations != QuantType.QUInt8:
        return "a transposed convolution was not measured on this target"
    return "outside the network" if node.name.startswith(WRAPPER) else ""


def _constants(model: onnx.ModelProto) -> set[str]:
    folded = {out for node in model.graph.node if node.op_type == "Constant" for out in node.output}
    return {each.name for each in model.graph.initializer} | folded


def sources(model: onnx.ModelProto) -> dict[str, frozenset[str]]:
    """For each follower the products that it follows, through other followers alone. Rule 2."""
    products = {node.name for node in model.graph.node if node.op_type in PRODUCTS}
    of_value: dict[str, frozenset[str] | None] = {}
    found = {}
    constants = _constants(model)
    for node in model.graph.node:
        if node.name in products:
            of_value[node.output[0]] = frozenset([node.name])
        elif node.op_type in LAYOUT or (node.op_type == "Slice" and node.name.startswith(WRAPPER)):  # what a rewrite cuts off its own result
            of_value[node.output[0]] = of_value.get(node.input[0])
        elif _follows(model.graph, node, constants):
            fed = [of_value.get(each) for each in node.input if each and each not in constants]
            known = [each for each in fed if each is not None]
            together = frozenset().union(*known) if known and len(known) == len(fed) else None
            of_value[node.output[0]] = together
            if together is not None:
                found[node.name] = together
    return found


def _follows(graph: onnx.GraphProto, node: onnx.NodeProto, constants: set[str]) -> bool:
    """Rule 2, as far as the node itself goes."""
    if node.name.startswith(WRAPPER) or (node.op_type == "Mul" and constants & set(node.input)):
        return False
    if (node.op_type == "Clip" and not _holds_zero(graph, node)) or (node.op_type == "HardSigmoid" and not has_steps(graph, node)):
        return False
    if node.op_type == "Resize" and repeats(graph, node) is None:
        return False
    return node.op_type in FOLLOWERS or is_global_pool(graph, node)


def _holds_zero(graph: onnx.GraphProto, clip: onnx.NodeProto) -> bool:
    """Whether zero lies within a Clip's limits. The quantizer drops a Clip for the range behind it, in which zero always lies."""
    values = {each.name: each for each in graph.initializer}
    low, high = ((values.get(clip.input[index]) if len(clip.input) > index and clip.input[index] else 0.0) for index in (1, 2))
    if low is None or high is None:
        return False  # computed while it runs
    least, most = (0.0 if isinstance(each, float) else float(numpy_helper.to_array(each).max()) for each in (low, high))
    return least <= 0.0 <= most


def observed_values(model: onnx.ModelProto, target: Target) -> list[str]:
    """The float values that some plan may quantise: what products and their followers read and give, and of attention's product the values."""
    possible = set(candidates(model, target)[0]) | set(sources(model))
    constants = _constants(model)
    values: list[str] = []
    for node in model.graph.node:
        if node.name in possible:
            parts = attention_parts(model.graph, node)
            values += [parts.values] if parts is not None else [each for each in (*node.input, *node.output) if each and each not in constants]
    return list(dict.fromkeys(values))


def quantize(model: onnx.ModelProto, contract: Contract, integer: set[str], limits: Limits, target: Target) -> onnx.ModelProto:
    """The graph that runs the products named in `integer` as integers. `model`: preprocessed, and left as it is."""
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    ranges = dict(limits)
    quads = _shape_for_kernels(graph, contract, integer, ranges) if target.activations == QuantType.QUInt8 else None
    left = {node.name for node in graph.graph.node}
    followers = {name for name, products in sources(model).items() if products <= integer}
    followers -= float_followers(graph.graph, integer, followers)
    ranges |= {pooled: ranges[value] for pooled, value in global_pool(graph, followers).items()}
    ranges |= {grown: ranges[value] for grown, value in nearest_upsampling(graph, followers).items()}
    ranges |= hard_sigmoid(graph, followers)
    names = sorted(integer & left | followers)
    quantizer = QDQQuantizer(
        graph,
        per_channel=True,
        reduce_range=target.narrow_weights,
        weight_qType=QuantType.QInt8,
        activation_qType=target.activations,
        tensors_range=_tensors(ranges),
        nodes_to_quantize=names,
        nodes_to_exclude=[],
        op_types_to_quantize=[*PRODUCTS, *FOLLOWERS],
        extra_options={"ForceQuantizeNoInputCheck": True},  # a pool behind layout would stay float, because its input comes from no integer node
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    made: onnx.ModelProto = quantizer.model.model
    if target.narrow_weights:
        onnx.helper.set_model_props(made, {NARROW_KEY: "1"})
    keep_steps(made)
    drop_factors(made)
    give_floats(made.graph, set(names))
    pixel_table(made, contract)
    drop_last_pairs(made)
    ask_integers_for_shapes(made)
    if target.activations == QuantType.QUInt8:  # its blocks were measured on x86
        batch_as_depth(made, contract)
    if quads is not None:
        _branch_stem(made, contract, quads)
    return made


def _branch_stem(made: onnx.ModelProto, contract: Contract, quads: Geometry) -> None:
    """Rule 3, for batches and widths of every kind."""
    stem = large_stem(made, contract, quads)
    if stem is None:
        width_branches(made, contract, quads)
    else:
        image_by_image(made, contract, quads, stem)


def _shape_for_kernels(graph: onnx.ModelProto, contract: Contract, integer: set[str], ranges: Limits) -> Geometry | None:
    """Rule 3. How the first convolution reads pixels in fours, if it does."""
    first, quads = contract.inputs[0], None
    stem = [node.name for node in graph.graph.node if node.op_type == "Conv"][:2]
    if set(stem) <= integer:
        separable_fusion(graph)
    convolution = next((node.name for node in graph.graph.node if node.op_type == "Conv"), "")
    if first.pixels is not None and convolution in integer:
        quads = column_quads(graph, contract)
        if quads is not None:
            ranges |= {REAL: quads.pixels, **{made: ranges[value] for made, value in quads.aliases.items()}}
        elif (pixels := pixel_convolution(graph, first.name, first.pixels)) is not None:
            ranges[REAL] = pixels
    attention_product(graph, integer, ranges)
    positions_last(graph, integer)
    for wide, value in {**transposed_convolution(graph, integer), **position_blocks(graph, integer), **channel_padding(graph, integer)}.items():
        ranges[wide] = ranges[value]
    for node in graph.graph.node:
        if node.op_type in LAYOUT and node.input[0] in ranges:  # what a rewrite moved about has the range of what it moved
            ranges.setdefault(node.output[0], ranges[node.input[0]])
    return None if quads is None else quads.geometry


def ask_integers_for_shapes(model: onnx.ModelProto) -> None:
    """Rule 6: Shape(DequantizeLinear(x)) becomes Shape(x)."""
    integers = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        if node.op_type == "Shape" and node.input[0] in integers:
            node.input[0] = integers[node.input[0]]


def _tensors(limits: Mapping[str, tuple[float, float]]) -> TensorsData:
    data = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in limits.items()}
    return TensorsData(CalibrationMethod.MinMax, data)


def drop_last_pairs(model: onnx.ModelProto) -> None:
    """Rule 6: DequantizeLinear(QuantizeLinear(x)) right before an output becomes x, under the output's name."""
    graph = model.graph
    producers = {out: node for node in graph.node for out in node.output}
    readers = {out.name: [node for node in graph.node if out.name in node.input] for out in graph.output}
    for output in graph.output:
        last = producers[output.name]
        first = producers.get(last.input[0]) if last.input else None
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
    drop_unread(graph)
