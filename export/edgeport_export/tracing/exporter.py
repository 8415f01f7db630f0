"""From an nn.Module to an fp32 ONNX model whose promised axes are dynamic, whose nodes are named by module, and that names no path."""

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from io import StringIO
from typing import Any

import onnx
import onnx_ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from edgeport_export.errors import AxisError, ExportError
from edgeport_export.import_string import name_of
from edgeport_export.network.reference import copied
from edgeport_export.network.size_sweep import example_sizes, other_sizes, own_sizes, sweep_inputs
from edgeport_export.network.wrapper import ExportWrapper, graph_outputs
from edgeport_export.rewrites.float_graph import FLOAT_PASSES
from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.names import ROOT, WRAPPER
from edgeport_export.rewrites.translations import TRANSLATIONS
from edgeport_runtime import Contract, Range
from edgeport_runtime.errors import first_line

from .exporter_errors import LongSizeError, exporter_error, long_sizes, require_onnx_forms, untranslated
from .module_tracker import ModuleTracker, SizeTooLong
from .shape_guards import ShapeGuard, broken, shape_guards
from .stepped_dims import name_stepped_dims, stepped_dims
from .torch_patches import second_attempt, second_may_help, symbolic_linspace, whole_recurrent_layers
from .valid_ranges import specialized_axes

OPSET, IR_VERSION = 20, 10
LARGEST_BYTES = 1_900_000_000  # protobuf ends at 2 GiB, and a bundle's files hold no external data
STEPS_TO_TRY = (4, 32)  # px: what a text recognizer divides its width by, and what most networks do
SCOPES = "pkg.torch.onnx.name_scopes"
Translations = Mapping[Any, Callable[..., Any]]  # aten operator -> the function of onnxscript that stands for it


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A network's graph with the outputs of `graph_outputs`, and the guards that are frozen in it."""

    model: onnx.ModelProto
    guards: tuple[ShapeGuard, ...]


@dataclass(frozen=True, kw_only=True)
class Extensions:
    """A user's additions to the export.

    `translations`: aten operator (`torch.ops.aten.name.overload`) -> a function of onnxscript that stands for it; it goes before edgeport's own.
    `passes`: called with a GraphEditor and the contract after edgeport's passes over the float graph; each returns a PassResult.
    """

    translations: Translations = field(default_factory=dict)
    passes: tuple[Callable[[GraphEditor, Contract], PassResult], ...] = ()

    def names(self) -> dict[str, str]:
        """For the manifest's provenance; empty if there are none."""
        translations = ", ".join(sorted(f"{operator} -> {name_of(function)}" for operator, function in self.translations.items()))
        named = {"translations": translations, "passes": ", ".join(map(name_of, self.passes))}
        return {key: names for key, names in named.items() if names}

    def run_passes(self, editor: GraphEditor, contract: Contract) -> None:
        """Raises ExportError naming the pass that failed."""
        for each in self.passes:
            try:
                result: Any = each(editor, contract)
            except Exception as error:  # the user's own code
                raise ExportError(f"the pass {name_of(each)} failed ({type(error).__name__}: {first_line(error)})") from error
            if not isinstance(result, PassResult):
                raise ExportError(f"the pass {name_of(each)} must return an edgeport_export.PassResult, got {type(result).__name__}")


def trace(network: nn.Module, contract: Contract, dtype: torch.dtype = torch.float32, *, extensions: Extensions | None = None) -> Traced:
    """Export in eval mode at an example of batch 2 with unequal sides, neither 0 nor 1, so that no axis is taken for fixed.

    If the network took another way at the example than at its own size, it is traced again at an example as near to that size as can be.
    If an axis came out fixed, it is traced again at an example that shares no side with the contract's own size.
    `dtype`: float16 traces a copy of the network in half precision, for CUDA; no card is needed to trace it. `extensions`: the user's own.
    Raises ExportError if the exporter fails or the network is too large, AxisError if a promised axis came out fixed.
    """
    size = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    if size > LARGEST_BYTES:
        raise ExportError(f"the network holds {size / 1e9:.1f} GB of weights; a bundle holds at most {LARGEST_BYTES / 1e9:.1f} GB")
    module = ExportWrapper(network if dtype == torch.float32 else copied(network).to(dtype), contract, dtype).eval()
    own = Extensions() if extensions is None else extensions
    program, guards = _dynamic(module, contract, own.translations)
    model = program.model
    name_nodes(model)
    ClearMetadataAndDocStringPass()(model)
    model.graph.name, model.producer_name, model.producer_version = "edgeport", "edgeport", None
    editor = GraphEditor(onnx_ir.to_proto(model))
    for each in FLOAT_PASSES:
        each(editor, contract)
    own.run_passes(editor, contract)
    require_versions(editor.model)
    _require_kernels(editor.model)
    require_dynamic(editor.model, contract)
    return Traced(model=editor.model, guards=tuple(guards))


def _dynamic(module: ExportWrapper, contract: Contract, own: Translations) -> tuple[Any, list[ShapeGuard]]:
    """The exported program and its guards, traced in the first of several ways that leaves every axis free.

    Sides that are promised in steps are traced as multiples of them if the free trace fails: a strided convolution beside a pooling agrees with it at
    such sizes alone. If tracing fixed an axis, an example that shares no side with the contract's own size is tried.
    """
    try:
        program, guards = _export(module, contract, example_sizes(contract), own)
    except LongSizeError:  # neither steps nor another example make them shorter
        raise
    except ExportError as failed:
        ways = [{"sizes": example_sizes(contract), "in_steps": True}] if any(sizes.step > 1 for sizes in contract.axes.values()) else []
        if isinstance(failed, AxisError):  # `if height == 64 and width == 64: return self.positions`, which resizes them elsewhere
            ways.append({"sizes": other_sizes(contract.axes, {"batch": 2, **own_sizes(contract)}, least=2), "in_steps": False})
        for way in ways:
            with suppress(ExportError):
                return _export(module, contract, own=own, **way)  # type: ignore[arg-type]
        if isinstance(failed, AxisError) and (found := _helping_steps(module, contract, own)):
            raise AxisError(f"{failed}, or promise it in steps, with which it was traced: --dynamic {found}") from failed
        raise
    if broken(guards, own_sizes(contract)):  # Swin v2 at 128 px: a window covers a stage of 4x4, but not one of 4x5
        program, guards = _export(module, contract, example_sizes(contract, near=True), own)
    return program, guards


def _helping_steps(module: ExportWrapper, contract: Contract, own: Translations) -> str:
    """Steps of the sides with which a network with a recurrent layer can be traced, if there are none yet; empty if none helps, or there is no such layer."""
    sides = [name for name in contract.axes if name != "batch"]
    if not any(isinstance(each, nn.RNNBase) for each in module.modules()) or any(sizes.step > 1 for sizes in contract.axes.values()):
        return ""
    for step in STEPS_TO_TRY:
        ranges = {name: Range(low=-(-sizes.low // step) * step, high=sizes.high, step=step) for name, sizes in contract.axes.items() if name in sides}
        if all(sizes.low <= sizes.high for sizes in ranges.values()):
            stepped = replace(contract, axes={**contract.axes, **ranges})
            with suppress(ExportError):
                _export(module, stepped, example_sizes(stepped), own, in_steps=True)
                return ",".join(f"{name}={sizes.low}..{sizes.high}:{step}" for name, sizes in ranges.items())
    return ""


def _export(
    module: ExportWrapper, contract: Contract, sizes: Mapping[str, int], own: Translations, *, first: bool = True, in_steps: bool = False
) -> tuple[Any, list[ShapeGuard]]:
    dims = stepped_dims(contract) if in_steps else {}
    named = [{index: dims.get(axis, axis) for index, axis in enumerate(each.shape) if isinstance(axis, str)} for each in contract.inputs]
    inputs: tuple[Tensor, ...] = tuple(torch.from_numpy(array) for array in sweep_inputs(contract, sizes, seed=0).values())
    tracker = ModuleTracker(module.network)
    try:
        with _silence(), symbolic_linspace(), whole_recurrent_layers(), nullcontext() if first else second_attempt(), tracker:
            program: Any = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                verbose=False,
                dynamic_shapes=(tuple(named),),  # one tuple for *inputs
                input_names=[each.name for each in contract.inputs],
                output_names=graph_outputs(contract),
                opset_version=OPSET,
                custom_translation_table={**TRANSLATIONS, **own},
            )
    except SizeTooLong as long:
        raise LongSizeError(long_sizes(long.module, contract)) from None
    except Exception as error:  # torch.onnx raises many kinds, some of them bare
        if first and second_may_help(error, untranslated(error)):
            return _export(module, contract, sizes, own, first=False, in_steps=in_steps)
        raise exporter_error(error, contract, tracker) from error
    require_onnx_forms(program.exported_program, contract)
    name_stepped_dims(program, contract)
    guards = shape_guards(program.exported_program, contract, tracker)
    specialized = specialized_axes(guards, contract)
    if specialized:
        raise AxisError(specialized)
    return program, guards


@contextmanager
def _silence() -> Iterator[None]:
    """torch logs failed guards, and prints graphs that it cannot finish, over several screens; the error says what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def name_nodes(model: onnx_ir.Model) -> None:
    """Name every node by its module's path and its operator (`layer1.0.conv1/Conv`), so that later messages can name a module."""
    taken: Counter[str] = Counter()
    for node in model.graph:
        name = _module_path(node) + node.op_type
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"


def _module_path(node: onnx_ir.Node) -> str:
    """The module that holds the node's weight; without one, the module that was running. (A folded BatchNorm leaves its own scope.)"""
    for value in node.inputs:
        if value is not None and value.is_initializer() and value.name is not None and value.name.startswith(f"{ROOT}.") and value.name.endswith(".weight"):
            return _path(value.name.removeprefix(f"{ROOT}.").removesuffix(".weight"))
    scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    path: str = next((scope for scope in reversed(scopes[:-1]) if scope), "")
    if path.split(".")[0] != ROOT:
        return WRAPPER
    return _path(path.removeprefix(ROOT).removeprefix("."))


def _path(module: str) -> str:
    """As a prefix of names, and never WRAPPER, which a module of the user's called "edgeport" would have."""
    return f"{module}./" if f"{module}/" == WRAPPER else f"{module}/".removeprefix("/")


def require_versions(model: onnx.ModelProto) -> None:
    """A failed conversion leaves another opset behind without a word: read it back. Raises ExportError."""
    found = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if found.get("ai.onnx") != OPSET or model.ir_version != IR_VERSION:
        raise ExportError(f"asked for opset {OPSET} and IR {IR_VERSION}, but the exporter wrote {found} and IR {model.ir_version}")


def _require_kernels(model: onnx.ModelProto) -> None:
    """onnxruntime's kernels for the CPU know no bfloat16. Raises ExportError with the first module that makes some."""
    for node in model.graph.node:
        if any(each.name == "to" and each.i == onnx.TensorProto.BFLOAT16 for each in node.attribute):
            module = node.name.rpartition("/")[0] or "the network"
            raise ExportError(f"{module} computes in bfloat16, which onnxruntime has no CPU kernels for; leave out torch.autocast and .bfloat16()")


def require_dynamic(model: onnx.ModelProto, contract: Contract) -> None:
    """Every promised axis must be symbolic in the graph, under its name. Raises AxisError naming the axis."""
    for value, each in zip(model.graph.input, contract.inputs, strict=True):
        for position, (axis, dim) in enumerate(zip(each.shape, value.type.tensor_type.shape.dim, strict=True)):
            found = dim.dim_param or dim.dim_value
            if found != axis:
                raise AxisError(
                    f"axis {position} of input {each.name!r} was promised as {axis!r}, but the graph has it fixed at {found!r}; "
                    "the network is bound to that size: fix the axis in the contract"
                )
