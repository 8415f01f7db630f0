"""A first convolution with stride 2 across, or with whole patches, directly on the pixels, four of them at a time (space-to-depth stem).

onnxruntime's integer convolution wants channels in fours, and an image has three. A fourth plane costs two transpositions and two copies of the
image. Four neighboring pixels are twelve channels as they lie in memory, and nothing is moved. With stride 2, such a position gives two
neighboring outputs, one after the other. Measured on onnxruntime 1.31.1, two threads, 16x224x224x3, 64 filters of 7x7 with stride 2: 8.5 ms
with a fourth channel, two pixels at a time; 5.8 ms so.

The pixels of a row, in fours, and what the two outputs of position 1 read with a kernel of 7 and padding 3:

    pixels      0  1  2  3 | 4  5  6  7 | 8  9 10 11
    output 2       x  x  x   x  x  x  x
    output 3             x   x  x  x  x   x  x

1. Applies under the conditions of `pixel_convolution`. Stride 2 across, with explicit padding and no dilation, if a width of 4 n gives an
   even number of columns. Or kernels as wide as their stride, which is a multiple of 4, without padding. A position gives whole fours of
   outputs, 16 at least.
2. Let P be the columns of padding, t a column of the kernel, and o one of a position's two outputs. It reads pixel p = 2 o + t - P, counted
   from the position's own four. That is pixel p mod 4 of position floor(p / 4). The weights are the same at other places, and zeros.
3. Pixels are dequantized as in `pixel_convolution`, rule 2. The rest of the mean, (Z - m_c) k_c, goes into the bias. Padding is then a pixel of
   the mean's level. This alone is not exact, by half a level at most, for levels are whole. If all of them are Z, the convolution pads by
   itself; otherwise rows and columns of such pixels are put around the image.
4. A width that is no multiple of 4 is filled up with such pixels, and the excess is cut off afterwards. If the contract has widths of both
   kinds, `width_branches` does it for those that need it.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.nodes import NodeBuilder, attributes
from edgeport_runtime import Contract, Pixels

from .context import Int8Context
from .pixel_convolution import DEQUANTIZED, dequantized_range, first_convolution, scales, zero_and_scale

QUADS = ".quads"  # suffix of a value that has the outputs of a position one after another
PREFIX = "edgeport.quads."
CHANNELS_LAST, SPLIT = PREFIX + "behind", PREFIX + "apart"  # a position's outputs one after another, and the shape that separates them
FOUR = 4  # pixels
LEAST_OUTPUTS = 16  # of a position; less is padded to that


@dataclass(frozen=True, kw_only=True)
class QuadStem:
    """A first convolution that reads four pixels at a time. All lengths are counted across the image.

    `outputs`: neighboring outputs that one position gives. `before`, `after`: positions that the kernel reads beside its own.
    `past`: positions of padding to the right of an image whose width is a multiple of 4. `slack`: columns of padding minus kernel width.
    `top`, `left`, `bottom`, `strides` (down, across): of the convolution as it was.
    """

    outputs: int
    before: int
    after: int
    past: int
    slack: int
    top: int
    left: int
    bottom: int
    strides: tuple[int, int]

    @property
    def pads(self) -> list[int]:
        """Padding as ONNX's Conv takes it: top, left, bottom, right, in positions across."""
        return [self.top, self.before, self.bottom, self.past]


def column_quads(editor: GraphEditor, context: Int8Context) -> PassResult:
    """Rewrite the first convolution if it runs as integers. Nothing is changed if rule 1 does not hold."""
    found, pixels = first_convolution(editor, context), context.pixels
    if found is None or pixels is None:
        return PassResult()
    normalization, convolution = found
    stem, level = quad_stem(editor, convolution), mean_levels(pixels)
    if stem is None or level is None:
        return PassResult()
    ragged = context.contract.inputs[0].name if 0 not in remainders(context.contract) else ""
    surrounded = any(stem.pads) and set(level.tolist()) != {zero_and_scale(pixels)[0]}
    editor.insert_before(convolution, _quads(editor, context, stem, level, surrounded))
    filters = _give_weights(editor, convolution, stem, pixels)
    kernel, strides = editor.constants[convolution.input[1]].dims[2:], [stem.strides[0], max(1, stem.strides[1] // FOUR)]
    editor.set_attributes(convolution, {"kernel_shape": kernel, "strides": strides, "pads": [0, 0, 0, 0] if surrounded else stem.pads})
    same = _split_outputs(editor, convolution, stem, filters, ragged)
    editor.remove_unread(normalization[0].output)
    ranges = {DEQUANTIZED: dequantized_range(pixels), **{value: context.ranges[other] for value, other in same.items()}}
    return PassResult(changed=1, ranges=ranges, facts=(stem,))


def quad_stem(editor: GraphEditor, convolution: onnx.NodeProto) -> QuadStem | None:
    """Rule 1; None if it does not hold."""
    if not editor.are_constants(convolution.input[1:]):
        return None
    (filters, _, _, width), found = editor.constants[convolution.input[1]].dims, attributes(convolution)
    top, left, bottom, right = found.get("pads", [0, 0, 0, 0])
    down, across = found.get("strides", [1, 1])
    plain = found.get("auto_pad", b"NOTSET") == b"NOTSET" and all(each == 1 for each in found.get("dilations", [1, 1]))
    patches = across % FOUR == 0 and width == across and left == right == 0
    outputs, slack = 1 if patches else 2, left + right - width
    after = (width - 1 - left + across * (outputs - 1)) // FOUR
    more = slack // 2 + 1  # columns that a width of 4 n gives, beyond 2 n
    past = 0 if patches else after + more // 2
    fits = patches or (across == 2 and more % 2 == 0 and min(after, past) >= 0)
    if not plain or not fits or outputs * filters < LEAST_OUTPUTS or outputs * filters % 4:
        return None
    lengths = {"before": -(-left // FOUR), "after": after, "past": past, "slack": slack}
    return QuadStem(outputs=outputs, **lengths, top=top, left=left, bottom=bottom, strides=(down, across))


def remainders(contract: Contract) -> set[int]:
    """By 4, of the widths that the images may have."""
    width = contract.inputs[0].shape[2]
    if isinstance(width, int):
        return {width % FOUR}
    sizes = contract.axes[width]
    return {size % FOUR for size in range(sizes.low, sizes.high + 1, sizes.step)}


def mean_levels(pixels: Pixels) -> NDArray[np.uint8] | None:
    """Rule 3: the means' levels, one for each channel; None if they are outside 0..255."""
    found = np.round(255 * np.array(pixels.mean))
    return found.astype(np.uint8) if 0 <= found.min() <= found.max() <= 255 else None


def fill_up(made: NodeBuilder, pixels: str, level: NDArray[np.uint8]) -> str:
    """Rule 4: the image (N, H, W, C) with as many columns after it as its width lacks."""
    sides, width = made.add("Shape", [pixels], "sides", start=0, end=2), made.add("Shape", [pixels], "width", start=2, end=3)
    lacking = made.add("Mod", [made.add("Neg", [width], "minus"), made.constant("four", [FOUR])], "lacking")
    channels = made.add("Shape", [pixels], "channels", start=3)
    columns = made.add("Concat", [sides, lacking, channels], "columns", axis=0)
    return made.add("Concat", [pixels, made.add("Expand", [made.constant("level", level.reshape(1, 1, 1, -1)), columns], "fill")], "filled", axis=2)


def cut_off(made: NodeBuilder, pixels: str, value: str, stem: QuadStem) -> str:
    """Rule 4: the columns of `value` (N, H, W, C) that the image's own width gives."""
    moves = made.add("Add", [made.add("Shape", [pixels], "given", start=2, end=3), made.constant("slack", [stem.slack])], "moves")
    steps = made.add("Div", [moves, made.constant("step", [stem.strides[1]])], "steps")
    wanted = made.add("Add", [steps, made.constant("one", [1])], "wanted")
    return made.add("Slice", [value, made.constant("start", [0]), wanted, made.constant("axis", [2])], "cropped")


def _quads(editor: GraphEditor, context: Int8Context, stem: QuadStem, level: NDArray[np.uint8], surrounded: bool) -> list[onnx.NodeProto]:
    """The pixels in fours, dequantized; with padding around them if they are to be `surrounded`."""
    pixels, source, made = context.contract.pixels, context.contract.inputs[0].name, editor.builder(PREFIX)
    zero, pixel_scale = zero_and_scale(pixels)
    fours = made.constant("fours", [0, 0, -1, FOUR * len(level)])
    value = made.add("Reshape", [fill_up(made, source, level) if 0 not in remainders(context.contract) else source, fours], "view")
    if surrounded:
        value = _surround(made, value, stem, level)
    value = made.add("Transpose", [value], "ready", perm=[0, 3, 1, 2])
    scale = [made.constant("scale", np.array(pixel_scale, np.float32)), made.constant("zero", np.array(zero, np.uint8))]
    made.add("DequantizeLinear", [value, *scale], into=DEQUANTIZED)
    return made.nodes


def _surround(made: NodeBuilder, value: str, stem: QuadStem, level: NDArray[np.uint8]) -> str:
    """Rule 3: positions (N, H, W, C) with columns and rows of the means' levels around them."""
    pixels = made.constant("levels", np.tile(level, FOUR).reshape(1, 1, 1, -1))

    def repeated(name: str, count: int, before: str, after: str) -> str:
        size = made.add("Concat", [each for each in (before, made.constant(f"{name}.count", [count]), after) if each], f"{name}.shape", axis=0)
        return made.add("Expand", [pixels, size], name)

    if stem.before or stem.past:
        high, deep = made.add("Shape", [value], "high", start=0, end=2), made.add("Shape", [value], "deep", start=3)
        sides = [repeated(name, count, high, deep) if count else "" for name, count in (("left", stem.before), ("right", stem.past))]
        value = made.add("Concat", [each for each in (sides[0], value, sides[1]) if each], "wide", axis=2)
    if stem.top or stem.bottom:
        batch, row = made.add("Shape", [value], "batch", start=0, end=1), made.add("Shape", [value], "row", start=2)
        sides = [repeated(name, count, batch, row) if count else "" for name, count in (("top", stem.top), ("bottom", stem.bottom))]
        value = made.add("Concat", [each for each in (sides[0], value, sides[1]) if each], "high_and_wide", axis=1)
    return value


def _give_weights(editor: GraphEditor, convolution: onnx.NodeProto, stem: QuadStem, pixels: Pixels) -> int:
    """Rules 2 and 3: let the convolution read the fours with its weights at their places. Returns its number of filters."""
    (zero, pixel_scale), scale = zero_and_scale(pixels), scales(pixels)
    old = editor.array(convolution.input[1]).astype(np.float64)
    filters, channels, rows, columns = old.shape
    bias = editor.array(convolution.input[2]).astype(np.float64) if len(convolution.input) > 2 and convolution.input[2] else np.zeros(filters)
    bias = bias + np.einsum("fcrt,c->f", old, scale * (zero - 255 * np.array(pixels.mean)))
    new = np.zeros((stem.outputs, filters, FOUR, channels, rows, stem.before + stem.after + 1))
    for output, column in np.ndindex(stem.outputs, columns):
        position, pixel = divmod(stem.strides[1] * output + column - stem.left, FOUR)
        new[output, :, pixel, :, :, stem.before + position] = old[..., column] * (scale / pixel_scale)[:, None]
    made = editor.builder(convolution.input[1] + QUADS)
    weights = made.constant("", new.reshape(stem.outputs * filters, FOUR * channels, rows, -1).astype(np.float32))
    biases = made.constant(".bias", np.tile(bias, stem.outputs).astype(np.float32))
    editor.set_inputs(convolution, [DEQUANTIZED, weights, biases])
    return int(filters)


def _split_outputs(editor: GraphEditor, convolution: onnx.NodeProto, stem: QuadStem, filters: int, ragged: str) -> dict[str, str]:
    """Put each position's outputs in their place, after the activation if there is one; cut off to the width of `ragged`, if it is named.

    Returns, for each new value, the one whose range it has.
    """
    output, last = convolution.output[0], convolution
    reader = editor.only_reader(output)
    editor.set_output(convolution, output + QUADS)
    same = {output + QUADS: output}
    if reader is not None and reader.op_type in ("Relu", "Clip") and editor.are_constants(reader.input[1:]):
        editor.set_input(reader, 0, output + QUADS)
        output, last = reader.output[0], reader
        editor.set_output(last, output + QUADS)
        same[output + QUADS] = output
    made = editor.builder(PREFIX)
    turned = made.add("Transpose", [output + QUADS], into=CHANNELS_LAST, perm=[0, 2, 3, 1])
    split = made.constant("apart", [0, 0, -1, filters])
    value = made.add("Reshape", [turned, split], "map")
    value = cut_off(made, ragged, value, stem) if ragged else value
    made.add("Transpose", [value], into=output, perm=[0, 3, 1, 2])
    editor.insert_after(last, made.nodes)
    return same
