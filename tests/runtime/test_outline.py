"""What a model file says of itself, and files that are refused before onnxruntime sees them; each was tried on it."""

import pytest

from edgeport_runtime import FormatError
from edgeport_runtime.outline import DEEPEST, Outline, read_outline

onnx = pytest.importorskip("onnx")  # the device has none
from onnx import TensorProto, helper  # noqa: E402

X, Y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
WEIGHT = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])


def outline_of(nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto] | None = None, **changes: object) -> Outline:
    graph = helper.make_graph(nodes, "g", [X], [Y], initializers or [])
    return read_outline(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], **changes).SerializeToString())


def within(node: onnx.NodeProto, depth: int) -> onnx.NodeProto:
    """The node within so many graphs."""
    for _ in range(depth):
        node = helper.make_node("If", ["x"], ["y"], then_branch=helper.make_graph([node], "g", [], [Y]))
    return node


def test_the_outline_of_a_model_written_by_hand() -> None:
    node = b"\x0a\x05\x22\x03Add"  # graph.node: op_type "Add"
    kept_outside = b"\x2a\x05\x42\x01w\x70\x01"  # graph.initializer: name "w", data_location EXTERNAL
    graph = node + kept_outside
    model = b"\x08\x0a" + b"\x3a" + bytes([len(graph)]) + graph + b"\x42\x02\x10\x14" + b"\x72\x06\x0a\x01k\x12\x01v"
    outline = read_outline(model)
    assert (outline.ir_version, outline.opsets, outline.metadata, outline.nodes, outline.external) == (10, {"ai.onnx": 20}, {"k": "v"}, 1, ["w"])
    assert outline.operators == {"Add"}


def tensor(**fields: object) -> onnx.TensorProto:
    made = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    for name, value in fields.items():
        if name in ("dims", "float_data", "int32_data"):
            del getattr(made, name)[:]
            getattr(made, name).extend(value)
        else:
            setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("data", "good"),
    [
        (tensor(raw_data=bytes(8)), True),
        (tensor(float_data=[1.0, 2.0]), True),
        (tensor(dims=[], raw_data=bytes(4)), True),
        (tensor(dims=[0]), True),
        (tensor(dims=[3], raw_data=b"\x12\x03", data_type=TensorProto.INT4), True),  # two in a byte
        (tensor(dims=[4], int32_data=[1, 2], data_type=TensorProto.INT4), True),
        (tensor(dims=[3], raw_data=b"\x12", data_type=TensorProto.INT4), False),
        (tensor(raw_data=bytes(7)), False),
        (tensor(raw_data=bytes(9)), False),
        (tensor(dims=[2**40]), False),  # would be allocated
        (tensor(dims=[2**62, 4], raw_data=b""), False),  # 0 elements in 64 bits
        (tensor(dims=[-1], raw_data=bytes(4)), False),
        (tensor(dims=[1] * 33, raw_data=bytes(4)), False),
        (tensor(dims=[1] * 1_000_000, raw_data=bytes(4)), False),
        (tensor(raw_data=bytes(8), data_type=99), False),
    ],
)
@pytest.mark.parametrize("place", ["initializer", "attribute", "graph within a graph"])
def test_a_tensors_data_fill_its_dims(data: onnx.TensorProto, good: bool, place: str) -> None:
    constant = helper.make_node("Constant", [], ["c"])
    constant.attribute.append(helper.make_attribute("value", data))
    nodes = {"initializer": helper.make_node("Add", ["x", "w"], ["y"]), "attribute": constant, "graph within a graph": within(constant, 2)}
    found = outline_of([nodes[place]], [data] if place == "initializer" else [])
    assert (found.fault is None) is good
    assert good or str(found.fault).startswith("the tensor 'w' of dims [")


def outside(place: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    data = tensor(data_location=TensorProto.EXTERNAL)
    data.external_data.add(key="location", value="/etc/passwd")
    constant = helper.make_node("Constant", [], ["c"])
    constant.attribute.append(helper.make_attribute("value", data))
    add = helper.make_node("Add", ["x", "w"], ["y"])
    return {"initializer": ([add], [data]), "attribute": ([constant], []), "graph within a graph": ([within(constant, 3)], [])}[place]


@pytest.mark.parametrize("place", ["initializer", "attribute", "graph within a graph"])
def test_external_data_are_found_wherever_they_are(place: str) -> None:
    assert outline_of(*outside(place)).external == ["w"]
    only_listed = outside(place)
    for node in only_listed[0]:
        for each in node.attribute:
            each.t.data_location = TensorProto.DEFAULT
    for each in only_listed[1]:
        each.data_location = TensorProto.DEFAULT
    assert place == "graph within a graph" or outline_of(*only_listed).external == ["w"]


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_operators_of_other_domains_are_found_wherever_they_are(depth: int) -> None:
    own = helper.make_node("Add", ["x", "w"], ["y"], domain="ai.onnx")
    assert outline_of([within(own, depth)], [WEIGHT]).foreign == []
    for domain in ("com.microsoft", "evil", "\0"):
        assert outline_of([within(helper.make_node("Add", ["x", "w"], ["y"], domain=domain), depth)], [WEIGHT]).foreign == [domain]


def test_a_domain_that_is_given_twice_counts_twice() -> None:
    """Protobuf takes the last one."""
    node = helper.make_node("Add", ["x", "w"], ["y"]).SerializeToString()
    twice = node + b"\x3a\x04evil" + b"\x3a\x00"
    graph = b"\x0a" + bytes([len(twice)]) + twice
    assert read_outline(b"\x08\x0a" + b"\x3a" + bytes([len(graph)]) + graph).foreign == ["evil"]


def test_graphs_lie_only_so_deep_in_one_another() -> None:
    node = helper.make_node("Add", ["x", "w"], ["y"])
    assert outline_of([within(node, DEEPEST)], [WEIGHT]).nodes == 1
    with pytest.raises(FormatError, match="graphs lie more than 16 deep in one another"):
        outline_of([within(node, DEEPEST + 1)], [WEIGHT])


def test_functions_sparse_tensors_and_settings_are_refused() -> None:
    node = helper.make_node("Add", ["x", "w"], ["y"])
    function = helper.make_function("d", "f", ["a"], ["b"], [helper.make_node("Abs", ["a"], ["b"])], [helper.make_opsetid("", 20)])
    assert outline_of([node], [WEIGHT], functions=[function]).fault == "functions of its own, whose expansion has crashed onnxruntime"
    sparse = helper.make_sparse_tensor(WEIGHT, helper.make_tensor("i", TensorProto.INT64, [2], [0, 1]), [9])
    graph = helper.make_graph([node], "g", [X], [Y], [], sparse_initializer=[sparse])
    assert read_outline(helper.make_model(graph).SerializeToString()).fault == "a sparse tensor"
    constant = helper.make_node("Constant", [], ["c"])
    constant.attribute.append(helper.make_attribute("sparse_value", sparse))
    assert outline_of([constant]).fault == "a sparse tensor"
    model = helper.make_model(helper.make_graph([node], "g", [X], [Y], [WEIGHT]))
    helper.set_model_props(model, {"ort_config": "{}"})
    assert "metadata named ort_config" in str(read_outline(model.SerializeToString()).fault)


def constant_only(operator: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, ["w", "w"] if operator in ("Div", "Add", "MatMul") else ["w"], ["c"], **attributes)


@pytest.mark.parametrize("operator", ["Div", "Add", "MatMul", "ConstantOfShape", "Relu", "Tile", "Loop"])
@pytest.mark.parametrize("depth", [0, 2])
def test_what_is_computed_at_load_is_only_shaping(operator: str, depth: int) -> None:
    """An int32 of -2^31 divided by -1 ended the process; sixty ConstantOfShape took 4 GB, and forty MatMuls half a minute."""
    found = outline_of([within(constant_only(operator), depth), helper.make_node("Add", ["x", "w"], ["y"])], [WEIGHT])
    assert found.fault == f"a node of the operator '{operator}' that computes from constants alone"
    fed = helper.make_node(operator, ["x", "x"], ["y"])
    assert outline_of([within(fed, depth)], [WEIGHT]).fault is None


def test_constants_may_be_converted_and_shaped() -> None:
    nodes = [
        helper.make_node("Constant", [], ["k"], value=WEIGHT),
        helper.make_node("DequantizeLinear", ["w", "w"], ["d"]),
        helper.make_node("Transpose", ["d"], ["t"]),
        helper.make_node("Unsqueeze", ["t", "w"], ["u"]),
        helper.make_node("Add", ["x", "u"], ["y"]),
    ]
    assert outline_of(nodes, [WEIGHT]).fault is None
    assert outline_of([helper.make_node("Add", ["k", "k"], ["y"]), *nodes[:0]], [tensor(name="k", raw_data=bytes(8))]).fault is not None


def test_an_initializer_that_is_an_input_is_no_constant() -> None:
    """A caller may give another value, so it is not computed with beforehand."""
    graph = helper.make_graph([helper.make_node("Div", ["w", "w"], ["y"])], "g", [helper.make_tensor_value_info("w", TensorProto.FLOAT, [2])], [Y], [WEIGHT])
    assert read_outline(helper.make_model(graph).SerializeToString()).fault is None


def test_many_conversions_of_one_constant_are_too_many() -> None:
    """Each takes memory of its own: 100 casts of 4 MB are 400 MB of a file of 4 MB, 1,600 if they widen."""
    large = tensor(name="w", dims=[2**20], raw_data=bytes(2**22))
    few, many = ([helper.make_node("Cast", ["w"], [f"c{index}"], to=1) for index in range(count)] for count in (5, 100))
    assert outline_of([*few, helper.make_node("Add", ["x", "w"], ["y"])], [large]).fault is None
    assert outline_of([*many, helper.make_node("Add", ["x", "w"], ["y"])], [large]).fault == "constants that become many times as large as the file"


def test_nodes_come_in_the_order_in_which_they_run() -> None:
    """Or a chain that is listed backwards would hide what is constant."""
    nodes = [helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Relu", ["w"], ["a"])]
    assert outline_of(nodes, [WEIGHT]).fault == "a node that reads 'a' before anything has made it"


def test_a_model_has_only_so_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeport_runtime.outline.MOST_PARTS", 10)
    nodes = [helper.make_node("Abs", ["x" if index == 0 else f"v{index - 1}"], [f"v{index}"]) for index in range(12)]
    assert outline_of(nodes[:7]).nodes == 7
    with pytest.raises(FormatError, match="of at most 10 nodes and tensors, got more"):
        outline_of(nodes)


def test_a_million_faults_are_told_as_one() -> None:
    wrong = [tensor(name=f"w{index}", raw_data=b"") for index in range(1000)]
    others = [helper.make_node("Add", ["x", "x"], ["y"], domain=f"domain{index}") for index in range(1000)]
    found = outline_of(others, wrong)
    assert str(found.fault).startswith("the tensor 'w0'") and len(found.foreign) == 5
