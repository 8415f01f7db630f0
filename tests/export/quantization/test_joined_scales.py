"""Which Concats stay float; `test_output_error.py` holds a whole detector to its numbers."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeport_export.quantization.joined_scales import joining_followers
from edgeport_export.rewrites.graph import GraphEditor
from edgeport_export.rewrites.int8_graph.context import Int8Context
from edgeport_runtime import Contract

Node = tuple[str, list[str], str]  # operator, inputs, output, which names the node too
RANGES = {"boxes": (-300.0, 640.0), "scores": (0.0, 1.0), "more": (-100.0, 100.0), "zeros": (0.0, 0.0), "c": (-300.0, 640.0), "d": (-300.0, 640.0)}


def model(*nodes: Node) -> onnx.ModelProto:
    made = [helper.make_node(op_type, inputs, [output], output) for op_type, inputs, output in nodes]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("boxes", "scores", "more", "zeros")]
    answer = helper.make_tensor_value_info(nodes[-1][2], TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph(made, "g", given, [answer], [numpy_helper.from_array(np.zeros(1, np.int64), "shape")]))


@pytest.mark.parametrize(
    ("nodes", "staying"),
    [
        ([("Concat", ["boxes", "scores"], "y")], {"y"}),
        ([("Concat", ["boxes", "more"], "y")], set()),  # of like scale
        ([("Concat", ["boxes", "zeros"], "y")], set()),  # nothing is lost of zeros
        ([("Concat", ["boxes", "unknown"], "y")], set()),
        ([("Concat", ["boxes", "scores"], "c"), ("Reshape", ["c", "shape"], "r"), ("Transpose", ["r"], "y")], {"c"}),
        ([("Concat", ["boxes", "scores"], "c"), ("Reshape", ["c", "shape"], "r"), ("Concat", ["r", "more"], "y")], {"c", "y"}),  # levels of a pyramid
        ([("Concat", ["boxes", "scores"], "c"), ("Conv", ["c", "more"], "y")], set()),  # inside of a network the next weights make up for it
    ],
)
def test_what_joins_scales_at_the_end_stays_float(nodes: list[Node], staying: set[str], class_contract: Contract) -> None:
    followers = frozenset(output for op_type, _, output in nodes if op_type == "Concat")
    context = Int8Context(contract=class_contract, products=frozenset(), ranges=RANGES, followers=followers)
    assert joining_followers(GraphEditor(model(*nodes)), context) == staying
