import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeport_export.diagnosis.nearby_graph import nearby_graph, nearby_inputs
from edgeport_export.validation.last_bits import LAST_BIT


def test_weights_move_by_their_last_bit_and_nothing_else_moves() -> None:
    weights = np.linspace(-3, 3, 101, dtype=np.float32)
    kept = {"sizes": np.arange(4), "half": weights.astype(np.float16)}
    graph = onnx.helper.make_graph([], "g", [], [], [numpy_helper.from_array(weights, "w"), *(numpy_helper.from_array(v, k) for k, v in kept.items())])
    model = onnx.helper.make_model(graph)
    first, again, other = (onnx.load_from_string(nearby_graph(model, seed)).graph.initializer for seed in (0, 0, 1))
    arrays = {each.name: numpy_helper.to_array(each) for each in first}
    moved = np.abs(arrays["w"].astype(np.float64) - weights) / np.maximum(np.abs(weights), 1e-30)
    assert 0 < moved.max() <= 1.5 * LAST_BIT and (moved > 0).mean() > 0.3 and arrays["w"].dtype == np.float32
    assert all(np.array_equal(arrays[name], value) for name, value in kept.items())
    assert np.array_equal(numpy_helper.to_array(again[0]), arrays["w"]) and not np.array_equal(numpy_helper.to_array(other[0]), arrays["w"])
    assert np.array_equal(numpy_helper.to_array(model.graph.initializer[0]), weights)


@pytest.mark.parametrize(("dtype", "moves"), [("float32", True), ("uint8", False), ("int64", False)])
def test_inputs_that_are_floats_move_too(dtype: str, moves: bool) -> None:
    given = np.arange(1, 100).astype(dtype)
    assert np.array_equal(nearby_inputs({"x": given}, 0)["x"], given) is not moves
