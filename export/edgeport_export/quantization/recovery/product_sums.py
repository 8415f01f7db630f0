"""A product as sums of weighted inputs: rows of weights, the inputs that they meet at each position, and what is added to each sum.

A convolution's row is one filter, and its inputs are a window of the map. A linear layer's row is one feature. Only constant weights are looked at.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeport_export.rewrites.graph import GraphEditor
from edgeport_export.rewrites.nodes import attributes

MOST_POSITIONS = 8192  # of one batch, drawn at random
MOST_VALUES = 2**22  # of the inputs at these positions


@dataclass(frozen=True, kw_only=True)
class ProductSums:
    """`node`: the product. `weights`: as the node holds them. `groups`: of a convolution. `features_last`: whether a linear layer's weights are
    (inputs, features). `given`: the value that it reads. `made`: its sums with what is added to them, as a value of the graph.
    `added_by`: the node that adds a constant to the sums, and the place among its inputs; None if nothing can be added without another operator.
    """

    node: onnx.NodeProto
    weights: NDArray[np.float32]
    groups: int = 1
    features_last: bool = False
    made: str
    added_by: tuple[onnx.NodeProto, int] | None

    @classmethod
    def of(cls, editor: GraphEditor, node: onnx.NodeProto) -> "ProductSums | None":
        """None if the node is no product of this kind."""
        if len(node.input) < 2 or node.input[1] not in editor.constants:
            return None
        weights, found, made = editor.array(node.input[1]), attributes(node), node.output[0]
        if node.op_type == "Conv" and found.get("auto_pad", b"NOTSET") == b"NOTSET":
            return cls(node=node, weights=weights, groups=found.get("group", 1), made=made, added_by=(node, 2))
        plain = found.get("alpha", 1.0) == found.get("beta", 1.0) == 1.0 and not found.get("transA", 0)
        if node.op_type == "Gemm" and plain:
            return cls(node=node, weights=weights, features_last=not found.get("transB", 0), made=made, added_by=(node, 2))
        if node.op_type != "MatMul" or weights.ndim != 2:
            return None
        bias = _added_after(editor, made, weights.shape[1])
        return cls(node=node, weights=weights, features_last=True, made=made if bias is None else bias[0].output[0], added_by=bias)

    @property
    def given(self) -> str:
        return str(self.node.input[0])

    @cached_property
    def rows(self) -> NDArray[np.float64]:
        """(groups, rows, inputs)."""
        matrix = self.weights.T if self.features_last else self.weights.reshape(len(self.weights), -1)
        return np.ascontiguousarray(matrix, np.float64).reshape(self.groups, -1, matrix.shape[1])

    def as_weights(self, rows: NDArray[np.float64]) -> NDArray[np.float32]:
        """Rows in the shape in which the node holds them."""
        matrix = rows.reshape(-1, rows.shape[2]).astype(np.float32)
        return np.ascontiguousarray(matrix.T) if self.features_last else matrix.reshape(self.weights.shape)

    def added(self, editor: GraphEditor) -> NDArray[np.float64]:
        """What is added to each sum (rows of all groups); zeros if nothing is."""
        count = self.rows.shape[0] * self.rows.shape[1]
        node, place = self.added_by or (self.node, 2)
        name = node.input[place] if len(node.input) > place else ""
        return np.broadcast_to(editor.array(name).astype(np.float64), (count,)).copy() if name in editor.constants else np.zeros(count)

    def sampled(self, given: NDArray[Any], made: NDArray[Any], generator: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What the rows read (groups, positions, inputs) and what they make (groups, positions, rows) at some positions of a batch."""
        if self.node.op_type == "Conv":
            read, makes = self._windows(given, made.ndim - 2), np.moveaxis(made, 1, -1)
        else:
            read, makes = given, made
        places = makes.shape[:-1]
        count, most = int(np.prod(places)), max(1, min(MOST_POSITIONS, MOST_VALUES // (self.groups * self.rows.shape[2])))
        drawn = np.arange(count) if count <= most else np.sort(generator.choice(count, most, replace=False))
        where = np.unravel_index(drawn, places)
        inputs, outputs = (each[where].reshape(len(drawn), self.groups, -1).swapaxes(0, 1) for each in (read, makes))
        return np.ascontiguousarray(inputs, np.float32), np.ascontiguousarray(outputs, np.float32)

    def _windows(self, given: NDArray[Any], axes: int) -> NDArray[Any]:
        """A view of what every position reads: (N, *positions, channels, *kernel)."""
        found, kernel = attributes(self.node), self.weights.shape[2:]
        once = [1] * axes
        strides, dilations, pads = found.get("strides", once), found.get("dilations", once), found.get("pads", [0] * 2 * axes)
        padded = np.pad(given, [(0, 0), (0, 0), *zip(pads[:axes], pads[axes:], strict=True)])
        reach = tuple(dilation * (taps - 1) + 1 for taps, dilation in zip(kernel, dilations, strict=True))
        view = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + axes)))
        steps = (slice(None), slice(None), *(slice(None, None, step) for step in (*strides, *dilations)))
        return np.moveaxis(view[steps], 1, 1 + axes)


def _added_after(editor: GraphEditor, value: str, features: int) -> tuple[onnx.NodeProto, int] | None:
    """The Add of one constant for each feature that alone reads `value`, and the constant's place; None if there is none."""
    reader = editor.only_reader(value)
    if reader is None or reader.op_type != "Add":
        return None
    place = 1 if reader.input[0] == value else 0
    constant = editor.constants.get(reader.input[place])
    return (reader, place) if constant is not None and tuple(constant.dims) == (features,) else None
