"""Errors of torch's exporter in words: the operation, its module and line, the axes that it computes with, and a remedy.

Its own message is the innermost cause of a chain, such as "Unsupported attribute type: list"; the operation is known only to the
frames that the error came through.
"""

import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from edgeport_export.errors import AxisError, ExportError, logged
from edgeport_runtime import Contract
from edgeport_runtime.errors import first_line

from .module_tracker import ModuleTracker, module_of

USUAL_STEP = 32  # px: what most networks halve their sides by
UNROLLED = (torch.nn.GRU, torch.nn.RNN)
REMEDIES = {  # for modules that look at their mask's values unless they are told
    "TransformerEncoder": "call it with is_causal=False, or True if its mask is the causal one",
    "TransformerDecoder": "call it with tgt_is_causal=False, or True if its mask is the causal one",
}


def exporter_error(error: BaseException, contract: Contract, tracker: ModuleTracker) -> ExportError:
    """The exporter's error as one of ours, without the advice on how to file a bug. Its own text is cut, and goes to a log file as a whole."""
    found = _worded(error, contract, tracker)
    found.args = (logged(str(found), "".join(traceback.format_exception(error))),)
    return found


def _worded(error: BaseException, contract: Contract, tracker: ModuleTracker) -> ExportError:
    node = untranslated(error)
    while error.__cause__ is not None:
        error = error.__cause__
    if node is not None:
        return _no_onnx(node, error, contract)
    fixed = re.findall(r"static shape of (\d+) for dimension inputs(?:\['inputs'\])?\[(\d+)\]\.shape\[(\d+)\]", str(error))
    if fixed:
        return _bound([(str(contract.inputs[int(index)].shape[int(axis)]), int(size)) for size, index, axis in fixed], tracker)
    failed_in = tracker.failed_in or ""
    place = f" in {failed_in}" if failed_in else ""
    if "data-dependent" in str(error):
        remedy = next((words for kind, words in REMEDIES.items() if failed_in.endswith(f"({kind})")), "compute both ways and choose with torch.where")
        return ExportError(f"the network branches on values it computes{place}, and a graph takes one way only: {remedy} ({_reason(error)})")
    if "cannot be solved" in str(error):
        example = ",".join(f"{name}={sizes.low}..{sizes.high}:{USUAL_STEP}" for name, sizes in contract.axes.items() if name != "batch")
        return AxisError(
            f"sizes inside the network{place} agree only at multiples of some number of pixels, which tracing cannot tell; "
            f"promise the sides in such steps, as --dynamic {example} does, or leave them out"
        )
    recurrent = next((f"{type(each).__name__} in {name or 'the network'}" for name, each in tracker.network.named_modules() if type(each) in UNROLLED), None)
    sides = [name for name in contract.axes if name != "batch"]
    if recurrent and sides and "must match" in str(error):
        return AxisError(f"{recurrent} keeps the number of its steps that it had when it was traced; leave {' and '.join(sides)} out of --dynamic")
    what = failed_in if failed_in.startswith("the network") else f"the network{place}"
    return ExportError(f"PyTorch could not export {what}: {_reason(error)}")


class LongSizeError(AxisError):
    """Sizes inside the network become longer with every layer, which no other way of tracing helps."""


def long_sizes(module: str, contract: Contract) -> str:
    """Why sizes became too long to trace, and what to do."""
    sides = " and ".join(name for name in contract.axes if name != "batch")
    return (
        f"the sizes inside {module} become formulas too long to trace, as padding that is computed from the size makes them "
        f"(TensorFlow's SAME, in timm's tf_ networks); leave {sides} out of --dynamic, or take the network with padding that is fixed"
    )


def require_onnx_forms(program: Any, contract: Contract) -> None:
    """Raises AxisError for an inverse Fourier transform to sides that change: onnxruntime's takes numbers alone."""
    for node in program.graph.nodes:
        if node.op == "call_function" and str(node.target) == "aten._fft_c2r.default" and not isinstance(node.args[3], int):
            sides = " and ".join(name for name in contract.axes if name != "batch")
            where = f"{module_of(node) or 'the network'}{_line(node)}"
            raise AxisError(f"the inverse Fourier transform in {where} needs fixed sides; leave {sides} out of --dynamic")


def _bound(axes: list[tuple[str, int]], tracker: ModuleTracker) -> AxisError:
    """`axes`: those that tracing fixed, with the size of each."""
    names = " and ".join(dict.fromkeys(name for name, _ in axes))
    sizes = " and ".join(str(size) for _, size in axes)
    place = next((f" in {tracker.fixed_in[size]}" for _, size in axes if size in tracker.fixed_in), "")
    why = "a size taken as a plain number, as a loop over range() does?"
    return AxisError(f"the network is bound to its {names}{place}: tracing fixed it at {sizes} ({why}); leave {names} out of --dynamic")


def _no_onnx(node: Any, error: BaseException, contract: Contract) -> ExportError:
    """For an operation of the traced network that has no ONNX form, or none for sizes that are known only when it runs."""
    operation = f"{_operation(node)} in {module_of(node) or 'the network'}{_line(node)}"
    axes = [name for name in contract.axes if name in _computed_from(node, contract)]
    if axes:
        names = " and ".join(axes)
        return AxisError(f"{operation} takes a number that is computed from its {names}, which has no ONNX form; leave {names} out of --dynamic")
    return ExportError(f"{operation} has no ONNX form; write it with other operations ({first_line(error)})")


def untranslated(error: BaseException | None) -> Any:
    """The node of the traced network that was being translated, or optimized, when the error was raised; None if it was raised elsewhere."""
    found: Any = None
    named: re.Match[str] | None = None
    nodes: dict[str, Any] = {}
    while error is not None:
        named = named or re.search(r"for node 'node_(\w+)'", str(error))
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_globals.get("__name__", "").startswith("torch.onnx."):
                for value in trace.tb_frame.f_locals.values():
                    if isinstance(value, torch.fx.Node):
                        found = value
                    elif isinstance(value, torch.export.ExportedProgram):
                        nodes |= {node.name: node for node in value.graph.nodes}
            trace = trace.tb_next
        error = error.__cause__
    return nodes.get(named[1], found) if named else found


def _operation(node: Any) -> str:
    """`torch.ops.aten.roll.default` as `aten.roll`, a function of Python by its name."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.overloadpacket)
    return str(getattr(node.target, "__name__", node.target)).strip("_")


def _line(node: Any) -> str:
    """The user's own line, as (file:line: code); empty if it is not known."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in [^\n]+(?:\n +(\S[^\n]*))?', node.meta.get("stack_trace") or "")
    if not frames:
        return ""
    file, number, code = frames[-1]
    return f" ({Path(file).name}:{number}{f': {code}' if code else ''})"


def _computed_from(node: Any, contract: Contract) -> set[str]:
    """The contract's axes that the sizes among the node's arguments are computed from."""
    inputs = (shape for shape in _input_shapes(node.graph))
    dynamic = [each for each in contract.inputs if any(isinstance(axis, str) for axis in each.shape)]
    names: dict[str, str] = {}
    for each, shape in zip(dynamic, inputs, strict=False):
        names |= {str(size): axis for axis, size in zip(each.shape, shape, strict=True) if isinstance(axis, str)}
    sizes = [value for value in (each.meta.get("val") for each in node.all_input_nodes) if isinstance(value, torch.SymInt | torch.SymFloat)]
    return {names[str(symbol)] for size in sizes for symbol in size.node.expr.free_symbols if str(symbol) in names}


def _input_shapes(graph: Any) -> Iterator[tuple[Any, ...]]:
    """Of the placeholders with symbolic sizes: weights have none."""
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, torch.Tensor) and any(isinstance(size, torch.SymInt) for size in value.shape):
            yield tuple(value.shape)


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else first_line(error)
    place = re.search(r"Caused by: \((\S+\.py:\d+ in \w+)\)", str(error))
    return f"{text} ({place[1]})" if place else text
