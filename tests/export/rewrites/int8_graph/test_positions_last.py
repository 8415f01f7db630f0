"""Sequences of positions in the layout of the integer kernels: held bit for bit to the graph before."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch

from edgeport_export.quantization.qdq import observed_values, preprocess
from edgeport_export.quantization.targets import TARGETS
from edgeport_export.rewrites.graph import PassResult
from edgeport_export.rewrites.int8_graph.attention_product import attention_product
from edgeport_export.rewrites.int8_graph.positions_last import positions_last
from edgeport_export.tracing.exporter import trace
from edgeport_models import AttentionNet, network
from edgeport_runtime import Contract, SessionOptions
from edgeport_runtime.device import open_session

Apply = Callable[..., tuple[onnx.ModelProto, PassResult]]
CONTRACT: Contract = network("attention").contract(tuple("0123456789"), 32)
PRODUCT = "attention.attention/MatMul_2"


@pytest.fixture(scope="module")
def prepared() -> onnx.ModelProto:
    torch.manual_seed(0)
    return preprocess(trace(AttentionNet(channels=32).eval(), CONTRACT).model)


@pytest.mark.parametrize("sides", [(32, 32), (40, 56), (33, 75)])
@pytest.mark.parametrize("batch", [1, 3])
def test_sequences_of_positions_are_the_same_numbers_in_another_layout(apply: Apply, prepared: onnx.ModelProto, sides: tuple[int, int], batch: int) -> None:
    ranges = dict.fromkeys(observed_values(prepared, TARGETS["x86-vnni"]), (-3.0, 3.0))
    convolutions = {node.name for node in prepared.graph.node if node.op_type == "Conv"}
    pixels = np.random.default_rng(0).integers(0, 256, (batch, *sides, 3), dtype=np.uint8)
    for products, places in ((convolutions, 3), (convolutions | {PRODUCT}, 4)):  # query, key, value; and the way back to a map
        before, _ = apply(attention_product, prepared, CONTRACT, products=products, ranges=ranges)
        after, result = apply(positions_last, before, CONTRACT, products=products, ranges=ranges)
        assert result.changed == places
        onnx.checker.check_model(after, full_check=True)
        answers = [open_session(each.SerializeToString(), SessionOptions(threads=1)).run(["logits"], {"pixels": pixels})[0] for each in (before, after)]
        np.testing.assert_allclose(answers[1], answers[0], atol=1e-6 * np.ptp(answers[0]))
        read = {name for node in after.graph.node for name in node.input}
        assert all(node.output[0] in read for node in after.graph.node if node.op_type == "Transpose")


def test_other_reshapes_stay(apply: Apply, prepared: onnx.ModelProto) -> None:
    made, result = apply(positions_last, prepared, CONTRACT, products=[])
    assert not result and made == prepared
