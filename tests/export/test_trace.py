from pathlib import Path
from types import ModuleType

import onnx
import pytest
import torch

from edgeport_export import AxisError, ExportError
from edgeport_export import trace as trace_module
from edgeport_export.trace import IR_VERSION, OPSET, finish, require_dynamic, require_versions, trace
from edgeport_models import network
from edgeport_runtime import Contract
from edgeport_runtime.contract import METADATA_KEY
from edgeport_runtime.protobuf import read_outline


def test_nodes_are_named_by_module_even_where_batchnorm_was_folded() -> None:
    entry = network("resnet18")
    model = trace(entry.make({"num_classes": 10, "weights": "none"}), entry.contract(tuple("0123456789"), 64)).model
    names = {node.name for node in model.graph.node}
    assert {"conv1/Conv", "layer1.0.conv1/Conv", "layer2.0.downsample.0/Conv", "layer4.1/Add", "fc/Gemm", "maxpool/MaxPool"} <= names
    assert len(names) == len(model.graph.node)
    assert sum(node.op_type == "BatchNormalization" for node in model.graph.node) == 0


def test_a_file_names_no_path_and_carries_its_contract(tiny: ModuleType, class_contract: Contract) -> None:
    data = finish(trace(tiny.trained_classifier(), class_contract).model, class_contract)
    for leaked in (str(Path(__file__).parent), str(Path.home()), "site-packages", ".py", "stack_trace"):
        assert leaked.encode() not in data
    outline = read_outline(data)
    assert outline.metadata == {METADATA_KEY: class_contract.to_json()}
    assert (outline.opsets["ai.onnx"], outline.ir_version, outline.external) == (OPSET, IR_VERSION, ())


def test_the_outline_reads_what_onnx_wrote(tiny: ModuleType, class_contract: Contract) -> None:
    model = trace(tiny.trained_classifier(), class_contract).model
    assert read_outline(model.SerializeToString()).nodes == len(model.graph.node)


def test_the_same_network_gives_the_same_bytes(tiny: ModuleType, image_contract: Contract) -> None:
    torch.manual_seed(3)
    module = tiny.TinyGenerator()
    assert finish(trace(module, image_contract).model, image_contract) == finish(trace(module, image_contract).model, image_contract)


def test_only_promised_outputs_are_left_in_the_variant(tiny: ModuleType, image_contract: Contract) -> None:
    model = trace(tiny.TinyGenerator(), image_contract).model
    assert [value.name for value in model.graph.output] == ["image", "image.levels"]
    assert [value.name for value in onnx.load_from_string(finish(model, image_contract)).graph.output] == ["image"]


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
    monkeypatch.setattr(trace_module, "LARGEST_BYTES", 1000)
    with pytest.raises(ExportError, match="a bundle holds at most"):
        trace(tiny.trained_classifier(), class_contract)
