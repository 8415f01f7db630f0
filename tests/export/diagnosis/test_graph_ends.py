import numpy as np
import onnx
import pytest
import torch
from onnx import parser

from edgeport_export import ExportError
from edgeport_export.diagnosis.graph_ends import GraphEnds
from edgeport_runtime import Contract, Output, Pixels, Range
from edgeport_runtime.contract import classification, image_to_image

PIXELS = Pixels(height=4, width=6, mean=(0.5, 0.25, 0.125), std=(0.5, 0.25, 2.0))
CLASSES = classification(PIXELS, ("a", "b"), {"batch": Range(low=1, high=8), "height": Range(low=1, high=8), "width": Range(low=1, high=8)})


def ends(signature: str) -> GraphEnds:
    """Of a graph that hands its inputs on."""
    return GraphEnds.of(parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> g {signature} {{}}'))


@pytest.mark.parametrize(
    ("shape", "dtype", "layout"),
    [
        ("1,3,4,6", "float", (0, 3, 1, 2)),
        ("N,3,H,W", "float", (0, 3, 1, 2)),
        ("N,H,W,3", "float", (0, 1, 2, 3)),
        ("N,3,3,3", "float", (0, 3, 1, 2)),  # if both would do, PyTorch's own
        ("N,3,H,W", "double", (0, 3, 1, 2)),
    ],
)
def test_a_float_image_is_normalized_and_laid_out_as_torch_would(shape: str, dtype: str, layout: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 6, 3)).astype(np.uint8)
    got = ends(f"({dtype}[{shape}] image) => ({dtype}[{shape}] image)").feed({"pixels": pixels}, CLASSES)["image"]
    mean, std = torch.tensor(PIXELS.mean, dtype=torch.float64), torch.tensor(PIXELS.std, dtype=torch.float64)
    expected = ((torch.from_numpy(pixels).double() / 255 - mean) / std).permute(*layout).numpy()
    assert got.dtype == {"float": np.float32, "double": np.float64}[dtype]
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_pixels_go_in_as_they_are_if_the_graph_takes_pixels() -> None:
    pixels = np.zeros((2, 4, 6, 3), np.uint8)
    assert ends("(uint8[N,H,W,3] pixels) => (float[N,2] logits)").feed({"pixels": pixels}, CLASSES)["pixels"] is pixels


@pytest.mark.parametrize(
    ("shape", "fixed"), [("1,3,4,6", {"batch": 1, "height": 4, "width": 6}), ("N,3,H,6", {"width": 6}), ("2,H,W,3", {"batch": 2}), ("N,3,H,W", {})]
)
def test_the_sizes_that_a_file_fixes_are_read_in_its_own_layout(shape: str, fixed: dict[str, int]) -> None:
    assert ends(f"(float[{shape}] x) => (float[N,2] y)").sizes(CLASSES) == fixed


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        ("(float[N,2] y)", ["y"]),  # one output each: by place
        ("(float[N,2] logits)", ["logits"]),
    ],
)
def test_outputs_are_found_by_name_or_by_place(outputs: str, names: list[str]) -> None:
    assert ends(f"(float[N,3,H,W] x) => {outputs}").compared_names(CLASSES) == names


def test_another_number_of_ends_is_refused() -> None:
    with pytest.raises(ExportError, match=r"plain\.onnx has 2 outputs \(y, z\), but 1 are to be compared \(logits\)"):
        ends("(float[N,3,H,W] x) => (float[N,2] y, float[N,2] z)").require_fit(CLASSES, "plain.onnx")
    with pytest.raises(ExportError, match=r"has 2 inputs"):
        ends("(float[N,3,H,W] x, float[N] z) => (float[N,2] y)").require_fit(CLASSES, "plain.onnx")


def test_an_output_that_is_missing_has_no_name() -> None:
    two = Contract(**{**vars(CLASSES), "task": "tensors", "outputs": (*CLASSES.outputs, Output(name="more", dtype="float32", shape=(2,), kind="tensor"))})
    named, placed = ends("(float[N,3,H,W] x) => (float[2] more)"), ends("(float[N,3,H,W] x) => (float[2] y)")
    named.require_fit(two, "plain.onnx")
    assert named.compared_names(two) == [None, "more"] and placed.compared_names(two) == ["y", None]


@pytest.mark.parametrize("values", ["NCHW", "NHWC"])
def test_an_image_of_floats_becomes_levels(values: str) -> None:
    """-1 is black, 1 white; 0 lies between them, at 127.5; what is outside is clipped."""
    contract = image_to_image(Pixels(height=2, width=3), {"batch": Range(low=1, high=4)} | {side: Range(low=1, high=9) for side in ("height", "width")})
    image = np.linspace(-1.5, 1, 18, dtype=np.float32).reshape(1, 2, 3, 3)
    expected = np.clip((image.astype(np.float64) + 1) / 2 * 255, 0, 255)
    got = ends("(float[N,3,H,W] x) => (float[N,3,H,W] y)").answer(image.transpose(0, 3, 1, 2) if values == "NCHW" else image, contract.outputs[0])
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_contract_is_read_from_what_the_file_declares() -> None:
    found = ends("(float[N,5] x, int64[3] indices) => (double[N,M] y)")
    contract = found.contract()
    assert isinstance(contract, Contract) and contract.task == "tensors"
    assert [(each.name, each.dtype, each.shape) for each in contract.inputs] == [("x", "float32", ("N", 5)), ("indices", "int64", (3,))]
    assert [(each.name, each.dtype) for each in contract.outputs] == [("y", "float64")] and set(contract.axes) == {"N"}
    assert found.contract({"N": 7}).inputs[0].shape == (7, 5)


def test_weights_among_the_inputs_are_no_inputs() -> None:
    """As files of IR 3 and older list them."""
    model = parser.parse_model('<ir_version: 3, opset_import: ["" : 11]> g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }')
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"))
    assert [each.name for each in GraphEnds.of(model).inputs] == ["x"]


def test_a_sequence_is_refused() -> None:
    with pytest.raises(ExportError, match="'x' is sequence: only graphs whose inputs and outputs are tensors"):
        ends("(seq(float[2]) x) => (float[2] y)")
