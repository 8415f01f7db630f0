from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from PIL import Image
from torch import nn

from edgeport_export.diagnosis import inputs as module
from edgeport_export.diagnosis.inputs import inputs_of
from edgeport_export.diagnosis.sides import GraphSide, NetworkSide, Side
from edgeport_runtime import Bundle, Contract, InputError
from edgeport_runtime.golden_inputs import case_inputs


@pytest.fixture
def sides(tiny_bundle: Path, network: nn.Module) -> tuple[Side, Side]:
    return GraphSide.of_bundle(Bundle(tiny_bundle)), NetworkSide(name="net", network=network)


def test_the_sweep_is_the_default_and_takes_the_sizes_that_both_know(
    sides: tuple[Side, Side], plain_file: Path, class_contract: Contract, tmp_path: Path
) -> None:
    found = inputs_of(None, sides, class_contract)
    shapes = {case.arrays["pixels"].shape for case in found.cases}
    assert found.kind == "sweep" and len(found.cases) == 9 and not found.left_out and (5, 8, 11, 3) in shapes
    model = onnx.load(plain_file)
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (3, 3, 24, 24), strict=True):
        dim.dim_value = size
    onnx.save(model, tmp_path / "fixed.onnx")
    narrow = inputs_of(None, (sides[0], GraphSide.of_file(tmp_path / "fixed.onnx")), class_contract)
    assert [case.arrays["pixels"].shape for case in narrow.cases] == [(3, 24, 24, 3)]
    assert narrow.left_out == "one of the models takes batch 3, height 24, width 24 alone, so 8 sizes were left out"


def test_a_size_outside_the_contract_is_refused(sides: tuple[Side, Side], plain_file: Path, class_contract: Contract, tmp_path: Path) -> None:
    model = onnx.load(plain_file)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 999
    onnx.save(model, tmp_path / "tall.onnx")
    with pytest.raises(InputError, match="takes height=999 alone, which the other does not promise"):
        inputs_of(None, (sides[0], GraphSide.of_file(tmp_path / "tall.onnx")), class_contract)


def test_golden_cases_are_taken_if_one_side_is_int8(tiny_bundle: Path, sides: tuple[Side, Side], class_contract: Contract) -> None:
    found = inputs_of(None, (GraphSide.of_bundle(Bundle(tiny_bundle), "int8"), sides[1]), class_contract)
    stored = Bundle(tiny_bundle)
    expected = [case_inputs(stored, case)["pixels"] for case in stored.manifest.golden]
    own = [case_inputs(stored, case)["pixels"] for case in stored.manifest.golden if case.sizes is None]
    own = [array for array in own if array.shape[1:3] == (16, 16)]
    assert any(case.sizes is not None and case.sizes["height"] == 16 for case in stored.manifest.golden)  # a pattern at the own size, which is left out
    for given, arrays in ((found, own), (inputs_of("golden", sides, class_contract), expected)):
        assert given.kind == "golden" and len(arrays) == len(given.cases) > 0
        assert all(np.array_equal(case.arrays["pixels"], array) for case, array in zip(given.cases, arrays, strict=True))
    assert 0 < len(own) < len(expected)
    with pytest.raises(InputError, match="neither side has golden cases"):
        inputs_of("golden", (sides[1], sides[1]), class_contract)


def test_golden_cases_of_a_backend_test_by_the_numbers_of_their_files(tmp_path: Path) -> None:
    """input_10 comes after input_9."""
    names = [f"x{index}" for index in range(11)]
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> g ({", ".join(f"float[2] {n}" for n in names)}) => (float[2] y) {{ y = Add(x0, x1) }}'
    )
    folder = tmp_path / "test_data_set_0"
    folder.mkdir()
    for index in range(11):
        (folder / f"input_{index}.pb").write_bytes(numpy_helper.from_array(np.full(2, index, np.float32)).SerializeToString())
    onnx.save(model, tmp_path / "model.onnx")
    side = GraphSide.of_file(tmp_path / "model.onnx")
    found = inputs_of("golden", (side, side), side.ends.contract())
    assert {name: array[0] for name, array in found.cases[0].arrays.items()} == {name: index for index, name in enumerate(names)}


def test_images_come_with_their_truth_if_the_folders_are_labels(
    sides: tuple[Side, Side], class_contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label in ("dark", "bright"):
        for index in range(3):
            (tmp_path / label).mkdir(exist_ok=True)
            Image.new("RGB", (16, 16), (index, 0, 0)).save(tmp_path / label / f"{index}.png")
    found = inputs_of(tmp_path, sides, class_contract)
    truths = [each.truth for case in found.cases for each in case.examples]
    assert found.kind == "images" and sorted(truths) == [0, 0, 0, 2, 2, 2] and sum(len(case.arrays["pixels"]) for case in found.cases) == 6
    monkeypatch.setattr(module, "MOST_IMAGES", 4)
    assert inputs_of(tmp_path, sides, class_contract).left_out == "4 of 6 images were taken, evenly"
    (tmp_path / "dark").rename(tmp_path / "others")
    with pytest.raises(InputError, match="others which is no label"):
        inputs_of(tmp_path, sides, class_contract)


def test_examples_and_arrays_from_python(sides: tuple[Side, Side], class_contract: Contract, tiny: ModuleType, tmp_path: Path) -> None:
    found = inputs_of(tiny.brightness_examples(6, seed=0), sides, class_contract)
    assert [each.truth for case in found.cases for each in case.examples] == [0, 1, 2, 0, 1, 2]
    given = [{"pixels": np.zeros((1, 8, 8, 3), np.uint8)}, {"pixels": np.ones((2, 9, 9, 3), np.uint8)}]
    assert [case.arrays["pixels"].shape for case in inputs_of(given, sides, class_contract).cases] == [(1, 8, 8, 3), (2, 9, 9, 3)]
    for index, arrays in enumerate(given):
        np.savez(tmp_path / f"{index}.npz", **arrays)
    assert [case.name for case in inputs_of(tmp_path, sides, class_contract).cases] == ["0.npz", "1.npz"]
    assert inputs_of(tmp_path / "1.npz", sides, class_contract).cases[0].arrays["pixels"].shape == (2, 9, 9, 3)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.npz", b"text", "x.npz: this cannot be read as an .npz file of named arrays; numpy.savez writes one"),
        ("x.npz", None, "expected sweep, golden, a folder of images, an .npz file or a folder of them, but there is no such file or folder"),
        ("swep", None, "swep: expected sweep, golden, a folder of images"),
    ],
)
def test_what_cannot_be_read_says_its_name(
    name: str, content: bytes | None, words: str, sides: tuple[Side, Side], class_contract: Contract, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        inputs_of(tmp_path / name, sides, class_contract)
    assert words in str(caught.value)


def test_one_array_for_one_input_needs_no_name_and_two_are_refused(sides: tuple[Side, Side], class_contract: Contract) -> None:
    image = np.zeros((1, 8, 8, 3), np.uint8)
    assert inputs_of([{"image": image}], sides, class_contract).cases[0].arrays["pixels"] is image
    with pytest.raises(InputError, match=r"expected the inputs \['pixels'\], got \['image', 'pixels'\]"):
        inputs_of([{"image": image, "pixels": image}], sides, class_contract)
    with pytest.raises(InputError, match=r"expected sweep, golden, .*, several images or mappings from names to arrays, got int"):
        inputs_of(7, sides, class_contract)  # type: ignore[arg-type]
    assert inputs_of([], sides, class_contract).cases == ()


def test_images_follow_the_batch_and_size_that_a_file_fixes(
    sides: tuple[Side, Side], plain_file: Path, class_contract: Contract, tiny: ModuleType, tmp_path: Path
) -> None:
    """Seven images for a file of two: three runs, and one image is left out."""
    model = onnx.load(plain_file)
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (2, 3, 24, 20), strict=True):
        dim.dim_value = size
    onnx.save(model, tmp_path / "fixed.onnx")
    found = inputs_of(tiny.brightness_examples(7, seed=0), (sides[0], GraphSide.of_file(tmp_path / "fixed.onnx")), class_contract)
    assert [case.arrays["pixels"].shape for case in found.cases] == [(2, 24, 20, 3)] * 3 and found.left_out == "6 of 7 images were taken"
