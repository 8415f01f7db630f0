from pathlib import Path
from types import ModuleType

import onnx
import pytest
import torch
from torch import nn

from edgeport_export import AxisError, ExportError
from edgeport_export.rewrites.finalize import finalize
from edgeport_export.rewrites.names import is_wrapper_node
from edgeport_export.tracing import exporter
from edgeport_export.tracing.exporter import IR_VERSION, OPSET, require_dynamic, require_versions, trace
from edgeport_models import network
from edgeport_runtime import Contract
from edgeport_runtime.contract import METADATA_KEY
from edgeport_runtime.outline import read_outline


def test_nodes_are_named_by_module_even_where_batchnorm_was_folded() -> None:
    entry = network("resnet18")
    model = trace(entry.make({"num_classes": 10, "weights": "none"}), entry.contract(tuple("0123456789"), 64)).model
    names = {node.name for node in model.graph.node}
    assert {"conv1/Conv", "layer1.0.conv1/Conv", "layer2.0.downsample.0/Conv", "layer4.1/Add", "fc/Gemm", "maxpool/MaxPool"} <= names
    assert len(names) == len(model.graph.node)
    assert sum(node.op_type == "BatchNormalization" for node in model.graph.node) == 0


def test_a_file_names_no_path_and_carries_its_contract(tiny: ModuleType, class_contract: Contract) -> None:
    data = finalize(trace(tiny.trained_classifier(), class_contract).model, class_contract)
    for leaked in (str(Path(__file__).parent), str(Path.home()), "site-packages", ".py", "stack_trace"):
        assert leaked.encode() not in data
    outline = read_outline(data)
    assert outline.metadata == {METADATA_KEY: class_contract.to_json()}
    assert (outline.opsets["ai.onnx"], outline.ir_version, outline.external) == (OPSET, IR_VERSION, [])


def test_the_outline_reads_what_onnx_wrote(tiny: ModuleType, class_contract: Contract) -> None:
    model = trace(tiny.trained_classifier(), class_contract).model
    assert read_outline(model.SerializeToString()).nodes == len(model.graph.node)


def test_the_same_network_gives_the_same_bytes(tiny: ModuleType, image_contract: Contract) -> None:
    torch.manual_seed(3)
    module = tiny.TinyGenerator()
    assert finalize(trace(module, image_contract).model, image_contract) == finalize(trace(module, image_contract).model, image_contract)


def test_levels_are_traced_beside_the_pixels(tiny: ModuleType, image_contract: Contract) -> None:
    model = trace(tiny.TinyGenerator(), image_contract).model
    assert [value.name for value in model.graph.output] == ["image", "image.levels"]


def test_a_frozen_axis_is_named(tiny: ModuleType, class_contract: Contract) -> None:
    model = trace(tiny.trained_classifier(), class_contract).model
    dim = model.graph.input[0].type.tensor_type.shape.dim[2]
    dim.dim_value = 20
    with pytest.raises(AxisError, match="axis 2 of input 'pixels' was promised as 'width', but the graph has it fixed at 20"):
        require_dynamic(model, class_contract)


def test_another_opset_than_asked_is_refused(tiny: ModuleType, class_contract: Contract) -> None:
    model = trace(tiny.trained_classifier(), class_contract).model
    model.opset_import[0].version = 18
    with pytest.raises(ExportError, match="asked for opset 20 and IR 10, but the exporter wrote"):
        require_versions(model)


def test_too_large_a_network_is_refused_before_tracing(tiny: ModuleType, class_contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "LARGEST_BYTES", 1000)
    with pytest.raises(ExportError, match="a bundle holds at most"):
        trace(tiny.trained_classifier(), class_contract)


class Edgeport(nn.Module):
    """A network with a module called as the nodes that belong to no module are."""

    def __init__(self) -> None:
        super().__init__()
        self.edgeport = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.edgeport(x)).mean((2, 3))


def test_a_module_called_edgeport_is_one_of_the_network(class_contract: Contract) -> None:
    names = {node.op_type: node.name for node in trace(Edgeport().eval(), class_contract).model.graph.node}
    assert not is_wrapper_node(names["Conv"]) and not is_wrapper_node(names["Relu"]) and is_wrapper_node(names["Cast"])


def test_float16_is_traced_from_a_copy(class_contract: Contract, tiny: ModuleType) -> None:
    network = tiny.trained_classifier()
    model = trace(network, class_contract, torch.float16).model
    assert {each.dtype for each in network.parameters()} == {torch.float32}
    stored = {each.name: each.data_type for each in model.graph.initializer}
    assert stored["network.conv1.weight"] == onnx.TensorProto.FLOAT16
    assert [value.type.tensor_type.elem_type for value in model.graph.output] == [onnx.TensorProto.FLOAT]
