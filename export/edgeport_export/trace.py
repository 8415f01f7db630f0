"""From an nn.Module to an fp32 ONNX model whose promised axes are dynamic, whose nodes are named by module, and that names no path."""

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import onnx
import onnx_ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from edgeport_runtime import Contract
from edgeport_runtime.contract import METADATA_KEY, NARROW_KEY

from .askers import Askers
from .branches import Branch, broken, frozen_branches
from .errors import AxisError, ExportError
from .failures import failure, untranslated
from .offers import frozen_numbers
from .patches import second_attempt, second_may_help, symbolic_linspace
from .rewrites import TRANSLATIONS
from .rewrites.constants import drop_unread_values
from .rewrites.known_shapes import known_shapes
from .rewrites.precise_mean import precise_mean
from .rewrites.precise_reduction import precise_reduction
from .rewrites.transposed_product import transposed_product
from .sweep import own_sizes
from .wrap import LEVELS, GraphModule, copied, graph_outputs

OPSET, IR_VERSION = 20, 10
LARGEST_BYTES = 1_900_000_000  # protobuf ends at 2 GiB, and a bundle's files hold no external data
SCOPES = "pkg.torch.onnx.name_scopes"
ROOT = "network"  # where the user's module sits inside GraphModule
WRAPPER = "edgeport/"  # prefix of the nodes around it: normalisation, layout, rounding


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A network's graph with the outputs of `wrap.graph_outputs`, and the branches on sizes that are frozen in it."""

    model: onnx.ModelProto
    branches: tuple[Branch, ...]


def trace(network: nn.Module, contract: Contract, dtype: torch.dtype = torch.float32) -> Traced:
    """Export in eval mode at an example of batch 2 with unequal sides, neither 0 nor 1, so that no axis is taken for fixed.

    Where the network took another way at the example than at its own size, it is traced again at an example as near to that size as can be;
    where an axis came out fixed, at one that shares no side with it.
    `dtype`: float16 traces a copy of the network in half precision, for CUDA; no card is needed to trace it.
    `finish` makes a variant of its model. Raises ExportError where the exporter fails or the network is too large,
    AxisError where a promised axis came out fixed.
    """
    size = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    if size > LARGEST_BYTES:
        raise ExportError(f"the network holds {size / 1e9:.1f} GB of weights; a bundle holds at most {LARGEST_BYTES / 1e9:.1f} GB")
    module = GraphModule(network if dtype == torch.float32 else copied(network).to(dtype), contract, dtype).eval()
    program, branches = _dynamic(module, contract)
    model = program.model
    name_nodes(model)
    ClearMetadataAndDocStringPass()(model)
    model.graph.name, model.producer_name, model.producer_version = "edgeport", "edgeport", None
    proto: onnx.ModelProto = onnx_ir.to_proto(model)
    known_shapes(proto)
    transposed_product(proto)
    precise_reduction(proto)
    require_versions(proto)
    _require_kernels(proto)
    require_dynamic(proto, contract)
    return Traced(model=proto, branches=tuple(branches))


def _dynamic(module: GraphModule, contract: Contract) -> tuple[Any, list[Branch]]:
    """The exported program and its frozen branches, traced at the first of three examples that leaves every axis free."""
    try:
        program, branches = _export(module, example(contract), contract)
    except AxisError as bound:  # `if height == 64 and width == 64: return self.positions`, which resizes them elsewhere
        try:
            return _export(module, _away(contract), contract)
        except ExportError:
            raise bound from None
    if broken(branches, own_sizes(contract)):  # Swin v2 at 128 px: a window covers a stage of 4x4, but not one of 4x5
        program, branches = _export(module, example(contract, near=True), contract)
    return program, branches


def example(contract: Contract, *, near: bool = False) -> tuple[Tensor, ...]:
    """Inputs to trace with: every named axis has a size of its own, at least 2, inside its range where the range allows it.

    `near`: the width is the contract's own and one step, instead of a quarter more.
    """
    sizes: dict[str, int] = {}
    for each in contract.inputs:
        if each.pixels is not None:
            sizes |= {"height": each.pixels.height, "width": each.pixels.width + (1 if near else max(1, each.pixels.width // 4))}
    for index, (name, limits) in enumerate(contract.axes.items()):
        sizes[name] = limits.nearest(max(2, sizes.get(name, 2 if name == "batch" else 3 + index)))
    if sizes.get("height") == sizes.get("width") and {"height", "width"} <= set(contract.axes):
        height = contract.axes["height"]
        sizes["height"] = next(
            (size for size in (sizes["height"] - height.step, sizes["height"] + height.step) if size in height and size > 1), sizes["height"]
        )
    return _inputs(contract, sizes)


def _away(contract: Contract) -> tuple[Tensor, ...]:
    """Inputs whose every named side differs from the contract's own size, where its range has another one."""
    sizes = {"batch": 2, **own_sizes(contract)}
    for index, (name, limits) in enumerate(contract.axes.items()):
        away = sizes[name] * index // 4 + (2 + index) * limits.step  # far enough to show after a stem that divides by 16
        wished = map(limits.nearest, (sizes[name] + away, sizes[name] - away))
        sizes[name] = next((size for size in wished if size > 1 and size != sizes[name]), sizes[name])
    return _inputs(contract, sizes)


def _inputs(contract: Contract, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    shapes = [[axis if isinstance(axis, int) else sizes[axis] for axis in each.shape] for each in contract.inputs]
    generator = torch.Generator().manual_seed(0)
    return tuple(_random(shape, each.dtype, generator) for shape, each in zip(shapes, contract.inputs, strict=True))


def _random(shape: Sequence[int], dtype: str, generator: torch.Generator) -> Tensor:
    kind: torch.dtype = getattr(torch, dtype)
    if kind.is_floating_point:
        return torch.randn(list(shape), generator=generator, dtype=kind)
    return torch.randint(0, 256 if dtype == "uint8" else 2, list(shape), generator=generator).to(kind)


def _export(module: GraphModule, inputs: tuple[Tensor, ...], contract: Contract, first: bool = True) -> tuple[Any, list[Branch]]:
    named = [{index: axis for index, axis in enumerate(each.shape) if isinstance(axis, str)} for each in contract.inputs]
    askers = Askers(module.network)
    try:
        with _silence(), symbolic_linspace(), nullcontext() if first else second_attempt(), askers:
            program: Any = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                verbose=False,
                dynamic_shapes=(tuple(named),),  # one tuple for *inputs
                input_names=[each.name for each in contract.inputs],
                output_names=graph_outputs(contract),
                opset_version=OPSET,
                custom_translation_table=TRANSLATIONS,
            )
    except Exception as error:  # torch.onnx raises many kinds, some of them bare
        if first and second_may_help(error, untranslated(error)):
            return _export(module, inputs, contract, first=False)
        raise failure(error, contract, askers) from error
    branches = frozen_branches(program.exported_program, contract, askers)
    numbers = frozen_numbers(branches, contract)
    if numbers:
        raise AxisError(numbers)
    return program, branches


@contextmanager
def _silence() -> Iterator[None]:
    """What torch logs of a failed guard, and the graphs that it prints and cannot finish, fill screens; what matters is in the error."""
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
    """Where the node's weight lives; without one, the module that was running. (A folded BatchNorm leaves its own scope on the convolution.)"""
    for value in node.inputs:
        if value is not None and value.is_initializer() and value.name is not None and value.name.startswith(f"{ROOT}.") and value.name.endswith(".weight"):
            return value.name.removeprefix(f"{ROOT}.").removesuffix(".weight") + "/"
    scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    path: str = next((scope for scope in reversed(scopes[:-1]) if scope), "")
    if path.split(".")[0] != ROOT:
        return WRAPPER
    return f"{path.removeprefix(ROOT).removeprefix('.')}/".removeprefix("/")


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


def finish(model: onnx.ModelProto, contract: Contract) -> bytes:
    """A variant's bytes: only the contract's outputs, and the contract itself in the metadata."""
    final = onnx.ModelProto()
    final.CopyFrom(model)
    levels = [value for value in final.graph.output if value.name.endswith(LEVELS)]
    for value in levels:
        final.graph.output.remove(value)
        drop_unread_values(final.graph, value.name)  # int8 may look its pixels up, and not compute these at all
    precise_mean(final, contract)
    said = {each.key: each.value for each in final.metadata_props if each.key == NARROW_KEY}
    onnx.helper.set_model_props(final, {METADATA_KEY: contract.to_json(), **said})
    onnx.checker.check_model(final, full_check=True)
    return bytes(final.SerializeToString(deterministic=True))
