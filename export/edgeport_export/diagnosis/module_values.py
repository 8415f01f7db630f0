"""Which value of a graph is which module's output.

Node names are module paths ("layer1.0.conv1/Conv"), so a module's output is the value that its nodes hand to others. Three things blur that:

- folding: a BatchNorm has no nodes, because it is in the weights of the convolution before it. The convolution's value is then the BatchNorm's output.
- repeats: a ReLU that is called three times has three nodes, or three times as many; they are told apart by their order.
- code outside of modules: what `forward` computes by itself belongs to no module, and cannot be matched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeport_export.network.module_hooks import describe_module
from edgeport_export.network.reference import TorchReference
from edgeport_export.rewrites.graph import GraphEditor
from edgeport_export.rewrites.names import is_wrapper_node
from edgeport_runtime.engine import Arrays

INPUT = "normalization"  # what stands for the network's own input, which edgeport's nodes make of the pixels
Key = tuple[str, int]  # a module's path, and which of its calls


@dataclass(frozen=True, kw_only=True)
class ModuleCall:
    """One call of one module whose output is a tensor. `module`: path and class. `source`: the call whose output is its input, if there is one.

    `is_new`: False if its output is the very tensor that a module inside of it gave. `is_identity`: whether its output is its input, as of a Dropout.
    """

    key: Key
    module: str
    shape: tuple[int, ...]
    source: Key | None
    is_new: bool
    is_identity: bool


@dataclass(frozen=True, kw_only=True)
class Match:
    """`candidates`: values of the graph, the last of equal shape is the module's output. `modules`: the module, and those folded into it after it."""

    key: Key
    node: str
    candidates: tuple[str, ...]
    modules: tuple[str, ...]


class _Recorder:
    """Hooks on every module of a network while it runs once. `wanted`: keys whose outputs are kept as arrays; None records the calls alone."""

    def __init__(self, reference: TorchReference, wanted: set[Key] | None) -> None:
        self.wanted = wanted
        self.calls: list[ModuleCall] = []
        self.arrays: dict[Key, NDArray[Any]] = {}
        self._counts: dict[str, int] = {}
        self._kept: list[Tensor] = []  # an id means something only as long as its tensor lives
        self._makers: dict[int, Key] = {}
        self._reference = reference

    def run(self, arrays: Arrays) -> None:
        handles = []
        for path, module in self._reference.network.named_modules():
            kind = describe_module(path, type(module).__name__)
            handles.append(module.register_forward_hook(self._hook(path, kind)))
        handles.append(self._reference.network.register_forward_pre_hook(self._given))
        try:
            self._reference.answer(arrays)
        finally:
            for handle in handles:
                handle.remove()

    def _given(self, _module: Any, inputs: Any) -> None:
        self._take((INPUT, 0), inputs[0])

    def _hook(self, path: str, kind: str) -> Any:
        def returned(_module: Any, inputs: Any, output: Any) -> None:
            number = self._counts[path] = self._counts.get(path, -1) + 1
            if not isinstance(output, Tensor):
                return
            key = path, number
            if self.wanted is None:
                first = next((each for each in inputs if isinstance(each, Tensor)), None)
                source = None if first is None else self._makers.get(id(first))
                is_new = id(output) not in self._makers or output is first  # what works in place gives its input, with other values
                facts: dict[str, Any] = {"shape": tuple(output.shape), "source": source, "is_new": is_new, "is_identity": output is first}
                self.calls.append(ModuleCall(key=key, module=kind, **facts))
                self._kept.append(output)
                if is_new:
                    self._makers[id(output)] = key
            self._take(key, output)

        return returned

    def _take(self, key: Key, tensor: Tensor) -> None:
        if self.wanted is not None and key in self.wanted:
            self.arrays[key] = np.array(tensor.detach().numpy())  # a copy: the next module may work in place


def module_calls(reference: TorchReference, arrays: Arrays) -> list[ModuleCall]:
    """Every module's calls in the order in which they end. Raises NetworkFailure."""
    recorder = _Recorder(reference, None)
    recorder.run(arrays)
    return recorder.calls


def module_outputs(reference: TorchReference, arrays: Arrays, wanted: Sequence[Key]) -> dict[Key, NDArray[Any]]:
    """The outputs of these calls, in the reference's own dtype; (INPUT, 0) is what the network is given. Raises NetworkFailure."""
    recorder = _Recorder(reference, set(wanted))
    with torch.inference_mode():
        recorder.run(arrays)
    return recorder.arrays


def matches(model: onnx.ModelProto, calls: Sequence[ModuleCall]) -> tuple[list[Match], list[str]]:
    """What can be matched, in the graph's order, and the modules that cannot."""
    editor = GraphEditor(model)
    nodes = _nodes_by_module(editor)
    counts: dict[str, int] = {}
    for call in calls:
        counts[call.key[0]] = max(counts.get(call.key[0], 0), call.key[1] + 1)
    found: dict[Key, Match] = {}
    folded: dict[Key, Key] = {}
    unmatched = []
    for call in calls:
        path, number = call.key
        own = _own_nodes(editor, nodes, path, is_only_call=counts[path] == 1)
        if not call.is_new:
            continue
        if own and len(own) % counts[path] == 0:
            size = len(own) // counts[path]
            part = own[number * size : (number + 1) * size]
            given = _handed_on(editor, part)
            if given:
                found[call.key] = Match(key=call.key, node=part[-1].name, candidates=given, modules=(call.module,))
                continue
        source = folded.get(call.source, call.source) if call.source is not None else None
        if not own and source in found and not any(each.startswith(path + ".") for each in nodes):
            before = found.pop(source)
            found[call.key] = Match(key=call.key, node=before.node, candidates=before.candidates, modules=(*before.modules, call.module))
            folded[call.source] = folded[source] = call.key  # type: ignore[index]  # a call that was folded has a source
        elif not call.is_identity:
            unmatched.append(call.module)
    return _in_order(editor, [*_input_match(editor), *found.values()]), unmatched


def _nodes_by_module(editor: GraphEditor) -> dict[str, list[onnx.NodeProto]]:
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in editor.nodes:
        path, slash, _ = node.name.rpartition("/")
        if slash and not is_wrapper_node(node.name):
            found.setdefault(path, []).append(node)
    return found


def _own_nodes(editor: GraphEditor, nodes: Mapping[str, list[onnx.NodeProto]], path: str, *, is_only_call: bool) -> list[onnx.NodeProto]:
    """The nodes of a module in the graph's order; those of its parts, too, if it is called once: then they need not be told apart."""
    if path not in nodes or not is_only_call:
        return nodes.get(path, [])
    names = {node.name for each, part in nodes.items() if each == path or each.startswith(path + ".") for node in part}
    return [node for node in editor.nodes if node.name in names]


def _handed_on(editor: GraphEditor, part: Sequence[onnx.NodeProto]) -> tuple[str, ...]:
    """Values that these nodes make and others read, or that are outputs of the graph."""
    own = {id(node) for node in part}
    made = [value for node in part for value in node.output if value]
    return tuple(value for value in made if value in editor.outputs or any(id(each) not in own for each in editor.readers.get(value, [])))


def _input_match(editor: GraphEditor) -> list[Match]:
    """The value that edgeport's nodes hand to the network."""
    for node in editor.nodes:
        for value in node.input if not is_wrapper_node(node.name) else ():
            maker = editor.producers.get(value)
            if maker is not None and is_wrapper_node(maker.name):
                return [Match(key=(INPUT, 0), node=maker.name, candidates=(value,), modules=(INPUT,))]
    return []


def _in_order(editor: GraphEditor, found: Sequence[Match]) -> list[Match]:
    places = {value: index for index, node in enumerate(editor.nodes) for value in node.output}
    return sorted(found, key=lambda match: places[match.candidates[-1]])
