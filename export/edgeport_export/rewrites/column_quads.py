"""A first convolution that moves on by two columns, or by whole patches, straight on the pixels, four of them at a time.

onnxruntime's integer convolution wants channels in fours, and a picture has three: a fourth plane costs two transpositions and two copies of the
picture. Four neighbouring pixels are twelve channels as they lie in memory, and nothing is moved. Where the convolution moves on by two, such a
position gives two neighbouring outputs, one behind the other. Measured on onnxruntime 1.31.1, two threads, 16x224x224x3, 64 filters of 7x7 by
steps of 2: 8.5 ms with a fourth channel, two pixels at a time; 5.8 ms so.

1. Applies where `pixel_convolution` does: to steps of 2 across, with explicit padding and no dilation, where a width of 4 n gives an even number of
   columns; and to kernels as wide as their step, which is a multiple of 4, without padding. Whole fours of outputs for a position, 16 at least.
2. Column t of a kernel with P columns of padding before it reads, for output o of a position's two, pixel p = 2 o + t - P, counted from the
   position's own four: pixel p mod 4 of position floor(p / 4). The same weights at other places, and zeros.
3. Pixels are dequantised as `pixel_convolution` does it (its rule 2); what is left of the mean, (Z - m_c) k_c, goes into the bias. Padding is a
   pixel of the mean's level then: the one thing that is not exact, by half a level at most, for levels are whole. Where all of them are Z the
   convolution pads by itself; elsewhere rows and columns of such pixels are put around the picture.
4. A width that is no multiple of 4 is filled up with such pixels, and what is too much is cut off behind. Where the contract has widths of both
   kinds, `width_branches` does it for those that need it.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgeport_runtime import Contract, Pixels

from .constants import drop_unread
from .nodes import Chain, attributes
from .pixel_convolution import REAL, first_convolution, scales, zero_and_step

QUADS = ".quads"  # suffix of a value that has the outputs of a position behind one another
PREFIX = "edgeport.quads."
BEHIND, APART = PREFIX + "behind", PREFIX + "apart"  # those values channels last, and the shape that takes them apart
WIDE = 4  # pixels
LEAST_OUTPUTS = 16  # of a position; less is padded to that


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How a convolution reads pixels in fours. `before`, `behind`: positions that it reads beside its own. `past`: positions of padding behind a
    picture whose width is a multiple of 4. `room`: columns of padding less those of the kernel. All others are the convolution's own."""

    outputs: int
    before: int
    behind: int
    past: int
    room: int
    columns: int
    left: int
    top: int
    bottom: int
    down: int
    step: int

    @property
    def pads(self) -> list[int]:
        return [self.top, self.before, self.bottom, self.past]


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """`pixels`: the range of the dequantised ones. `aliases`: for each new value the one whose range it has."""

    pixels: tuple[float, float]
    aliases: dict[str, str]
    geometry: Geometry


def column_quads(model: onnx.ModelProto, contract: Contract) -> Rewritten | None:
    """Rewrite the first convolution of `model` in place. None where rule 1 does not hold, and then nothing is changed."""
    graph, first = model.graph, contract.inputs[0]
    found = first_convolution(graph, first.name)
    if found is None or first.pixels is None:
        return None
    chain, convolution = found
    shape, (zero, step) = geometry(graph, convolution), zero_and_step(first.pixels)
    level = levels(first.pixels)
    if shape is None or level is None:
        return None
    ragged = 0 not in remainders(contract)
    made = Chain(graph, PREFIX)
    fours = made.constant("fours", [0, 0, -1, WIDE * len(level)])
    value = made.add("Reshape", [fill_up(made, first.name, level) if ragged else first.name, fours], "view")
    surrounded = any(shape.pads) and set(level.tolist()) != {zero}
    if surrounded:
        value = _surround(made, value, shape, level)
    value = made.add("Transpose", [value], "ready", perm=[0, 3, 1, 2])
    said = [made.constant("scale", np.array(step, np.float32)), made.constant("zero", np.array(zero, np.uint8))]
    made.add("DequantizeLinear", [value, *said], to=REAL)
    _put(graph, made.nodes, before=convolution)
    filters = _weights(graph, convolution, shape, scales(first.pixels), zero - 255 * np.array(first.pixels.mean), step)
    pads = [0, 0, 0, 0] if surrounded else shape.pads
    says = {"kernel_shape": filters.shape[2:], "strides": [shape.down, max(1, shape.step // WIDE)], "pads": pads}
    del convolution.attribute[:]
    convolution.attribute.extend(helper.make_attribute(key, each) for key, each in says.items())
    aliases = _take_apart(graph, convolution, shape, len(filters) // shape.outputs, first.name if ragged else "")
    for node in chain:
        graph.node.remove(node)
    drop_unread(graph)
    return Rewritten(pixels=(float(-zero * step), float((255 - zero) * step)), aliases=aliases, geometry=shape)


def geometry(graph: onnx.GraphProto, convolution: onnx.NodeProto) -> Geometry | None:
    """Rule 1; None where it does not hold."""
    dims = {each.name: each.dims for each in graph.initializer}
    if any(name not in dims for name in convolution.input[1:] if name):
        return None
    (filters, _, _, columns), said = dims[convolution.input[1]], attributes(convolution)
    top, left, bottom, right = said.get("pads", [0, 0, 0, 0])
    down, step = said.get("strides", [1, 1])
    plain = said.get("auto_pad", b"NOTSET") == b"NOTSET" and all(each == 1 for each in said.get("dilations", [1, 1]))
    patches = step % WIDE == 0 and columns == step and left == right == 0
    outputs = 1 if patches else 2
    behind = (columns - 1 - left + step * (outputs - 1)) // WIDE
    more = (left + right - columns) // 2 + 1  # columns that a width of 4 n gives, beyond 2 n
    past = 0 if patches else behind + more // 2
    fits = patches or (step == 2 and more % 2 == 0 and min(behind, past) >= 0)
    if not plain or not fits or outputs * filters < LEAST_OUTPUTS or outputs * filters % 4:
        return None
    own = {"columns": columns, "left": left, "top": top, "bottom": bottom, "down": down, "step": step}
    return Geometry(outputs=outputs, before=-(-left // WIDE), behind=behind, past=past, room=left + right - columns, **own)


def remainders(contract: Contract) -> set[int]:
    """By 4, of the widths that the pictures may have."""
    width = contract.inputs[0].shape[2]
    if isinstance(width, int):
        return {width % WIDE}
    limits = contract.axes[width]
    return {size % WIDE for size in range(limits.low, limits.high + 1, limits.step)}


def levels(pixels: Pixels) -> NDArray[np.uint8] | None:
    """Rule 3: the means' levels, one for each channel; None where they are none of a pixel."""
    found = np.round(255 * np.array(pixels.mean))
    return found.astype(np.uint8) if 0 <= found.min() <= found.max() <= 255 else None


def fill_up(made: Chain, pixels: str, level: NDArray[np.uint8]) -> str:
    """Rule 4, before: the picture (N, H, W, C) with as many columns behind it as its width lacks."""
    sides, width = made.add("Shape", [pixels], "sides", start=0, end=2), made.add("Shape", [pixels], "width", start=2, end=3)
    lacking = made.add("Mod", [made.add("Neg", [width], "minus"), made.constant("four", [WIDE])], "lacking")
    channels = made.add("Shape", [pixels], "channels", start=3)
    columns = made.add("Concat", [sides, lacking, channels], "columns", axis=0)
    return made.add("Concat", [pixels, made.add("Expand", [made.constant("level", level.reshape(1, 1, 1, -1)), columns], "fill")], "filled", axis=2)


def cut_off(made: Chain, pixels: str, value: str, shape: Geometry) -> str:
    """Rule 4, behind: the columns of `value` (N, H, W, C) that the picture's width gives."""
    moves = made.add("Add", [made.add("Shape", [pixels], "given", start=2, end=3), made.constant("room", [shape.room])], "moves")
    steps = made.add("Div", [moves, made.constant("step", [shape.step])], "steps")
    wanted = made.add("Add", [steps, made.constant("one", [1])], "wanted")
    return made.add("Slice", [value, made.constant("start", [0]), wanted, made.constant("axis", [2])], "cropped")


def _surround(made: Chain, value: str, shape: Geometry, level: NDArray[np.uint8]) -> str:
    """Rule 3: positions (N, H, W, C) with columns and rows of the means' levels around them."""
    pixels = made.constant("levels", np.tile(level, WIDE).reshape(1, 1, 1, -1))

    def repeated(name: str, count: int, before: str, behind: str) -> str:
        size = made.add("Concat", [each for each in (before, made.constant(f"{name}.count", [count]), behind) if each], f"{name}.shape", axis=0)
        return made.add("Expand", [pixels, size], name)

    if shape.before or shape.past:
        high, deep = made.add("Shape", [value], "high", start=0, end=2), made.add("Shape", [value], "deep", start=3)
        sides = [repeated(name, count, high, deep) if count else "" for name, count in (("left", shape.before), ("right", shape.past))]
        value = made.add("Concat", [each for each in (sides[0], value, sides[1]) if each], "wide", axis=2)
    if shape.top or shape.bottom:
        batch, row = made.add("Shape", [value], "batch", start=0, end=1), made.add("Shape", [value], "row", start=2)
        sides = [repeated(name, count, batch, row) if count else "" for name, count in (("top", shape.top), ("bottom", shape.bottom))]
        value = made.add("Concat", [each for each in (sides[0], value, sides[1]) if each], "high_and_wide", axis=1)
    return value


def _weights(
    graph: onnx.GraphProto, convolution: onnx.NodeProto, shape: Geometry, scale: NDArray[np.float64], rest: NDArray[np.float64], step: float
) -> NDArray[np.float32]:
    """Rules 2 and 3. `scale`: k_c; `rest`: Z - m_c; `step`: of the dequantised pixels."""
    constants = {each.name: numpy_helper.to_array(each).astype(np.float64) for each in graph.initializer if each.name in convolution.input[1:]}
    old = constants[convolution.input[1]]
    filters, channels, rows, columns = old.shape
    bias = constants[convolution.input[2]] if len(convolution.input) > 2 and convolution.input[2] else np.zeros(filters)
    bias = bias + np.einsum("fcrt,c->f", old, scale * rest)
    new = np.zeros((shape.outputs, filters, WIDE, channels, rows, shape.before + shape.behind + 1))
    for output, column in np.ndindex(shape.outputs, columns):
        position, pixel = divmod(shape.step * output + column - shape.left, WIDE)
        new[output, :, pixel, :, :, shape.before + position] = old[..., column] * (scale / step)[:, None]
    name = convolution.input[1] + QUADS
    made = new.reshape(shape.outputs * filters, WIDE * channels, rows, -1).astype(np.float32)
    values = {name: made, name + ".bias": np.tile(bias, shape.outputs).astype(np.float32)}
    graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in values.items())
    convolution.input[:] = [REAL, *values]
    return made


def _take_apart(graph: onnx.GraphProto, convolution: onnx.NodeProto, shape: Geometry, filters: int, pixels: str) -> dict[str, str]:
    """The outputs of each position in their place, behind the activation where there is one; `pixels`: cut off as its width says."""
    out, last = convolution.output[0], convolution
    convolution.output[0], aliases = out + QUADS, {out + QUADS: out}
    readers = [node for node in graph.node if out in node.input]
    constants = {each.name for each in graph.initializer}
    wanted = out in {each.name for each in graph.output}
    if len(readers) == 1 and not wanted and readers[0].op_type in ("Relu", "Clip") and {each for each in readers[0].input[1:] if each} <= constants:
        last = readers[0]
        out, last.input[0] = last.output[0], out + QUADS
        last.output[0] = out + QUADS
        aliases[out + QUADS] = out
    made = Chain(graph, PREFIX)
    made.add("Transpose", [out + QUADS], to=BEHIND, perm=[0, 2, 3, 1])
    graph.initializer.append(numpy_helper.from_array(np.array([0, 0, -1, filters]), APART))
    value = made.add("Reshape", [BEHIND, APART], "map")
    value = cut_off(made, pixels, value, shape) if pixels else value
    made.add("Transpose", [value], to=out, perm=[0, 3, 1, 2])
    _put(graph, made.nodes, behind=last)
    return aliases


def _put(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], before: onnx.NodeProto | None = None, behind: onnx.NodeProto | None = None) -> None:
    place = list(graph.node).index(before) if before is not None else list(graph.node).index(behind) + 1
    for node in reversed(nodes):
        graph.node.insert(place, node)
