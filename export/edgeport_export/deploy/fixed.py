"""A copy at one size, for compilers that take no other: CoreML, NPUs, TensorRT. onnxruntime folds all that depended on the sizes."""

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeport_export.errors import ExportError, ParityError
from edgeport_export.network.contracts import at_size
from edgeport_export.rewrites.graph import GraphEditor
from edgeport_runtime import Bundle, Contract, InputError, SessionOptions
from edgeport_runtime.comparison import Comparison
from edgeport_runtime.device import open_session
from edgeport_runtime.errors import first_line
from edgeport_runtime.golden_inputs import formula_inputs
from edgeport_runtime.installation import onnxruntime
from edgeport_runtime.json_text import strict_json

from .deployment import chosen_variant, deployment
from .golden_sets import GoldenSet, sets_at

MODEL, GOLDEN, CONTRACT = "model.onnx", "golden.json", "contract.json"


@dataclass(frozen=True, kw_only=True)
class FixedCopy:
    """`sizes`: of what were dynamic axes. `comparisons`: of the copy with the golden cases at these sizes; `against`: whose answers those are."""

    folder: Path
    precision: str
    sizes: Mapping[str, int]
    comparisons: tuple[Comparison, ...]
    against: str

    def __str__(self) -> str:
        sizes = ", ".join(f"{axis} {size}" for axis, size in self.sizes.items()) or "the sizes that it had"
        agree = f"{len(self.comparisons)} golden {'output agrees' if len(self.comparisons) == 1 else 'outputs agree'} with {self.against}"
        return f"{self.folder}: {self.precision} at {sizes}; {agree}"


def deploy_fixed(
    bundle: Bundle, out: Path, *, size_px: tuple[int, int] | None = None, batch: int = 1, precision: str | None = "fp32", force: bool = False
) -> FixedCopy:
    """Write `model.onnx` at one size, its contract, and ONNX test data sets with their tolerances.

    `size_px`: (height, width), the contract's own if left out. `precision`: None takes what "auto" takes. Raises InputError for sizes that the contract
    does not promise, ParityError if the copy does not keep its golden cases, and OutputError.
    """
    contract = bundle.manifest.contract
    sizes = wanted_sizes(contract, size_px, batch)
    variant = chosen_variant(bundle, precision, batch=batch)
    model = fixed_model(bundle.read(variant), contract, sizes)
    golden = sets_at(bundle, variant.precision, sizes)
    comparisons = _compared(model, golden)
    if failed := [each for each in comparisons if not each]:
        raise ParityError(f"the copy at one size does not give the bundle's answers, so nothing was written; {failed[0]}")
    with deployment(out, "fixed", bundle, variant.precision, force=force) as folder:
        (folder / MODEL).write_bytes(model)
        (folder / CONTRACT).write_text(strict_json(fixed_contract(contract, onnx.load_from_string(model)).to_dict(), indent=1) + "\n", encoding="utf-8")
        (folder / GOLDEN).write_text(json.dumps([_written(folder, index, each) for index, each in enumerate(golden)], indent=1) + "\n", encoding="utf-8")
    return FixedCopy(folder=out, precision=variant.precision, sizes=sizes, comparisons=tuple(comparisons), against=golden[0].against)


def wanted_sizes(contract: Contract, size_px: tuple[int, int] | None, batch: int) -> dict[str, int]:
    """By dynamic axis. Raises InputError for an axis that nobody gave a size, or a size that is not promised."""
    found = {}
    asked: dict[str, int] = {"batch": batch}
    if (pixels := contract.inputs[0].pixels) is not None:
        asked |= dict(zip(("height", "width"), size_px or (pixels.height, pixels.width), strict=True))
    for name, promised in contract.axes.items():
        size = asked.get(name, promised.low if promised.low == promised.high else None)
        if size is None:
            raise InputError(f"the axis {name!r} has no size of its own: a copy at one size is for models of images")
        if size not in promised:
            raise InputError(f"the model promises {promised} for the axis {name!r}, and {size} was asked for")
        found[name] = size
    for name, size in asked.items():
        if name not in contract.axes and size_px is not None and name in ("height", "width") and size != getattr(pixels, name):
            raise InputError(f"the {name} of this model is fixed at {getattr(pixels, name)} already, and {size} was asked for")
    return found


def fixed_model(model: bytes, contract: Contract, sizes: Mapping[str, int]) -> bytes:
    """The graph with these sizes, and nothing left in it that computes them. Raises ExportError if onnxruntime cannot fold it."""
    graph = onnx.load_from_string(model)
    take_branches(graph, formula_inputs(contract, sizes))
    for value in (*graph.graph.input, *graph.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in sizes:
                dimension.dim_value = sizes[dimension.dim_param]
    graph.graph.ClearField("value_info")  # of other sizes
    runtime = onnxruntime()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        settings = runtime.SessionOptions()
        settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # operators of ONNX alone
        settings.optimized_model_filepath, settings.log_severity_level = str(path), 3
        try:
            session = runtime.InferenceSession(graph.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises many kinds
            raise ExportError(f"onnxruntime cannot fix the sizes ({first_line(error)})") from error
        shapes = {each.name: each.shape for each in session.get_outputs()}
        folded = onnx.load(path)
    used = {node.domain for node in folded.graph.node}
    kept = [each for each in folded.opset_import if each.domain in used | {""}]
    folded.ClearField("opset_import")
    folded.opset_import.extend(kept)
    folded.metadata_props.MergeFrom(each for each in graph.metadata_props if each.key not in {prop.key for prop in folded.metadata_props})
    if any(not isinstance(size, int) for shape in shapes.values() for size in shape):
        raise ExportError(f"the outputs' sizes depend on more than the inputs' sizes, so they cannot be fixed: {shapes}")
    folded.ir_version = graph.ir_version
    onnx.checker.check_model(folded, full_check=True)
    return bytes(folded.SerializeToString())


def take_branches(model: onnx.ModelProto, inputs: Mapping[str, NDArray[Any]]) -> None:
    """Put the branch that these inputs take in place of each `If` that asks for sizes alone. At other sizes the other branch makes no sense, and onnxruntime
    would refuse the graph for it: a view of four pixels as one, where the width is no multiple of four."""
    editor = GraphEditor(model)
    asking = [node for node in editor.nodes if node.op_type == "If" and _asks_for_sizes(node.input[0], editor)]
    if not asking:
        return
    probed = GraphEditor.of_copy(model)
    probed.model.graph.ClearField("output")
    probed.model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, None) for name in {node.input[0] for node in asking})
    session = open_session(probed.model.SerializeToString(), SessionOptions())
    names = [each.name for each in session.get_outputs()]
    taken = dict(zip(names, session.run(names, dict(inputs)), strict=True))
    for node in asking:
        editor.replace(node, _branch(node, bool(np.all(taken[node.input[0]]))))


def _asks_for_sizes(value: str, editor: GraphEditor) -> bool:
    if value in {each.name for each in editor.model.graph.input}:
        return False
    node = editor.producers.get(value)
    return node is None or node.op_type == "Shape" or all(_asks_for_sizes(each, editor) for each in node.input if each)


def _branch(node: onnx.NodeProto, condition: bool) -> list[onnx.NodeProto]:
    """The nodes of one branch, with its outputs named as the node's. Names within are unlike all others of the graph, as ONNX asks for."""
    graph = next(each.g for each in node.attribute if each.name == ("then_branch" if condition else "else_branch"))
    renamed = dict(zip([each.name for each in graph.output], node.output, strict=True))
    constants = [onnx.helper.make_node("Constant", [], [renamed.get(each.name, each.name)], value=each) for each in graph.initializer]
    inner = [copy.deepcopy(each) for each in graph.node]
    produced = {output for each in inner for output in each.output} | {each.name for each in graph.initializer}
    for each in inner:
        each.input[:] = [renamed.get(name, name) if name in produced else name for name in each.input]
        each.output[:] = [renamed.get(name, name) for name in each.output]
    outer = [onnx.helper.make_node("Identity", [name], [renamed[name]]) for name in renamed if name not in produced]
    return [*constants, *inner, *outer]


def fixed_contract(contract: Contract, model: onnx.ModelProto) -> Contract:
    """The same promise for these sizes alone."""
    shapes = {each.name: tuple(size.dim_value for size in each.type.tensor_type.shape.dim) for each in (*model.graph.input, *model.graph.output)}
    inputs = tuple(
        replace(each, shape=shapes[each.name], pixels=None if each.pixels is None else at_size(each.pixels, shapes[each.name][1:3])) for each in contract.inputs
    )
    return replace(contract, axes={}, inputs=inputs, outputs=tuple(replace(each, shape=shapes[each.name]) for each in contract.outputs))


def _compared(model: bytes, golden: Sequence[GoldenSet]) -> list[Comparison]:
    session = open_session(model, SessionOptions())
    names = [each.name for each in session.get_outputs()]
    return [found for each in golden for found in each.compared(dict(zip(names, session.run(names, each.inputs), strict=True)))]


def _written(folder: Path, index: int, golden: GoldenSet) -> dict[str, Any]:
    """One case as ONNX's test runners read it. Pixels are held to the values before rounding, which lie beside the rounded ones."""
    name = f"test_data_set_{index}"
    (folder / name).mkdir()

    def write(file: str, output: str, values: NDArray[Any]) -> str:
        (folder / name / file).write_bytes(numpy_helper.from_array(values, output).SerializeToString())
        return f"{name}/{file}"

    inputs = [write(f"input_{place}.pb", each, values) for place, (each, values) in enumerate(golden.inputs.items())]
    expected = []
    for place, (each, values) in enumerate(golden.expected.items()):
        if each in golden.rounded:
            write(f"output_{place}.pb", each, golden.rounded[each])
            expected.append(write(f"levels_{place}.pb", each, values))
        else:
            expected.append(write(f"output_{place}.pb", each, values))
    tolerance = [asdict(each) for each in golden.tolerance]
    return {"name": golden.name, "inputs": inputs, "expected": expected, "tolerance": tolerance, "against": golden.against}
