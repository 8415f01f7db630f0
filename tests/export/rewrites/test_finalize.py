from types import ModuleType

import onnx
import pytest
from torch import nn

from edgeport_export import ExportError
from edgeport_export.rewrites.finalize import finalize
from edgeport_export.tracing.exporter import trace
from edgeport_runtime import Contract, Pixels
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import METADATA_KEY, NARROW_KEY, classification


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {each.key: each.value for each in model.metadata_props}


def test_only_the_contracts_outputs_are_left(tiny: ModuleType, image_contract: Contract) -> None:
    traced = trace(tiny.TinyGenerator(), image_contract).model
    before = traced.SerializeToString()
    model = onnx.load_from_string(finalize(traced, image_contract))
    assert [value.name for value in traced.graph.output] == ["image", "image.levels"] and traced.SerializeToString() == before
    assert [value.name for value in model.graph.output] == ["image"] and metadata(model) == {METADATA_KEY: image_contract.to_json()}


def test_what_the_runtime_must_know_of_the_weights_is_kept(tiny: ModuleType, class_contract: Contract) -> None:
    traced = trace(tiny.trained_classifier(), class_contract).model
    onnx.helper.set_model_props(traced, {NARROW_KEY: "1", "made by": "somebody"})
    assert metadata(onnx.load_from_string(finalize(traced, class_contract))) == {METADATA_KEY: class_contract.to_json(), NARROW_KEY: "1"}


def test_a_model_that_onnx_refuses_is_refused_unless_the_check_is_left_out(tiny: ModuleType, class_contract: Contract) -> None:
    traced = trace(tiny.trained_classifier(), class_contract).model
    traced.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(onnx.checker.ValidationError, match="NoSuchOperator"):
        finalize(traced, class_contract)
    assert finalize(traced, class_contract, check=False)


@pytest.mark.parametrize(("largest", "precise"), [(512, True), (64, False)])
def test_means_of_large_maps_are_made_precise(largest: int, precise: bool) -> None:
    contract = classification(
        Pixels(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3), ("a", "b", "c"), image_axes(smallest_px=4, largest_px=largest, largest_batch=2)
    )
    traced = trace(nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), contract).model
    kinds = [node.op_type for node in onnx.load_from_string(finalize(traced, contract)).graph.node]
    assert ("MatMul" in kinds) == precise


def test_equal_graphs_give_equal_bytes(tiny: ModuleType, class_contract: Contract) -> None:
    network = tiny.trained_classifier()
    assert finalize(trace(network, class_contract).model, class_contract) == finalize(trace(network, class_contract).model, class_contract)


def test_what_the_runtime_would_refuse_is_not_written(tiny: ModuleType, class_contract: Contract) -> None:
    traced = trace(tiny.trained_classifier(), class_contract).model
    weight = traced.graph.initializer[0].name
    for operator in ("Neg", "Loop"):
        changed = onnx.ModelProto()
        changed.CopyFrom(traced)
        node = onnx.helper.make_node(operator, [weight], ["unused"], name="x")
        if operator == "Loop":  # graphs within nodes are not computed here
            node.attribute.append(onnx.helper.make_attribute("body", onnx.GraphProto(name="g", output=[onnx.ValueInfoProto(name="y")])))
        changed.graph.node.insert(0, node)
        if operator == "Neg":
            assert "unused" in {each.name for each in onnx.load_from_string(finalize(changed, class_contract)).graph.initializer}
            continue
        with pytest.raises((ExportError, onnx.checker.ValidationError)):
            finalize(changed, class_contract)
