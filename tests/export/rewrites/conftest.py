"""Small graphs for rewrites: exported with edgeport's translations, and changed by one pass alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir
import pytest
import torch
from torch import nn

from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.int8_graph.context import Int8Context
from edgeport_export.rewrites.translations import TRANSLATIONS
from edgeport_runtime import Contract, SessionOptions
from edgeport_runtime.device import open_session


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


@pytest.fixture(scope="session")
def exported_graph() -> Callable[..., onnx.ModelProto]:
    """A module or function as a graph with the inputs a, b, c …; `axes`: the dynamic axes of each input."""

    def graph(module: Callable[..., Any], *inputs: torch.Tensor, axes: Sequence[Mapping[int, str]] = (), translated: bool = True) -> onnx.ModelProto:
        program = torch.onnx.export(
            (module if isinstance(module, nn.Module) else Function(module)).eval(),
            inputs,
            dynamo=True,
            verbose=False,
            opset_version=20,
            dynamic_shapes=None if not axes else tuple(axes) if isinstance(module, nn.Module) else (tuple(axes),),
            custom_translation_table=TRANSLATIONS if translated else {},
            input_names=list("abcd")[: len(inputs)],
        )
        return onnx_ir.to_proto(program.model)

    return graph


@pytest.fixture(scope="session")
def exported(exported_graph: Callable[..., onnx.ModelProto]) -> Callable[..., Any]:
    """The same graph as a session of one thread."""
    return lambda *given, **named: open_session(exported_graph(*given, **named).SerializeToString(), SessionOptions(threads=1))


@pytest.fixture(scope="session")
def apply() -> Callable[..., tuple[onnx.ModelProto, PassResult]]:
    """A copy of a model after an int8 pass, and the pass's result. `products`: names of the products that run as integers, all if left out."""

    def applied(
        one_pass: Callable[[GraphEditor, Int8Context], PassResult],
        model: onnx.ModelProto,
        contract: Contract,
        products: Iterable[str] | None = None,
        **context: Any,
    ) -> tuple[onnx.ModelProto, PassResult]:
        editor = GraphEditor.of_copy(model)
        names = {node.name for node in editor.nodes} if products is None else set(products)
        given = {"ranges": dict.fromkeys((value for node in editor.nodes for value in (*node.input, *node.output)), (-1.0, 1.0)), **context}
        return editor.model, one_pass(editor, Int8Context(contract=contract, products=frozenset(names), **given))

    return applied
