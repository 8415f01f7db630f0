from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeport_export.diagnosis.int8_products import Int8Products, IntegerProduct
from edgeport_export.quantization.macs import session_with_outputs


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return {"pixels": np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)}


@pytest.fixture(scope="module")
def products(tiny_bundle: Path, arrays: dict[str, np.ndarray]) -> Int8Products:
    return Int8Products(onnx.load(tiny_bundle / "model.onnx"), onnx.load(tiny_bundle / "model.int8.onnx"), arrays)


def product(products: Int8Products, module: str) -> IntegerProduct:
    return next(each for each in products.products if each.module == module)


def test_every_integer_product_is_found_between_values_of_both_graphs(products: Int8Products) -> None:
    assert [each.module for each in products.products] == ["conv1", "conv2", "head"] and not products.unmatched
    for each in products.products:
        assert each.output in products.fp32.producers and set(each.inputs) <= products.common
    assert product(products, "conv1").inputs == ("pixels",) and product(products, "conv2").inputs == (product(products, "conv1").output,)


def test_all_products_in_place_one_after_the_other_are_the_int8_graph(products: Int8Products, arrays: dict[str, np.ndarray]) -> None:
    """The last product, fed with what the int8 graph itself gives before it: its own answer, in onnxruntime."""
    placed = products.in_place_of(product(products, "head"))
    alone = session_with_outputs(placed.model, [placed.value]).run(None, arrays)[0]
    exact, int8 = (session_with_outputs(model, ["logits"]).run(None, arrays)[0] for model in (products.fp32.model, products.int8.model))
    assert 0 < np.abs(alone - exact).max() < np.abs(int8 - exact).max()
    assert [each.name for each in placed.model.graph.output] == [placed.value]


def test_a_relu_that_a_roundings_limits_stand_for_is_kept(products: Int8Products, arrays: dict[str, np.ndarray]) -> None:
    first = product(products, "conv1")
    placed = products.in_place_of(first)
    got = session_with_outputs(placed.model, [placed.value]).run(None, arrays)[0]
    exact = session_with_outputs(products.fp32.model, [first.output]).run(None, arrays)[0]
    assert exact.min() == 0 and got.min() == 0 and np.abs(got - exact).max() < 0.05 * exact.max()


def test_roundings_have_the_steps_and_limits_of_the_graph(products: Int8Products) -> None:
    rounding = products.roundings(product(products, "conv2"))[0]
    node = next(each for each in products.int8.nodes if each.op_type == "QuantizeLinear" and each.input[0] == rounding.value)
    stored = {each.name: numpy_helper.to_array(each) for each in products.int8.graph.initializer}
    scale, zero = float(stored[node.input[1]]), int(stored[node.input[2]])
    assert rounding.step == pytest.approx(scale) and rounding.low == pytest.approx(-zero * scale) and rounding.high == pytest.approx((255 - zero) * scale)


def test_weights_are_read_beside_the_exact_ones(products: Int8Products) -> None:
    weights = products.weights(product(products, "conv2"))
    assert weights is not None and weights.exact is not None and weights.axis == 0
    assert np.abs(weights.integers).max() == 127 and weights.steps.shape == (16,)
    restored = weights.integers * weights.steps.reshape(-1, 1, 1, 1)
    assert np.abs(restored - weights.exact).max() < 0.1 * np.abs(weights.exact).max()


def test_with_exact_inputs_only_the_weights_are_rounded(products: Int8Products, arrays: dict[str, np.ndarray]) -> None:
    """By hand: the fp32 product with the restored weights."""
    second = product(products, "conv2")
    assert products.can_read_exact_inputs(second)
    placed = products.in_place_of(second, with_exact_inputs=True)
    assert not any(node.op_type == "QuantizeLinear" for node in placed.model.graph.node)
    got = session_with_outputs(placed.model, [placed.value]).run(None, arrays)[0]
    both = products.in_place_of(second)
    rounded = session_with_outputs(both.model, [both.value]).run(None, arrays)[0]
    exact = session_with_outputs(products.fp32.model, [second.output]).run(None, arrays)[0]
    assert 0 < np.square(got - exact).mean() < np.square(rounded - exact).mean()
