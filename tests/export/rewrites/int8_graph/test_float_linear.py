"""Which operators after linear layers stay float, and which Q/DQ pairs go; `test_qdq.py` holds whole networks to their numbers."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.int8_graph.context import Int8Context
from edgeport_export.rewrites.int8_graph.float_linear import float_followers, float_linear
from edgeport_runtime import Contract

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]
Node = tuple[str, list[str], str]  # operator, inputs, output, which names the node too

MATMUL: Node = ("MatMul", ["x", "w"], "m")


def model(*nodes: Node) -> onnx.ModelProto:
    made = [helper.make_node(op_type, inputs, [output], output) for op_type, inputs, output in nodes]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", nodes[-1][2])]
    constants = [numpy_helper.from_array(np.zeros(1, np.float32), name) for name in ("w", "b", "s", "z")]
    return helper.make_model(helper.make_graph(made, "g", values[:1], values[1:], constants))


@pytest.mark.parametrize(
    ("nodes", "followers", "staying"),
    [
        # a bias and an activation between a linear layer and a float operator
        ([MATMUL, ("Add", ["m", "b"], "a"), ("Relu", ["a"], "r"), ("Gelu", ["r"], "y")], {"a", "r"}, {"a", "r"}),
        # another integer product reads them, through layout
        (
            [MATMUL, ("Add", ["m", "b"], "a"), ("Reshape", ["a", "b"], "v"), ("MatMul", ["v", "w"], "n"), ("Gelu", ["n"], "y")],
            {"a"},
            set(),
        ),
        # a residual is no bias
        ([MATMUL, ("Add", ["m", "x"], "a"), ("Gelu", ["a"], "y")], {"a"}, set()),
        # what follows a convolution is none of this
        ([("Conv", ["x", "w"], "c"), ("Relu", ["c"], "r"), ("Gelu", ["r"], "y")], {"r"}, set()),
        # except that it gives the answer
        ([("Conv", ["x", "w"], "c"), ("Relu", ["c"], "y")], {"y"}, {"y"}),
        ([("Conv", ["x", "w"], "c"), ("MaxPool", ["c"], "y")], {"y"}, set()),
    ],
)
def test_followers_that_stay_float(nodes: list[Node], followers: set[str], staying: set[str], class_contract: Contract) -> None:
    products = frozenset(output for op_type, _, output in nodes if op_type in ("MatMul", "Conv"))
    context = Int8Context(contract=class_contract, products=products, ranges={}, followers=frozenset(followers))
    assert float_followers(GraphEditor(model(*nodes)), context) == staying


PAIR: list[Node] = [("QuantizeLinear", ["m", "s", "z"], "q"), ("DequantizeLinear", ["q", "s", "z"], "d")]


@pytest.mark.parametrize(
    ("nodes", "goes"),
    [
        ([MATMUL, *PAIR, ("Gelu", ["d"], "y")], True),
        ([("Gemm", ["x", "w"], "m"), *PAIR, ("Reshape", ["d", "b"], "v"), ("Gelu", ["v"], "y")], True),
        ([MATMUL, *PAIR, ("QuantizeLinear", ["d", "s", "z"], "y")], False),
        ([MATMUL, *PAIR, ("Reshape", ["d", "b"], "v"), ("QuantizeLinear", ["v", "s", "z"], "y")], False),
        ([("Conv", ["x", "w"], "m"), *PAIR, ("Gelu", ["d"], "y")], False),
        ([MATMUL, *PAIR, ("Gelu", ["d"], "g"), ("DequantizeLinear", ["q", "s", "z"], "y")], False),  # two read the integers
    ],
)
def test_pairs_after_linear_layers_go_unless_integers_read_them(apply: Apply, class_contract: Contract, nodes: list[Node], goes: bool) -> None:
    before = model(*nodes)
    made, result = apply(float_linear, before, class_contract, products=["m"])
    assert result.changed == goes and ("q" not in {node.name for node in made.graph.node}) == goes
    if goes:
        assert "m" in next(node.input for node in made.graph.node if node.name in ("y", "v"))
    else:
        assert made == before
