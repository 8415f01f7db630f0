"""A copy at one size: nothing dynamic is left, and it gives the golden answers."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeport_export import ParityError
from edgeport_export.deploy import fixed
from edgeport_export.deploy.deployment import read_deployment
from edgeport_export.deploy.fixed import deploy_fixed, fixed_contract, fixed_model, take_branches, wanted_sizes
from edgeport_runtime import Bundle, Contract, InputError
from edgeport_runtime.engine import Engine

FIXTURES = Path(__file__).parents[2] / "fixtures" / "format2"
CLASSIFIER, GENERATOR = Bundle(FIXTURES / "classifier"), Bundle(FIXTURES / "generator")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("bundle", [CLASSIFIER, GENERATOR], ids=["classifier", "generator"])
@pytest.mark.parametrize(("size_px", "batch"), [(None, 1), (None, 3), ((24, 32), 2)])
def test_the_copy_has_one_size_and_the_bundles_answers(bundle: Bundle, precision: str, size_px: tuple[int, int] | None, batch: int, tmp_path: Path) -> None:
    found = deploy_fixed(bundle, tmp_path / "d", size_px=size_px, batch=batch, precision=precision)
    assert found.comparisons and all(found.comparisons)
    model = onnx.load(tmp_path / "d" / "model.onnx")
    for value in (*model.graph.input, *model.graph.output):
        assert all(each.dim_value > 0 and not each.dim_param for each in value.type.tensor_type.shape.dim)
    assert not {node.op_type for node in model.graph.node} & {"Shape", "If", "Loop", "ConstantOfShape", "Range"}
    assert {node.domain for node in model.graph.node} <= {""} and {each.domain for each in model.opset_import} <= {""}
    height, width = size_px or (16, 16)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    free = onnxruntime.InferenceSession(bundle.read(bundle.variant(precision)), providers=["CPUExecutionProvider"])
    one = onnxruntime.InferenceSession(str(tmp_path / "d" / "model.onnx"), providers=["CPUExecutionProvider"])
    expected, got = (each.run(None, {"pixels": pixels})[0] for each in (free, one))
    assert got.shape == expected.shape and np.abs(got.astype(float) - expected.astype(float)).max() <= (1 if got.dtype == np.uint8 else 1e-5)
    assert read_deployment(tmp_path / "d").altered == ()


def test_data_sets_and_contract_lie_beside_it(tmp_path: Path) -> None:
    deploy_fixed(GENERATOR, tmp_path / "d")
    listed = json.loads((tmp_path / "d" / "golden.json").read_text())
    assert listed and all(each["against"] == "PyTorch's stored outputs" for each in listed)
    session = onnxruntime.InferenceSession(str(tmp_path / "d" / "model.onnx"), providers=["CPUExecutionProvider"])
    for index, each in enumerate(listed):
        given, levels, shown = (
            numpy_helper.to_array(onnx.load_tensor(str(tmp_path / "d" / name)))
            for name in (each["inputs"][0], each["expected"][0], f"test_data_set_{index}/output_0.pb")
        )
        got = session.run(None, {"pixels": given})[0]
        assert np.abs(got.astype(float) - levels).max() <= each["tolerance"][0]["max_abs"] and shown.dtype == np.uint8
    contract = Contract.from_json((tmp_path / "d" / "contract.json").read_text())
    assert contract.axes == {} and contract.inputs[0].shape == (1, 16, 16, 3) and contract.outputs[0].shape == (1, 16, 16, 3)


def test_the_fixed_contract_is_one_that_the_model_keeps() -> None:
    sizes = {"batch": 2, "height": 24, "width": 20}
    contract = CLASSIFIER.manifest.contract
    model = fixed_model(CLASSIFIER.read(CLASSIFIER.variant("fp32")), contract, sizes)
    promised = fixed_contract(contract, onnx.load_from_string(model))
    assert (promised.pixels.height, promised.pixels.width) == (24, 20)
    with Engine(model, promised, fixed.SessionOptions()) as engine:
        assert engine.run({"pixels": np.zeros((2, 24, 20, 3), np.uint8)})["logits"].shape == (2, 3)


@pytest.mark.parametrize(
    ("size_px", "batch", "message"),
    [
        ((2, 16), 1, "the model promises 4..64 for the axis 'height', and 2 was asked for"),
        ((16, 65), 1, "the model promises 4..64 for the axis 'width', and 65 was asked for"),
        (None, 9, "the model promises 1..8 for the axis 'batch', and 9 was asked for"),
    ],
)
def test_sizes_that_are_not_promised_are_refused(size_px: tuple[int, int] | None, batch: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        deploy_fixed(CLASSIFIER, tmp_path / "d", size_px=size_px, batch=batch)
    assert not (tmp_path / "d").exists()


def test_a_size_that_is_fixed_already_cannot_be_another() -> None:
    one = fixed_contract(
        CLASSIFIER.manifest.contract,
        onnx.load_from_string(fixed_model(CLASSIFIER.read(CLASSIFIER.variant("fp32")), CLASSIFIER.manifest.contract, {"batch": 1, "height": 16, "width": 16})),
    )
    assert wanted_sizes(one, None, 1) == {} and wanted_sizes(one, (16, 16), 1) == {}
    with pytest.raises(InputError, match="the height of this model is fixed at 16 already, and 24 was asked for"):
        wanted_sizes(one, (24, 16), 1)


def test_a_copy_that_answers_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(model: bytes, contract: Contract, sizes: dict[str, int]) -> bytes:
        made = onnx.load_from_string(fixed_model(model, contract, sizes))
        bias = max((each for each in made.graph.initializer if each.data_type == onnx.TensorProto.FLOAT), key=lambda each: int(np.prod(each.dims)))
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) * 1.01, bias.name))
        return bytes(made.SerializeToString())

    monkeypatch.setattr(fixed, "fixed_model", spoiled)
    with pytest.raises(ParityError, match="the copy at one size does not give the bundle's answers, so nothing was written"):
        deploy_fixed(CLASSIFIER, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_a_branch_that_asks_for_sizes_is_decided_by_them() -> None:
    """The other one makes no sense at this size, and onnxruntime refuses such a graph: a view of four pixels as one, where the width is no multiple of four."""
    wide, tall = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "width"]), helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    quads = helper.make_graph(
        [helper.make_node("Reshape", ["doubled", "four"], ["seen"]), helper.make_node("ReduceSum", ["seen"], ["sum_4"], keepdims=0)],
        "quads",
        [],
        [helper.make_tensor_value_info("sum_4", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([-1, 4], np.int64), "four")],
    )
    plain = helper.make_graph(
        [helper.make_node("ReduceSum", ["doubled"], ["sum_1"], keepdims=0)], "plain", [], [helper.make_tensor_value_info("sum_1", TensorProto.FLOAT, None)]
    )
    nodes = [
        helper.make_node("Add", ["x", "x"], ["doubled"]),
        helper.make_node("Shape", ["x"], ["width"], start=1),
        helper.make_node("Mod", ["width", "c4"], ["left"]),
        helper.make_node("Equal", ["left", "c0"], ["fits"]),
        helper.make_node("If", ["fits"], ["total"], then_branch=quads, else_branch=plain),
        helper.make_node("Neg", ["total"], ["y"]),
    ]
    constants = [numpy_helper.from_array(np.array([value], np.int64), name) for name, value in (("c4", 4), ("c0", 0))]
    model = helper.make_model(helper.make_graph(nodes, "g", [wide], [tall], constants), opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    for width, operators in ((8, {"Add", "Constant", "Reshape", "ReduceSum", "Neg"}), (7, {"Add", "ReduceSum", "Neg"})):
        made = onnx.ModelProto()
        made.CopyFrom(model)
        given = {"x": np.arange(width, dtype=np.float32)[None]}
        take_branches(made, given)
        assert operators <= {node.op_type for node in made.graph.node} <= {*operators, "Shape", "Mod", "Equal"}
        onnx.checker.check_model(made, full_check=True)
        session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        assert session.run(None, given)[0] == -width * (width - 1)


def test_a_branch_that_asks_for_values_stays() -> None:
    value, out = helper.make_tensor_value_info("x", TensorProto.BOOL, [1]), helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    branches = [
        helper.make_graph(
            [helper.make_node("Constant", [], [f"v{i}"], value_float=float(i))], f"g{i}", [], [helper.make_tensor_value_info(f"v{i}", TensorProto.FLOAT, [])]
        )
        for i in (1, 0)
    ]
    for asked, before in (("x", []), ("not", [helper.make_node("Not", ["x"], ["not"])])):
        choice = helper.make_node("If", [asked], ["y"], then_branch=branches[0], else_branch=branches[1])
        model = helper.make_model(helper.make_graph([*before, choice], "g", [value], [out]))
        take_branches(model, {"x": np.array([True])})
        assert [node.op_type for node in model.graph.node] == [*(each.op_type for each in before), "If"]
