from collections.abc import Callable

import onnx
import pytest
from onnx import TensorProto, helper

from edgeport_export.rewrites.graph import PassResult
from edgeport_export.rewrites.int8_graph.layout import LAYOUT, layout_ranges
from edgeport_runtime import Contract

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]


def chain(*op_types: str) -> onnx.ModelProto:
    """v0 -> v1 -> v2 …"""
    nodes = [helper.make_node(op_type, [f"v{index}"], [f"v{index + 1}"]) for index, op_type in enumerate(op_types)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("v0", f"v{len(op_types)}")]
    return helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]))


@pytest.mark.parametrize(
    ("op_types", "known"),
    [
        (LAYOUT, 6),
        (("Reshape", "Relu", "Transpose"), 2),  # nothing is known after a ReLU
        (("Relu", "Reshape"), 1),
    ],
)
def test_values_that_were_moved_have_the_range_of_what_they_were(apply: Apply, class_contract: Contract, op_types: tuple[str, ...], known: int) -> None:
    before = chain(*op_types)
    made, result = apply(layout_ranges, before, class_contract, ranges={"v0": (-1.0, 2.0)})
    assert made == before and not result
    assert result.ranges == {f"v{index}": (-1.0, 2.0) for index in range(known)}


def test_a_range_that_is_known_stays(apply: Apply, class_contract: Contract) -> None:
    _, result = apply(layout_ranges, chain("Reshape"), class_contract, ranges={"v0": (-1.0, 2.0), "v1": (0.0, 1.0)})
    assert result.ranges["v1"] == (0.0, 1.0)
