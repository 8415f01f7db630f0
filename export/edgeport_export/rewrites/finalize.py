"""The last step of every variant: from a graph with all that was traced to the bytes of a file."""

import onnx

from edgeport_export.errors import ExportError
from edgeport_runtime import Contract
from edgeport_runtime.contract import METADATA_KEY, NARROW_KEY
from edgeport_runtime.outline import read_outline

from .float_graph.exact_kernels import exact_kernels
from .float_graph.precise_mean import precise_mean
from .float_graph.precise_norm import precise_norm
from .float_graph.prelu import prelu
from .float_graph.stored_constants import stored_constants
from .graph import GraphEditor
from .names import LEVELS_SUFFIX


def finalize_fp32(model: onnx.ModelProto, contract: Contract) -> bytes:
    """The fp32 variant's bytes: functions as exact as PyTorch's, which the graph that int8 is made from does not need."""
    editor = GraphEditor.of_copy(model)
    exact_kernels(editor, contract)
    precise_norm(editor, contract)
    return finalize(editor.model, contract)


def finalize(model: onnx.ModelProto, contract: Contract, *, check: bool = True) -> bytes:
    """A variant's bytes: the contract's outputs alone, and the contract itself in the metadata. `model` is left as it is.

    `check`: run ONNX's full checker, which raises onnx.checker.ValidationError, and the one of the runtime, which raises ExportError. The int8 search leaves
    them out for its candidates.
    """
    editor = GraphEditor.of_copy(model)
    for value in sorted(editor.outputs):
        if value.endswith(LEVELS_SUFFIX):
            editor.remove_output(value)
    precise_mean(editor, contract)
    prelu(editor, contract)
    stored_constants(editor)
    kept = {each.key: each.value for each in model.metadata_props if each.key == NARROW_KEY}
    onnx.helper.set_model_props(editor.model, {METADATA_KEY: contract.to_json(), **kept})
    if check:
        onnx.checker.check_model(editor.model, full_check=True)
    made = bytes(editor.model.SerializeToString(deterministic=True))
    fault = read_outline(made).fault if check else None
    if fault is not None:
        raise ExportError(f"the graph holds {fault}, which the runtime would refuse: compute it once in the network's __init__, and keep it as a buffer")
    return made
