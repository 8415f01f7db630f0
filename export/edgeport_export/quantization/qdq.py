"""The int8 graph of a plan: the integer products and the ranges are given, and all that follows from them is done here.

Static Q/DQ with int8 weights per channel. By rule:

1. Products with constant weights (Conv, Gemm, MatMul) can be quantized, and attention's product of softmax weights and values, row by row.
   Other products of two activations stay float: their sums are as short as a head is wide, and one float product costs less than making
   integers of two activations.
2. Relu, Clip, MaxPool, Add and their like are quantized if every product that they follow is, because left in float they break the fusion of
   their neighbors. Before the first product (normalization) and after the network they stay float. So are the mean over a map, Sigmoid,
   HardSigmoid, nearest upsampling, PReLU, batch normalization, and Mul by something computed (a gate). Mul by constants is not, because small ones
   would become zero, nor is a Clip between limits on one side of zero.
3. The passes of `rewrites/int8_graph` give the integer kernels the shapes that they run fastest on; each says what it does and why.
"""

import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgeport_export.rewrites.graph import GraphEditor, Ranges
from edgeport_export.rewrites.int8_graph import FOLLOWER_PASSES, GUARDS, QDQ_PASSES, SHAPING_PASSES, X86_PASSES
from edgeport_export.rewrites.int8_graph.attention_product import attention_parts
from edgeport_export.rewrites.int8_graph.batch_norm import has_integer_norm
from edgeport_export.rewrites.int8_graph.context import Int8Context, run_passes
from edgeport_export.rewrites.int8_graph.float_linear import float_followers
from edgeport_export.rewrites.int8_graph.global_pool import is_global_pool
from edgeport_export.rewrites.int8_graph.hard_sigmoid import has_integer_steps
from edgeport_export.rewrites.int8_graph.layout import LAYOUT
from edgeport_export.rewrites.int8_graph.nearest_upsampling import repeats
from edgeport_export.rewrites.int8_graph.prelu_steps import has_integer_slopes
from edgeport_export.rewrites.int8_graph.transposed_convolution import refusal
from edgeport_export.rewrites.names import is_wrapper_node
from edgeport_runtime import Contract
from edgeport_runtime.contract import NARROW_KEY

from .joined_scales import joining_followers
from .macs import PRODUCTS, RECURRENT
from .recovery.recovered_weights import NOTHING, Recovered, put_in_place
from .targets import Target

# Elementwise and pooling operators that fuse with a quantized neighbor; see rule 2.
FOLLOWERS = (
    *("Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Add", "Concat", "LeakyRelu", "Mul", "Sigmoid", "HardSigmoid", "Resize"),
    *("PRelu", "BatchNormalization"),
)
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


def candidates(editor: GraphEditor, target: Target) -> tuple[list[str], dict[str, str]]:
    """Names of the products that can be quantized, in the graph's order; and of those that never are, with the reason. Rule 1."""
    branching = any(each.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for node in editor.nodes for each in node.attribute)
    quantizable, not_quantizable = [], {}
    for node in [each for each in editor.nodes if each.op_type in PRODUCTS]:
        if branching:
            not_quantizable[node.name] = "the graph branches or loops while it runs, and the quantizer does not look inside"
        elif editor.types.get(node.output[0], onnx.TensorProto.FLOAT) != onnx.TensorProto.FLOAT:
            not_quantizable[node.name] = "computed in another type than float32"
        elif reason := _refusal(editor, node, target):
            not_quantizable[node.name] = reason
        else:
            quantizable.append(node.name)
    return quantizable, not_quantizable


def _refusal(editor: GraphEditor, node: onnx.NodeProto, target: Target) -> str:
    """Why the product has no integer kernel, or none that pays; empty if it has one."""
    constants, unsigned = _constants(editor), target.activations == QuantType.QUInt8
    if node.op_type in ("Einsum", *RECURRENT):
        return f"onnxruntime has no integer kernel for {node.op_type}"
    if node.input[0] in constants:
        return "constants times an activation, for which onnxruntime has no integer kernel"
    if node.input[1] not in constants and attention_parts(editor, node) is None:
        return TWO_ACTIVATIONS
    if node.input[1] not in constants and not unsigned:
        return "attention's product was not measured on this target"
    if node.op_type == "ConvTranspose" and (lacking := refusal(editor, node)):
        return f"onnxruntime has no integer kernel for {lacking}"
    if node.op_type == "ConvTranspose" and not unsigned:
        return "a transposed convolution was not measured on this target"
    return "outside the network" if is_wrapper_node(node.name) else ""


def _constants(editor: GraphEditor) -> set[str]:
    return {*editor.constants, *(out for node in editor.nodes if node.op_type == "Constant" for out in node.output)}


def follower_products(editor: GraphEditor) -> dict[str, frozenset[str]]:
    """For each follower the products that it follows, through other followers alone. Rule 2."""
    products = {node.name for node in editor.nodes if node.op_type in PRODUCTS}
    of_value: dict[str, frozenset[str] | None] = {}
    found = {}
    constants = _constants(editor)
    for node in editor.nodes:
        if node.name in products:
            of_value[node.output[0]] = frozenset([node.name])
        elif node.op_type in LAYOUT or (node.op_type == "Slice" and is_wrapper_node(node.name)):  # what a rewrite cuts off its own result
            of_value[node.output[0]] = of_value.get(node.input[0])
        elif _follows(editor, node, constants):
            read = [of_value.get(each) for each in node.input if each and each not in constants]
            known = [each for each in read if each is not None]
            together = frozenset().union(*known) if known and len(known) == len(read) else None
            of_value[node.output[0]] = together
            if together is not None:
                found[node.name] = together
    return found


def _follows(editor: GraphEditor, node: onnx.NodeProto, constants: set[str]) -> bool:
    """Rule 2, as far as the node itself goes."""
    if is_wrapper_node(node.name) or (node.op_type == "Mul" and constants & set(node.input)):
        return False
    if node.op_type in CONDITIONS:
        return CONDITIONS[node.op_type](editor, node)
    return node.op_type in FOLLOWERS or is_global_pool(editor, node)


def _holds_zero(editor: GraphEditor, clip: onnx.NodeProto) -> bool:
    """Whether zero lies within a Clip's limits. The quantizer drops a Clip in favor of the range after it, in which zero always lies."""
    low, high = (clip.input[index] if len(clip.input) > index else "" for index in (1, 2))
    if not editor.are_constants((low, high)):
        return False  # computed while it runs
    least, most = (float(editor.array(name).max()) if name else 0.0 for name in (low, high))
    return least <= 0.0 <= most


# Followers that have an integer form under a condition.
CONDITIONS: Mapping[str, Callable[[GraphEditor, onnx.NodeProto], bool]] = {
    "BatchNormalization": has_integer_norm,
    "Clip": _holds_zero,
    "HardSigmoid": has_integer_steps,
    "PRelu": has_integer_slopes,
    "Resize": lambda editor, node: repeats(editor, node) is not None,
}


def observed_values(model: onnx.ModelProto, target: Target) -> list[str]:
    """The float values that some plan may quantize: what products and their followers read and give; of attention's product the values."""
    editor = GraphEditor(model)
    nodes = set(candidates(editor, target)[0]) | set(follower_products(editor))
    constants = _constants(editor)
    values: list[str] = []
    for node in editor.nodes:
        if node.name in nodes:
            parts = attention_parts(editor, node)
            values += [parts.values] if parts is not None else [each for each in (*node.input, *node.output) if each and each not in constants]
    return list(dict.fromkeys(values))


def quantize(
    model: onnx.ModelProto, contract: Contract, integer: frozenset[str], ranges: Ranges, target: Target, recovered: Recovered = NOTHING
) -> onnx.ModelProto:
    """The graph in which the products named in `integer` run as integers. `model`: preprocessed, and left as it is.

    `recovered`: weights that are rounded already; the others are rounded to the nearest step.
    """
    editor, context = shaped(model, contract, integer, ranges, target)
    put_in_place(editor, recovered, integer)
    editor = GraphEditor(with_pairs(editor.model, context, target))
    run_passes((*QDQ_PASSES, *(X86_PASSES if target.activations == QuantType.QUInt8 else ()), *GUARDS), editor, context)
    return editor.model


def shaped(model: onnx.ModelProto, contract: Contract, integer: frozenset[str], ranges: Ranges, target: Target) -> tuple[GraphEditor, Int8Context]:
    """The float graph in the shapes that integer kernels want, and what is quantized in it. `model`: preprocessed, and left as it is."""
    editor, context = GraphEditor.of_copy(model), Int8Context(contract=contract, products=integer, ranges=ranges)
    if target.activations == QuantType.QUInt8:
        context = run_passes(SHAPING_PASSES, editor, context)
    followers = frozenset(name for name, products in follower_products(GraphEditor(model)).items() if products <= integer)
    context = replace(context, followers=followers)
    context = replace(context, followers=followers - float_followers(editor, context) - joining_followers(editor, context))
    return editor, run_passes(FOLLOWER_PASSES, editor, context)


def with_pairs(model: onnx.ModelProto, context: Int8Context, target: Target) -> onnx.ModelProto:
    """A copy of the graph with the Q/DQ pairs that onnxruntime's quantizer puts around the nodes of the context."""
    left = {node.name for node in model.graph.node}
    quantizer = QDQQuantizer(
        GraphEditor.of_copy(model).model,
        per_channel=True,
        reduce_range=target.narrow_weights,
        weight_qType=QuantType.QInt8,
        activation_qType=target.activations,
        tensors_range=_tensors(context.ranges),
        nodes_to_quantize=sorted(context.products & left | context.followers),
        nodes_to_exclude=[],
        op_types_to_quantize=[*PRODUCTS, *FOLLOWERS],
        extra_options={"ForceQuantizeNoInputCheck": True},  # a pool after layout would stay float, because its input comes from no integer node
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    made: onnx.ModelProto = quantizer.model.model
    if target.narrow_weights:
        onnx.helper.set_model_props(made, {NARROW_KEY: "1"})
    return made


def _tensors(ranges: Ranges) -> TensorsData:
    data = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    return TensorsData(CalibrationMethod.MinMax, data)
