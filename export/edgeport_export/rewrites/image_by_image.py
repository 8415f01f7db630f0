"""A batch's first convolution and the pool behind it image by image, and even and odd columns apart.

What a first convolution gives is the largest map of a network: 0.8 MB for an image of ResNet18. Of eight images at once it has left the core's own
cache when the pool reads it, and the pool takes twice as long. And of the two columns that `column_quads` computes at a position each pays for the
pixels of both: 252 products where 147 count. Even and odd columns are one convolution with the same weights, of pixels that are two columns apart,
with 168 products; to put them beside one another is a copy, which pays while it stays in the core's own cache. Exact: no number changes. Measured
with onnxruntime 1.32.0, ResNet18 at 224x224: 16 images, eight on each of two threads, take 3 % less.

Applies to a graph with its Q/DQ pairs, in which `column_quads` has given every position two columns.

1. There are at least `FILTERS`: onnxruntime computes so many at a time, and with fewer both columns together are faster. At the contract's own size
   an image's map has `LEAST_BYTES`. Its integers go to a MaxPool alone, which keeps their scale. The contract has batches.
2. Column t of a kernel with P columns of padding reads, for the even column 2 q, pixel 4 q + t - P, and for the odd one the second pixel behind
   that. With P + s pixels before the picture the even ones are at t + s of position q and those behind it, and with P + s - 2 the odd ones are. As
   many positions as the kernel is wide are read, s is the least for which both exist, and no pixel of the picture is left over. The pixels around
   it are those of `column_quads`, rule 3.
3. A Scan does that for one image after the other; what is the same for all of them is made outside. An image alone goes as before, in the other
   branch of an If: where two threads compute it, the copy takes from the one what is in the other's cache. So does a width that is no multiple of 4,
   as in `width_branches`.
4. Each branch ends with the pool, because onnxruntime changes a pool's layout only beside an integer convolution (4 ms instead of 0.05), and has
   constants of its own, as in `width_branches`, rule 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeport_runtime import Contract, Pixels
from edgeport_runtime.contract import Input

from .column_quads import WIDE, Geometry, levels, remainders
from .constants import drop_unread_values
from .nodes import Chain, ancestors
from .pixel_convolution import REAL
from .width_branches import RAGGED, WHOLE, add_ragged, by_width

LEAST_BYTES = 1 << 19  # from a half of that on 8 images took 4 % less on one thread, and 4 % more where two threads share each operator
FILTERS = 64
PREFIX = "edgeport.images."
UINT8 = TensorProto.UINT8
LAYOUT = ("Transpose", "Reshape", "Slice")  # puts the convolution's columns in their place
RANK = 5  # of the maps that a Scan gives, (N, 1, H, W, F)
COLUMNS = 2  # of a position, behind one another

Constants = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Stem:
    """The nodes that dequantise the pixels, the weights and the bias, multiply, make integers, pool, and make integers again; and their constants."""

    pixels: onnx.NodeProto
    weights: Sequence[onnx.NodeProto]
    convolution: onnx.NodeProto
    rounded: onnx.NodeProto
    pool: onnx.NodeProto
    pooled: onnx.NodeProto
    constants: Constants

    @property
    def filters(self) -> int:
        """Of one column."""
        return len(self.constants[self.weights[0].input[0]]) // COLUMNS

    @property
    def rows(self) -> int:
        """Of the kernel."""
        return int(self.constants[self.weights[0].input[0]].shape[2])


@dataclass(frozen=True, kw_only=True)
class Window:
    """Rule 2, in pixels: of `positions`, tap t is at t + `at`. `before`, `behind`: of the picture, for even and for odd columns."""

    positions: int
    at: int
    before: tuple[int, int]
    behind: tuple[int, int]


def large_stem(model: onnx.ModelProto, contract: Contract, shape: Geometry) -> Stem | None:
    """What rules 1 and 2 apply to, if anything. `shape`: of the first convolution."""
    first, stem = contract.inputs[0], _stem(model.graph)
    if stem is None or first.pixels is None or window(shape) is None or 0 not in remainders(contract):
        return None
    batch = first.shape[0]
    many = batch > 1 if isinstance(batch, int) else contract.axes[batch].high > 1
    return stem if many and _is_large(first.pixels, shape, stem) else None


def image_by_image(model: onnx.ModelProto, contract: Contract, shape: Geometry, stem: Stem) -> None:
    """Rewrite `model` in place. `shape`: of its first convolution."""
    graph, first, value = model.graph, contract.inputs[0], stem.pooled.output[0]
    made = Chain(graph, PREFIX)
    if len(remainders(contract)) == 1:
        maps = _by_batch(made, graph, first, shape, stem)
    else:
        whole, ragged = Chain(onnx.GraphProto(), PREFIX + WHOLE), Chain(onnx.GraphProto(), PREFIX + RAGGED)
        _by_batch(whole, graph, first, shape, stem)
        columns = add_ragged(ragged, graph, stem.rounded.output[0], first, shape)
        pooled = ragged.again(stem.pool, [ragged.add("Transpose", [columns], "planes", perm=[0, 3, 1, 2])], "pooled")
        _as_scanned(ragged, pooled)
        maps = by_width(made, first.name, whole, ragged, UINT8, RANK)
    made.add("Transpose", [made.add("Squeeze", [maps, made.constant("single", [1])], "map")], to=value, perm=[0, 3, 1, 2])
    graph.node.remove(stem.pooled)
    left = list(graph.node)
    del graph.node[:]
    graph.node.extend([*made.nodes, *left])
    drop_unread_values(graph, stem.pool.output[0])


def _by_batch(made: Chain, graph: onnx.GraphProto, first: Input, shape: Geometry, stem: Stem) -> str:
    """Rule 3, for widths that are a multiple of 4: (N, 1, H, W, F)."""
    one_by_one, at_once = Chain(onnx.GraphProto(), f"{made.prefix}one."), Chain(onnx.GraphProto(), f"{made.prefix}all.")
    _Scan(one_by_one, first, shape, stem).add()
    pooled = stem.pooled.output[0]
    _as_scanned(at_once, at_once.copy(graph, ancestors(graph, pooled), {})[pooled])
    many = made.add("Greater", [made.add("Shape", [first.name], "images", start=0, end=1), made.constant("alone", [1])], "many")
    branches = {"then_branch": one_by_one.as_branch("one_by_one", UINT8, RANK), "else_branch": at_once.as_branch("at_once", UINT8, RANK)}
    return made.add("If", [many], "maps", **branches)


def _as_scanned(made: Chain, pooled: str) -> None:
    """(N, F, H, W) as a Scan gives it."""
    last = made.add("Transpose", [pooled], "last", perm=[0, 2, 3, 1])
    made.add("Unsqueeze", [last, made.constant("single", [1])], "scanned")


def window(shape: Geometry) -> Window | None:
    """Rule 2; None where it does not hold."""
    positions, at = -(-shape.columns // WIDE), max(0, 2 - shape.left)
    filled = WIDE * (positions - 1) + 2 * (shape.room // 2 + 1)  # pixels around the picture
    before = shape.left + at, shape.left + at - 2
    behind = filled - before[0], filled - before[1]
    fits = shape.outputs == COLUMNS and at + shape.columns <= WIDE * positions and min(behind) >= 0
    return Window(positions=positions, at=at, before=before, behind=behind) if fits else None


def _stem(graph: onnx.GraphProto) -> Stem | None:
    """Rule 1, but for sizes."""
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
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
    return Stem(pixels=pixels, weights=weights, convolution=convolution, rounded=first, pool=node, pooled=pooled, constants=constants)


def _only_reader(graph: onnx.GraphProto, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """Of all that the node makes."""
    readers = [other for other in graph.node if set(node.output) & set(other.input)]
    return readers[0] if len(readers) == 1 and not set(node.output) & {each.name for each in graph.output} else None


def _rounds_alike(node: onnx.NodeProto, other: onnx.NodeProto, constants: Constants) -> bool:
    """Whether the node quantises or dequantises with the other's scale and zero."""
    rounds = node.op_type in ("QuantizeLinear", "DequantizeLinear")
    return rounds and all(np.array_equal(constants[a], constants[b]) for a, b in zip(node.input[1:], other.input[1:], strict=True))


def _is_large(pixels: Pixels, shape: Geometry, stem: Stem) -> bool:
    """Rule 1, of one picture of its own size."""
    rows = (pixels.height + shape.top + shape.bottom - stem.rows) // shape.down + 1
    columns = (pixels.width + shape.room) // shape.step + 1
    return stem.filters >= FILTERS and stem.filters * rows * columns >= LEAST_BYTES


class _Scan:
    """Rule 3, in parts. `made`: what is made once, for all images; `body`: for each of them."""

    def __init__(self, made: Chain, first: Input, shape: Geometry, stem: Stem) -> None:
        level, seen = None if first.pixels is None else levels(first.pixels), window(shape)
        assert level is not None and seen is not None  # or `large_stem` had found none
        self.made, self.body = made, Chain(onnx.GraphProto(), f"{made.prefix}each.")
        self.shape, self.stem, self.seen, self.level = shape, stem, seen, level
        self.pixels = made.add("Reshape", [first.name, made.constant("rows", [0, 0, -1])], "pixels")
        self.high, self.wide = (made.add("Shape", [first.name], name, start=axis, end=axis + 1) for axis, name in ((1, "high"), (2, "wide")))
        self.tall = made.add("Add", [self.high, made.constant("around", [shape.top + shape.bottom])], "tall")

    def add(self) -> None:
        """The pool's integers of all images, (N, 1, H, W, F), made last."""
        body = self.body
        value = self._columns(self._picture())
        value = body.add("Transpose", [value], "beside", perm=[2, 3, 0, 1])
        value = body.add("Reshape", [value, self._map()], "map")
        value = self.body.again(self.stem.pool, [body.add("Transpose", [value], "planes", perm=[0, 3, 1, 2])], "pooled")
        value = body.add("Transpose", [value], "given", perm=[0, 2, 3, 1])
        inputs = [helper.make_tensor_value_info(self._row, UINT8, [None, None])]
        outputs = [helper.make_tensor_value_info(value, UINT8, [1, None, None, self.stem.filters])]
        image = helper.make_graph(body.nodes, "image", inputs, outputs, initializer=body.graph.initializer)
        self.made.add("Scan", [self.pixels], "scanned", body=image, num_scan_inputs=1)

    @property
    def _row(self) -> str:
        """The picture row by row, (H, W C)."""
        return f"{self.body.prefix}pixels"

    def _picture(self) -> str:
        """For even and for odd columns, each with what is around it: (2, 4 C, rows, positions)."""
        made, body, seen = self.made, self.body, self.seen
        around = {count: self._beside(count) for count in sorted({*seen.before, *seen.behind})}
        ends = {count: self._above(count) for count in sorted({self.shape.top, self.shape.bottom})}
        parts = []
        for name, before, behind in zip(("even", "odd"), seen.before, seen.behind, strict=True):
            rows = body.add("Concat", [*around[before], self._row, *around[behind]], name, axis=1)
            parts += [*ends[self.shape.top], rows, *ends[self.shape.bottom]]
        size = [made.constant("twice", [COLUMNS]), self.tall, made.constant("fours", [-1, WIDE * len(self.level)])]
        value = body.add("Reshape", [body.add("Concat", parts, "both", axis=0), made.add("Concat", size, "size", axis=0)], "view")
        return body.add("Transpose", [value], "ready", perm=[0, 3, 1, 2])

    def _beside(self, count: int) -> list[str]:
        """So many columns of the means' level, (H, count C); empty where there are none."""
        if not count:
            return []
        pixels = self.made.constant(f"columns.{count}", np.tile(self.level, count).reshape(1, -1))
        size = self.made.add("Concat", [self.high, self.made.constant(f"columns.{count}.one", [1])], f"columns.{count}.size", axis=0)
        return [self.made.add("Expand", [pixels, size], f"beside.{count}")]

    def _above(self, count: int) -> list[str]:
        """So many rows of the means' level, (count, (W + around it) C); empty where there are none."""
        if not count:
            return []
        made = self.made
        across = made.add("Add", [self.wide, made.constant(f"rows.{count}.beside", [self.seen.before[0] + self.seen.behind[0]])], f"rows.{count}.across")
        pixels = made.constant(f"rows.{count}", np.tile(self.level, (count, 1, 1)))
        size = made.add("Concat", [made.constant(f"rows.{count}.one", [1]), across, made.constant(f"rows.{count}.deep", [1])], f"rows.{count}.size", axis=0)
        return [
            made.add(
                "Reshape", [made.add("Expand", [pixels, size], f"above.{count}.pixels"), made.constant(f"rows.{count}.flat", [count, -1])], f"above.{count}"
            )
        ]

    def _columns(self, picture: str) -> str:
        """The convolution's integers, (2, F, rows, columns / 2)."""
        stem, constants = self.stem, self.stem.constants
        read = [self.body.again(stem.pixels, [picture, *self._own(stem.pixels.input[1:], constants)], "real")]
        for index, node in enumerate(stem.weights):
            values = {name: constants[name][: stem.filters] for name in node.input}  # behind them are the odd columns'
            if not index:
                values[node.input[0]] = moved(values[node.input[0]], self.shape, self.seen)
            read.append(self.body.again(node, self._own(node.input, values), f"real.{index}"))
        value = self.body.again(stem.convolution, read, "sums")
        convolution = self.body.nodes[-1]
        del convolution.attribute[:]
        says = {"kernel_shape": (stem.rows, self.seen.positions), "strides": (self.shape.down, 1)}
        convolution.attribute.extend(helper.make_attribute(key, each) for key, each in says.items())
        return self.body.again(stem.rounded, [value, *self._own(stem.rounded.input[1:], constants)], "integers")

    def _map(self) -> str:
        """The size of the convolution's map, (1, rows, columns, F), with -1 for the columns."""
        made = self.made
        moves = made.add("Sub", [self.tall, made.constant("kernel", [self.stem.rows])], "moves")
        steps = made.add("Div", [moves, made.constant("down", [self.shape.down])], "steps")
        rows = made.add("Add", [steps, made.constant("first", [1])], "map.rows")
        return made.add("Concat", [made.constant("image", [1]), rows, made.constant("together", [-1, self.stem.filters])], "map.size", axis=0)

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
