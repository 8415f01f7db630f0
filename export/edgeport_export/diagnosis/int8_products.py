"""One integer product at a time: cut out of the int8 graph between values that the fp32 graph has, too, and put into the fp32 graph in its place.

An int8 graph is made from the fp32 one, and its float values keep their names. So the nodes between two such values are what a product became: its input
rounded, its weights as integers, and what was folded into it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeport_export.quantization.macs import INTEGER_PRODUCTS, PRODUCTS, value_shapes
from edgeport_export.rewrites.graph import GraphEditor
from edgeport_export.rewrites.nodes import NodeBuilder, every_node
from edgeport_runtime.engine import Arrays

PREFIX = "edgeport/int8/"


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How one input of a product is rounded: a value of the fp32 graph, its step and the limits beyond which it clips."""

    value: str
    step: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class RoundedWeights:
    """Stored weights: as integers, with their steps along the axis of the output channels, and as the fp32 graph has them (None if they were reshaped)."""

    integers: NDArray[np.float64]
    steps: NDArray[np.float64]
    axis: int
    exact: NDArray[np.float64] | None


@dataclass(frozen=True, kw_only=True)
class IntegerProduct:
    """`output`: the value, of both graphs, that it leads to. `inputs`: values of both graphs that it reads. `nodes`: of the int8 graph, in between."""

    name: str
    output: str
    inputs: tuple[str, ...]
    nodes: tuple[onnx.NodeProto, ...] = field(repr=False)

    @property
    def module(self) -> str:
        return self.name.rpartition("/")[0] or self.name


@dataclass(frozen=True, kw_only=True)
class InPlace:
    """The fp32 graph with one product as integers. `value`: what the product's output is called in it."""

    model: onnx.ModelProto
    value: str


class Int8Products:
    """All integer products of an int8 graph, beside the fp32 graph that it was made from. `unmatched`: those that lead to no value of the fp32 graph.

    `arrays`: inputs, at which values of one name must have one shape: some run in other layouts as integers.
    """

    def __init__(self, fp32: onnx.ModelProto, int8: onnx.ModelProto, arrays: Arrays) -> None:
        self.fp32, self.int8 = GraphEditor(fp32), GraphEditor(int8)
        made = {value for node in self.fp32.nodes for value in node.output}
        names = [value for node in self.int8.nodes for value in node.output if value in made]
        shapes = [value_shapes(model, names, arrays) for model in (fp32, int8)]
        self.common = {name for name in names if shapes[0][name] == shapes[1][name]} | {each.name for each in int8.graph.input}
        self.unmatched: list[str] = []
        self.products = [product for node in self.int8.nodes if self._is_integer(node) for product in self._product(node)]
        top = {node.name for node in self.int8.nodes}
        inside = [node.name for node in every_node(int8.graph) if node.name not in top and node.op_type in PRODUCTS]  # of a branch
        self.unmatched += list(dict.fromkeys(inside))

    def _is_integer(self, node: onnx.NodeProto) -> bool:
        if node.op_type in INTEGER_PRODUCTS:
            return True
        return node.op_type in PRODUCTS and all(self.int8.producer(value, "DequantizeLinear") is not None for value in node.input[:2])

    def _product(self, node: onnx.NodeProto) -> list[IntegerProduct]:
        output = self._leads_to(node)
        if output is None:
            self.unmatched.append(node.name)
            return []
        nodes = self.int8.ancestors(output, known=self.common)
        read = dict.fromkeys(value for each in nodes for value in each.input)
        inputs = tuple(value for value in read if value in self.common and value != output)
        return [IntegerProduct(name=node.name, output=output, inputs=inputs, nodes=tuple(nodes))]

    def _leads_to(self, node: onnx.NodeProto) -> str | None:
        """The first value of both graphs from here on, if one reader follows the other until there."""
        value: str = node.output[0]
        while value not in self.common:
            readers = self.int8.readers.get(value, [])
            if len(readers) != 1:
                return None
            value = readers[0].output[0]
        return value

    def in_place_of(self, product: IntegerProduct, *, with_exact_inputs: bool = False) -> InPlace:
        """The fp32 graph in which this product alone runs as integers. `with_exact_inputs`: only its weights are rounded, see `can_read_exact_inputs`."""
        editor = GraphEditor.of_copy(self.fp32.model)
        outputs = [each.name for each in self.fp32.graph.output]
        builder = editor.builder(PREFIX)
        given = {value: value for value in self.common if value != product.output}
        skipped = self._rounded(product) if with_exact_inputs else {}
        names = builder.copy(self.int8.graph, [node for node in product.nodes if node.output[0] not in skipped], {**given, **skipped})
        for node in builder.nodes:  # the fp32 graph has nodes of these names
            node.name = PREFIX + node.name
        output = self._with_activation(product, names[product.output], builder)
        editor.read_instead(product.output, output)
        editor.append(builder.nodes)
        for each in self.int8.model.opset_import:
            if each.domain in ("", "ai.onnx"):
                editor.require_opset(each.version)
        editor.set_outputs([output if name == product.output else name for name in outputs])
        return InPlace(model=editor.model, value=output)

    def can_read_exact_inputs(self, product: IntegerProduct) -> bool:
        """Whether its weights are stored, and the rounding of each input can be left out."""
        return self.weights(product) is not None and len(self._rounded(product)) >= len(self.roundings(product))

    def _rounded(self, product: IntegerProduct) -> dict[str, str]:
        """What the roundings of this product's inputs make -> the input itself."""
        quantized = {node.output[0]: node.input[0] for node in product.nodes if node.op_type == "QuantizeLinear" and node.input[0] in product.inputs}
        restored = {node.output[0]: quantized[node.input[0]] for node in product.nodes if node.op_type == "DequantizeLinear" and node.input[0] in quantized}
        read = {value for node in product.nodes for value in node.input if node.output[0] not in restored}
        return {**restored, **{made: value for made, value in quantized.items() if made not in read}}

    def _with_activation(self, product: IntegerProduct, output: str, builder: NodeBuilder) -> str:
        """A ReLU that the next rounding's limits stand for: such a value is clipped by whoever reads it rounded, and would not be by the fp32 graph."""
        made, last = self.fp32.producers[product.output], self.int8.producers[product.output]
        rounded = [node for node in self.int8.readers.get(product.output, []) if node.op_type == "QuantizeLinear"]
        if made.op_type == last.op_type or not rounded:
            return output
        limits = self._rounding(rounded[0])
        ends = [builder.constant(f"{product.name}.{side}", np.array(value, np.float32)) for side, value in (("low", limits.low), ("high", limits.high))]
        return builder.add("Clip", [output, *ends], f"{product.name}.clipped")

    def roundings(self, product: IntegerProduct) -> list[Rounding]:
        """Of the values of the fp32 graph that this product reads rounded."""
        found = []
        for node in product.nodes:
            if node.op_type == "QuantizeLinear" and node.input[0] in product.inputs and self.int8.are_constants(node.input[1:]):
                found.append(self._rounding(node))
        return found

    def _rounding(self, node: onnx.NodeProto) -> Rounding:
        scale = float(np.max(self.int8.array(node.input[1])))
        zero = self.int8.array(node.input[2]) if len(node.input) > 2 else np.array(0, np.uint8)
        limits = np.iinfo(zero.dtype)
        low, high = (scale * (float(limit) - float(np.ravel(zero)[0])) for limit in (limits.min, limits.max))
        return Rounding(value=node.input[0], step=scale, low=low, high=high)

    def weights(self, product: IntegerProduct) -> RoundedWeights | None:
        """None if its weights are no stored integers: those of attention's products are activations."""
        node = next(each for each in product.nodes if each.name == product.name)
        made = self.int8.producer(node.input[1], "DequantizeLinear")
        if made is None or made.input[0] not in self.int8.constants:
            return None
        integers, steps = self.int8.array(made.input[0]).astype(np.float64), self.int8.array(made.input[1]).astype(np.float64)
        axis = next((each.i for each in made.attribute if each.name == "axis"), 1) if steps.ndim else 0
        return RoundedWeights(integers=integers, steps=np.atleast_1d(steps), axis=axis, exact=self._exact(node.name, integers.shape))

    def _exact(self, name: str, shape: Sequence[int]) -> NDArray[np.float64] | None:
        node = next((each for each in self.fp32.nodes if each.name == name), None)
        if node is None or node.input[1] not in self.fp32.constants:
            return None
        weights = self.fp32.array(node.input[1]).astype(np.float64)
        return weights if weights.shape == tuple(shape) else None
