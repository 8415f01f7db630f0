"""A network that is run piece by piece: what has been computed up to one place of the graph is kept, and the next piece starts from there.

Observing every product by a run from the pixels takes as many runs as there are products, each longer than the one before. Kept values make it one run
in all: rounding EfficientNet-Lite0's weights with 24 images takes 14 s instead of 34.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from edgeport_export.rewrites.graph import GraphEditor
from edgeport_runtime.device import SessionOptions, session_settings
from edgeport_runtime.engine import Arrays
from edgeport_runtime.installation import onnxruntime

MOST_BYTES = 2**29  # of kept values; batches beyond that are not kept


class Frontier:
    """What some batches have become at one place of a graph. Nodes behind it may be given other constants meanwhile.

    `values`: for each batch, by name, everything that nodes behind the place read from before it. In the beginning these are the graph's inputs.
    """

    def __init__(self, editor: GraphEditor, batches: Sequence[Arrays]) -> None:
        self.editor = editor
        self.values: list[dict[str, NDArray[Any]]] = [dict(each) for each in batches]
        self._passed: set[str] = set()  # first outputs of the nodes before the place

    def move_to(self, values: Iterable[str]) -> None:
        """Go on until these values, and all that they are made by, are computed. The last batches are dropped if they do not fit into MOST_BYTES."""
        self._passed |= {node.output[0] for node in self.editor.ancestors(*values)}
        nodes = self.editor.nodes
        behind = {name for node in nodes if node.output[0] not in self._passed for name in node.input}
        crossing = [name for node in nodes if node.output[0] in self._passed for name in node.output if name in behind]
        wanted = [name for name in crossing if name not in self.values[0]]
        for known, found in zip(self.values, self.run(wanted), strict=True):
            for name in set(known) - behind:
                del known[name]
            known.update(zip(wanted, found, strict=True))
        while len(self.values) > 1 and sum(array.nbytes for each in self.values for array in each.values()) > MOST_BYTES:
            self.values.pop()

    def run(self, values: Sequence[str]) -> list[list[NDArray[Any]]]:
        """These values for each batch, from what is kept."""
        return run_from(self.editor, self.values, values)


def run_from(editor: GraphEditor, batches: Sequence[Mapping[str, NDArray[Any]]], values: Sequence[str]) -> list[list[NDArray[Any]]]:
    """What `values` are for each batch of known values: the nodes in between are run."""
    made = [value for value in dict.fromkeys(values) if value not in batches[0]]
    if not made:
        return [[known[value] for value in values] for known in batches]
    session, read = _session_between(editor, batches[0], made)
    found = [dict(known) | dict(zip(made, session.run(made, {name: known[name] for name in read}), strict=True)) for known in batches]
    return [[np.asarray(each[value]) for value in values] for each in found]


def _session_between(editor: GraphEditor, known: Mapping[str, NDArray[Any]], values: Sequence[str]) -> tuple[Any, list[str]]:
    """A session of the nodes between what is known and `values`, and the names of what it reads."""
    nodes = editor.ancestors(*values, known=known)
    names = {name for node in nodes for name in node.input}
    read = [name for name in known if name in names]
    part = onnx.ModelProto(ir_version=editor.model.ir_version, opset_import=editor.model.opset_import)
    part.graph.name = "part"
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(each for each in editor.graph.initializer if each.name in names)
    for name in read:
        kind = helper.np_dtype_to_tensor_dtype(known[name].dtype)
        part.graph.input.append(helper.make_tensor_value_info(name, kind, [None] * known[name].ndim))
    part.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values)
    return session_of_pairs(part), read


def session_of_pairs(model: onnx.ModelProto) -> Any:
    """A session in which pairs round and all else runs in float: onnxruntime would round float weights between pairs, with one step for all rows."""
    ort = onnxruntime()
    settings = session_settings(ort, SessionOptions())
    settings.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
