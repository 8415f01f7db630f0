"""Outliers moved from activations into weights, where a layer normalization is read by linear layers alone.

A transformer's normalized features have a few channels that are dozens of times as large as the others (Dettmers et al. 2022, "LLM.int8()"). All channels of
an activation share one step, so the others are told apart in a few steps only. Dividing a channel by a factor and multiplying its weights by it changes
no answer, and weights have steps to spare: SmoothQuant (Xiao et al. 2022).

1. The factor of a channel is the root of its largest activation over its largest weight, so that both lose the same share of their steps.
2. Factors are powers of two. Dividing by them is exact, so the float network gives the very same bits.
3. The normalization's scale and bias take the division. They must be constants, and every reader a linear layer with constant weights.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeport_export.quantization.macs import session_with_outputs
from edgeport_export.rewrites.graph import GraphEditor
from edgeport_export.rewrites.nodes import attributes
from edgeport_runtime.engine import Arrays

Exponents = Mapping[str, tuple[int, ...]]  # name of a normalization -> the power of two by which each of its channels is divided
LARGEST = 8  # exponent: more would leave nothing of the channel
SUFFIX = ".smooth"  # of a constant


def smoothable(editor: GraphEditor) -> list[onnx.NodeProto]:
    """Rule 3: the normalizations that can be smoothed."""
    found = []
    for node in editor.nodes:
        if node.op_type == "LayerNormalization" and node.output[0] not in editor.outputs and editor.are_constants(node.input[1:]):
            readers, scale = editor.readers.get(node.output[0], []), editor.array(node.input[1])
            if scale.ndim == 1 and readers and all(_is_linear(editor, reader, node.output[0], len(scale)) for reader in readers):
                found.append(node)
    return found


def _is_linear(editor: GraphEditor, node: onnx.NodeProto, value: str, channels: int) -> bool:
    if node.op_type not in ("MatMul", "Gemm") or node.input[0] != value or value in node.input[1:] or node.input[1] not in editor.constants:
        return False
    shape = tuple(editor.constants[node.input[1]].dims)
    return len(shape) == 2 and not attributes(node).get("transA", 0) and shape[_input_axis(node)] == channels


def _input_axis(node: onnx.NodeProto) -> int:
    """The axis of a linear layer's weights along which its inputs lie."""
    return 1 if attributes(node).get("transB", 0) else 0


def channel_exponents(model: onnx.ModelProto, images: Iterable[Arrays]) -> dict[str, tuple[int, ...]]:
    """Rules 1 and 2, from the largest activations that the images make. Normalizations whose channels are all alike are left out."""
    editor = GraphEditor(model)
    nodes = smoothable(editor)
    names = [node.output[0] for node in nodes]
    if not nodes:
        return {}
    session, largest = session_with_outputs(model, names), [np.zeros(editor.array(node.input[1]).shape) for node in nodes]
    for arrays in images:
        for peaks, value in zip(largest, session.run(names, arrays), strict=True):
            np.maximum(peaks, np.abs(value).reshape(-1, len(peaks)).max(axis=0, initial=0.0), out=peaks)
    found = {node.name: _exponents(peaks, _largest_weights(editor, node)) for node, peaks in zip(nodes, largest, strict=True)}
    return {name: each for name, each in found.items() if any(each)}


def _largest_weights(editor: GraphEditor, node: onnx.NodeProto) -> NDArray[np.float64]:
    """Of each channel, among all that read it."""
    peaks = [np.abs(editor.array(reader.input[1])).max(axis=1 - _input_axis(reader)) for reader in editor.readers[node.output[0]]]
    return np.asarray(np.stack(peaks).max(axis=0), np.float64)


def _exponents(activations: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[int, ...]:
    told = (activations > 0) & (weights > 0) & np.isfinite(activations)
    powers = np.log2(np.where(told, activations, 1.0) / np.where(told, weights, 1.0)) / 2
    middle = np.median(powers[told]) if told.any() else 0.0
    return tuple(np.where(told, np.clip(np.round(powers - middle), -LARGEST, LARGEST), 0).astype(int).tolist())


def smoothed(model: onnx.ModelProto, exponents: Exponents) -> onnx.ModelProto:
    """A copy in which each channel of these normalizations is divided by its power of two, and its weights are multiplied by it.

    A normalization that the graph lacks, or that cannot be smoothed in it, stays as it is.
    """
    editor = GraphEditor.of_copy(model)
    for node in [each for each in smoothable(editor) if each.name in exponents]:
        factors, made = np.exp2(np.array(exponents[node.name], np.float32)), editor.builder(node.name)
        scaled = [made.constant(f".{index}{SUFFIX}", editor.array(name) / factors) if name else "" for index, name in enumerate(node.input[1:])]
        editor.set_inputs(node, [node.input[0], *scaled])
        for reader in editor.readers[node.output[0]]:
            weights = editor.array(reader.input[1])
            along = factors[:, None] if _input_axis(reader) == 0 else factors[None]
            editor.set_input(reader, 1, editor.builder(reader.name).constant(f".weights{SUFFIX}", weights * along))
    editor.remove_unread()
    return editor.model
