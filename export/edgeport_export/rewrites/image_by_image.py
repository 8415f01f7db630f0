"""The first convolution and the pool behind it image by image, and even and odd columns apart.

What a first convolution gives is the largest map of a network: 0.8 MB for an image of ResNet18. Of eight images at once it has left the core's own
cache when the pool reads it, and the pool takes twice as long. And of the two columns that `column_quads` computes at a position each pays for the
pixels of both: 252 products where 147 count. Even and odd columns are one convolution with the same weights, of pixels that are two columns apart,
with 168 products; to put them beside one another is a copy, which pays while it stays in the core's own cache. Exact: no number changes. Measured
with onnxruntime 1.32.0, ResNet18 at 224x224: 16 images, eight on each of two threads, 2.6 % less; one image on both threads 0.5 % more.

Applies to a graph with its Q/DQ pairs, in which `column_quads` has given every position two columns.

1. There are at least `FILTERS`: onnxruntime computes so many at a time, and with fewer both columns together are faster. At the contract's own size
   an image's map has `LEAST_BYTES`. Its integers go to a MaxPool alone, which keeps their scale.
2. Column t of a kernel with P columns of padding reads, for the even column 2 q, pixel 4 q + t - P, and for the odd one the second pixel behind
   that. With P + s pixels before the picture the even ones are at t + s of position q and those behind it, and with P + s - 2 the odd ones are. As
   many positions as the kernel is wide are read, s is the least for which both exist, and no pixel of the picture is left over.
3. The pixels around the picture are those of `column_quads`, rule 3. A width that is no multiple of 4 is filled up and cut off as in its rule 4,
   in a branch of its own where the contract has widths of both kinds (`width_branches`).
4. A Scan does that for one image after the other; what is the same for all of them is made outside. Its constants are its own, as in
   `width_branches`, rule 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeport_runtime import Contract, Pixels

from .column_quads import WIDE, Geometry, columns_given, lacking_columns, levels, remainders
from .constants import drop_unread_values
from .nodes import Chain
from .pixel_convolution import REAL
from .width_branches import RAGGED, WHOLE, by_width

LEAST_BYTES = 1 << 19  # from a half of that on 8 images took 4 % less on one thread, and 4 % more where two threads share each operator
FILTERS = 64
PREFIX = "edgeport.images."
LAYOUT = ("Transpose", "Reshape", "Slice")  # puts the convolution's columns in their place
COLUMNS = 2  # of a position, behind one another

Constants = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Stem:
    """The nodes that dequantise the pixels, the weights and the bias, multiply, make integers, pool, and make integers again."""

    pixels: onnx.NodeProto
    weights: Sequence[onnx.NodeProto]
    convolution: onnx.NodeProto
    rounded: onnx.NodeProto
    pool: onnx.NodeProto
    pooled: onnx.NodeProto


@dataclass(frozen=True, kw_only=True)
class Window:
    """Rule 2, in pixels: of `positions`, tap t is at t + `at`. `before`, `behind`: of the picture, for even and for odd columns."""

    positions: int
    at: int
    before: tuple[int, int]
    behind: tuple[int, int]


def image_by_image(model: onnx.ModelProto, contract: Contract, shape: Geometry) -> bool:
    """Rewrite `model` in place; False where rule 1 or 2 does not hold, and then nothing is changed. `shape`: of its first convolution."""
    graph, first = model.graph, contract.inputs[0]
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    seen, stem = window(shape), _stem(graph, constants)
    if seen is None or stem is None or first.pixels is None or not _is_large(first.pixels, shape, constants[stem.weights[0].input[0]]):
        return False
    kinds, made = {bool(each) for each in remainders(contract)}, Chain(graph, PREFIX)
    if len(kinds) == 1:
        _Images(made, first.name, first.pixels, ragged=kinds.pop()).add(stem, constants, shape, seen)
    else:
        chains = {prefix: Chain(onnx.GraphProto(), PREFIX + prefix) for prefix in (WHOLE, RAGGED)}
        for prefix, chain in chains.items():
            _Images(chain, first.name, first.pixels, ragged=prefix == RAGGED).add(stem, constants, shape, seen)
        by_width(made, first.name, chains[WHOLE], chains[RAGGED], helper.make_tensor_type_proto(TensorProto.UINT8, [None] * 5))
    value = made.add("Squeeze", [made.nodes[-1].output[0], made.constant("single", [1])], "map")
    made.add("Transpose", [value], to=stem.pooled.output[0], perm=[0, 3, 1, 2])
    graph.node.remove(stem.pooled)
    left = list(graph.node)
    del graph.node[:]
    graph.node.extend([*made.nodes, *left])
    drop_unread_values(graph, stem.pool.output[0])
    return True


def window(shape: Geometry) -> Window | None:
    """Rule 2; None where it does not hold."""
    positions, at = -(-shape.columns // WIDE), max(0, 2 - shape.left)
    filled = WIDE * (positions - 1) + 2 * (shape.room // 2 + 1)  # pixels around the picture
    before = shape.left + at, shape.left + at - 2
    behind = filled - before[0], filled - before[1]
    fits = shape.outputs == COLUMNS and at + shape.columns <= WIDE * positions and min(behind) >= 0
    return Window(positions=positions, at=at, before=before, behind=behind) if fits else None


def _stem(graph: onnx.GraphProto, constants: Constants) -> Stem | None:
    """Rule 1, but for the size."""
    makers = {out: node for node in graph.node for out in node.output}
    convolution = next((node for node in graph.node if node.op_type == "Conv" and node.input[0] == REAL), None)
    first = node = None if convolution is None else _only_reader(graph, convolution)
    if convolution is None or first is None or first.op_type != "QuantizeLinear":
        return None
    while node is not None and (node.op_type in LAYOUT or _rounds_alike(node, first, constants)):
        node = _only_reader(graph, node)
    pooled = None if node is None or node.op_type != "MaxPool" else _only_reader(graph, node)
    if node is None or pooled is None or pooled.op_type != "QuantizeLinear" or not _rounds_alike(pooled, first, constants):
        return None
    pixels, *weights = (makers[each] for each in convolution.input)
    return Stem(pixels=pixels, weights=weights, convolution=convolution, rounded=first, pool=node, pooled=pooled)


def _only_reader(graph: onnx.GraphProto, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """Of all that the node makes."""
    readers = [other for other in graph.node if set(node.output) & set(other.input)]
    return readers[0] if len(readers) == 1 and not set(node.output) & {each.name for each in graph.output} else None


def _rounds_alike(node: onnx.NodeProto, other: onnx.NodeProto, constants: Constants) -> bool:
    """Whether the node quantises or dequantises with the other's scale and zero."""
    rounds = node.op_type in ("QuantizeLinear", "DequantizeLinear")
    return rounds and all(np.array_equal(constants[a], constants[b]) for a, b in zip(node.input[1:], other.input[1:], strict=True))


def _is_large(pixels: Pixels, shape: Geometry, weights: NDArray[Any]) -> bool:
    """Rule 1, of one picture of its own size. `weights`: (2 F, 4 C, rows, positions)."""
    filters = len(weights) // COLUMNS
    rows = (pixels.height + shape.top + shape.bottom - weights.shape[2]) // shape.down + 1
    columns = (pixels.width + shape.room) // shape.step + 1
    return filters >= FILTERS and filters * rows * columns >= LEAST_BYTES


class _Images:
    """Rules 3 and 4, put into one chain. `made`: what is made once, for all images; `body`: for each."""

    def __init__(self, made: Chain, pixels: str, described: Pixels, *, ragged: bool) -> None:
        level = levels(described)
        assert level is not None  # `column_quads` has asked
        self.made, self.body = made, Chain(onnx.GraphProto(), f"{made.prefix}each.")
        self.pixels, self.channels, self.ragged = pixels, len(level), ragged
        self.colour, self.deep = made.constant("colour", level.reshape(1, 1, -1)), made.constant("deep", [self.channels])
        self.rows = made.constant("rows", [0, -1])  # (H, W, C) as (H, W C)
        self.high, self.wide = (made.add("Shape", [pixels], name, start=axis, end=axis + 1) for axis, name in ((1, "high"), (2, "wide")))
        self.lacking = lacking_columns(made, pixels) if ragged else ""

    def add(self, stem: Stem, constants: Constants, shape: Geometry, seen: Window) -> None:
        """The pool's integers of all images, (N, 1, H, W, F), made last."""
        body, filters = self.body, len(constants[stem.weights[0].input[0]]) // COLUMNS
        value = self._columns(stem, constants, shape, seen, self._twice(shape, seen))
        value = body.add("Transpose", [value], "beside", perm=[2, 3, 0, 1])
        value = body.add("Reshape", [value, body.constant("together", [0, -1, filters])], "row")
        value = body.add("Unsqueeze", [value, body.constant("single", [0])], "map")
        if self.ragged:
            given = columns_given(self.made, self.pixels, shape)
            value = body.add("Slice", [value, body.constant("start", [0]), given, body.constant("axis", [2])], "cropped")
        value = self._again(stem.pool, [body.add("Transpose", [value], "planes", perm=[0, 3, 1, 2])], "pooled")
        value = body.add("Transpose", [value], "given", perm=[0, 2, 3, 1])
        inputs = [helper.make_tensor_value_info(self._image, TensorProto.UINT8, [None, None, self.channels])]
        outputs = [helper.make_tensor_value_info(value, TensorProto.UINT8, [1, None, None, filters])]
        image = helper.make_graph(body.nodes, "image", inputs, outputs, initializer=body.graph.initializer)
        self.made.add("Scan", [self.pixels], "scanned", body=image, num_scan_inputs=1)

    @property
    def _image(self) -> str:
        return f"{self.body.prefix}pixels"

    def _again(self, node: onnx.NodeProto, inputs: Sequence[str], output: str) -> str:
        """The node with other inputs and output, for each image. It keeps its name: plans and messages go by them."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:], copy.output[:] = inputs, [self.body.prefix + output]
        self.body.nodes.append(copy)
        return self.body.prefix + output

    def _twice(self, shape: Geometry, seen: Window) -> str:
        """The picture for even and for odd columns, each with what is around it: (2, 4 C, rows, positions)."""
        made, body = self.made, self.body
        row = body.add("Reshape", [self._image, self.rows], "pixels.rows")
        across = self._filled(made.add("Add", [self.wide, made.constant("around", [seen.before[0] + seen.behind[0]])], "across"))
        sides = {"above": shape.top, "below": shape.bottom}
        above, below = ([self._level(name, made.constant(f"{name}.rows", [rows]), across)] if rows else [] for name, rows in sides.items())
        parts = []
        for name, before, behind in zip(("even", "odd"), seen.before, seen.behind, strict=True):
            left = [self._level(f"{name}.before", self.high, made.constant(f"{name}.before.columns", [before]))] if before else []
            count = self._filled(made.constant(f"{name}.behind.columns", [behind]))
            right = [self._level(f"{name}.behind", self.high, count)] if behind or self.ragged else []
            parts += [*above, body.add("Concat", [*left, row, *right], name, axis=1), *below]
        tall = made.add("Add", [self.high, made.constant("around.rows", [shape.top + shape.bottom])], "tall")
        size = made.add("Concat", [made.constant("twice", [COLUMNS]), tall, made.constant("fours", [-1, WIDE * self.channels])], "size", axis=0)
        view = body.add("Reshape", [body.add("Concat", parts, "both", axis=0), size], "view")
        return body.add("Transpose", [view], "ready", perm=[0, 3, 1, 2])

    def _filled(self, count: str) -> str:
        """A number of columns with those that the width lacks."""
        return self.made.add("Add", [count, self.lacking], f"{count.removeprefix(self.made.prefix)}.filled") if self.ragged else count

    def _level(self, name: str, rows: str, columns: str) -> str:
        """Pixels of the means' level, (rows, columns C)."""
        size = self.made.add("Concat", [rows, columns, self.deep], f"{name}.shape", axis=0)
        return self.made.add("Reshape", [self.made.add("Expand", [self.colour, size], f"{name}.pixels"), self.rows], name)

    def _columns(self, stem: Stem, constants: Constants, shape: Geometry, seen: Window, positions: str) -> str:
        """The convolution's integers, (2, F, rows, columns / 2)."""
        read = [self._again(stem.pixels, [positions, *self._own(stem.pixels.input[1:], constants)], "real")]
        for index, node in enumerate(stem.weights):
            values = {name: constants[name][: len(constants[name]) // COLUMNS] for name in node.input}  # behind them are the odd columns'
            if not index:
                values[node.input[0]] = moved(values[node.input[0]], shape, seen)
            read.append(self._again(node, self._own(node.input, values), f"real.{index}"))
        value = self._again(stem.convolution, read, "sums")
        convolution, (_, _, rows, _) = self.body.nodes[-1], constants[stem.weights[0].input[0]].shape
        del convolution.attribute[:]
        says = {"kernel_shape": (rows, seen.positions), "strides": (shape.down, 1)}
        convolution.attribute.extend(helper.make_attribute(key, each) for key, each in says.items())
        return self._again(stem.rounded, [value, *self._own(stem.rounded.input[1:], constants)], "integers")

    def _own(self, names: Sequence[str], values: Constants) -> list[str]:
        return [self.body.constant(name, values[name]) for name in names]


def moved(weights: NDArray[Any], shape: Geometry, seen: Window) -> NDArray[Any]:
    """Of the even columns, (F, 4 C, rows, positions): every tap from where `column_quads` has it to where rule 2 does."""
    filters, deep, rows, positions = weights.shape
    taps = weights.reshape(filters, WIDE, -1, rows, positions).transpose(4, 1, 0, 2, 3).reshape(positions * WIDE, filters, -1, rows)
    start = WIDE * shape.before - shape.left
    made = np.zeros((seen.positions * WIDE, *taps.shape[1:]), weights.dtype)
    made[seen.at : seen.at + shape.columns] = taps[start : start + shape.columns]
    return made.reshape(seen.positions, WIDE, filters, -1, rows).transpose(2, 1, 3, 4, 0).reshape(filters, deep, rows, seen.positions)
