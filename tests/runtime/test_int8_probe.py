import pytest

from edgeport_runtime import int8_probe
from edgeport_runtime.outline import read_outline


def test_the_probe_answers_and_remembers() -> None:
    assert int8_probe.int8_products_are_exact() in (True, False)
    assert int8_probe.int8_products_are_exact.cache_info().currsize == 1
    assert read_outline(int8_probe.MODEL).nodes == 1 and int8_probe.EXACT == 2_072_640


def test_a_saturating_cpu_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_probe, "EXACT", 1_048_544)  # such a CPU gives another number than expected, and the other way round
    int8_probe.int8_products_are_exact.cache_clear()
    try:
        assert not int8_probe.int8_products_are_exact()
    finally:
        int8_probe.int8_products_are_exact.cache_clear()


def test_the_stored_bytes_are_the_graph_that_they_are_called() -> None:
    onnx = pytest.importorskip("onnx")  # which the runtime itself never needs
    helper, types = onnx.helper, onnx.TensorProto
    inputs = [helper.make_tensor_value_info("x", types.UINT8, [1, 64]), helper.make_tensor_value_info("w", types.INT8, [64, 16])]
    output = helper.make_tensor_value_info("y", types.INT32, [1, 16])
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["x", "w"], ["y"])], "probe", inputs, [output])
    assert onnx.load_from_string(int8_probe.MODEL) == helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
