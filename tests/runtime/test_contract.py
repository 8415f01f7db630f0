import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeport_runtime import Contract, ContractError, InputError, Pixels
from edgeport_runtime.axes import Range, image_axes
from edgeport_runtime.contract import Input, Output, classification, image_to_image

LABELS = ("a", "b")
AXES = image_axes(smallest_px=4, largest_px=64, largest_batch=8)
GOOD = classification(Pixels(height=16, width=16), LABELS, AXES)


def test_json_round_trip_is_exact() -> None:
    gray = Pixels(height=9, width=7, mode="L", resize="crop", resize_shorter_px=12, interpolation="bicubic", mean=(0.1307,), std=(0.3081,))
    contract = image_to_image(gray, AXES)
    assert Contract.from_json(contract.to_json()) == contract
    assert Contract.from_json(contract.to_json()).to_json() == contract.to_json()


def test_every_fault_is_listed_at_once() -> None:
    with pytest.raises(ContractError) as caught:
        classification(Pixels(height=0, width=0, std=(0, 1, 1)), LABELS, {"batch": Range(low=3, high=2), "height": AXES["height"], "depth": AXES["width"]})
    for words in ("height must", "width must", "std must", "'width' of an input has no range", "'depth' has a range", "expected 1 <= low <= high"):
        assert words in str(caught.value)


def test_labels_must_match_the_classes() -> None:
    logits = Output(name="logits", dtype="float32", shape=("batch", 3), kind="logits")
    with pytest.raises(ContractError, match=r"2 labels for an output of shape \('batch', 3\)"):
        Contract(task="classification", inputs=GOOD.inputs, outputs=(logits,), axes=AXES, labels=LABELS)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"task": "classification"}', "null"])
def test_a_text_that_is_no_contract_is_refused(text: str) -> None:
    with pytest.raises(ContractError):
        Contract.from_json(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": (replace(GOOD.outputs[0], name="pixels"),)}, "inputs and outputs need names, each its own"),
        ({"outputs": (replace(GOOD.outputs[0], name=""),)}, "inputs and outputs need names, each its own"),
        ({"outputs": (replace(GOOD.outputs[0], dtype="floaty"),)}, "has the dtype 'floaty', expected one of float32"),
        ({"axes": {**GOOD.axes, "width": Range(low=17, high=64)}}, "the width of 'pixels' is 16 px, which is not within its own range 17..64"),
        ({"task": "segmentation", "labels": tuple("abcd")}, "4 labels for an output of shape"),
    ],
)
def test_a_contract_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=re.escape(message)):
        replace(GOOD, **changes)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([{"names": ("w", "w")}], "numbers and points of an image need names, each its own, got 'w', 'w'"),
        ([{"names": ("w", "h")}, {"name": "more", "names": ("h", "d")}], "each its own, got 'w', 'h', 'h', 'd'"),
        ([{"names": "wh"}], "names must be several texts and the unit one"),
        ([{"names": ("", "x")}], "names must be several texts and the unit one"),
        ([{"names": ("w", "h"), "unit": None}], "names must be several texts and the unit one"),
        ([{"names": ("w",)}], "has 1 names, each for one number of an image"),
        ([{"kind": "landmarks", "unit": "px", "names": ("tip", "end")}], "has 2 names, each for two numbers of an image"),
        ([{"kind": "landmarks", "unit": "mm", "names": ("tip",)}], "holds points, whose unit is 'px' or 'share', got 'mm'"),
        ([{"kind": "map", "range": (1.0, 1.0)}], "needs a range from a lower to a higher value"),
    ],
)
def test_numbers_with_a_meaning_need_names_of_their_own(outputs: list[dict[str, Any]], message: str) -> None:
    made = tuple(Output(**{"name": "sizes", "dtype": "float32", "shape": ("batch", 2), "kind": "tensor", **each}) for each in outputs)
    with pytest.raises(ContractError, match=message):
        replace(GOOD, task="tensors", outputs=made, labels=())


def test_names_and_unit_travel_as_json() -> None:
    sizes = Output(name="sizes", dtype="float32", shape=("batch", 2), kind="tensor", names=("width", "height"), unit="mm")
    contract = replace(GOOD, task="tensors", outputs=(sizes,), labels=())
    assert Contract.from_json(contract.to_json()) == contract and '"names"' not in GOOD.to_json()


def test_an_unknown_field_is_refused() -> None:
    data = json.loads(GOOD.to_json())
    data["inputs"][0]["pixels"]["gamma"] = 2.2
    with pytest.raises(ContractError, match="gamma"):
        Contract.from_dict(data)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "expected the inputs"),
        ({"image": np.zeros((1, 16, 16, 3), np.uint8)}, "expected the inputs"),
        ({"pixels": np.zeros((1, 16, 16, 3), np.float32)}, "got float32"),
        ({"pixels": np.zeros((16, 16, 3), np.uint8)}, r"got uint8 of shape \(16, 16, 3\)"),
        ({"pixels": np.zeros((1, 3, 16, 16), np.uint8)}, "expected 3 along axis 3, got 16|height must be within"),
        ({"pixels": np.zeros((0, 16, 16, 3), np.uint8)}, r"batch must be within 1\.\.8, got 0"),
        ({"pixels": np.zeros((9, 16, 16, 3), np.uint8)}, r"batch must be within 1\.\.8, got 9"),
        ({"pixels": np.zeros((1, 3, 16, 3), np.uint8)}, r"height must be within 4\.\.64, got 3"),
        ({"pixels": np.zeros((1, 16, 65, 3), np.uint8)}, r"width must be within 4\.\.64, got 65"),
    ],
)
def test_arrays_outside_the_contract_are_refused(arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GOOD.require_arrays(arrays)


@given(st.integers(0, 10), st.integers(0, 68), st.integers(0, 68))
def test_exactly_the_sizes_inside_the_ranges_are_accepted(batch: int, height: int, width: int) -> None:
    try:
        GOOD.require_arrays({"pixels": np.zeros((batch, height, width, 3), np.uint8)})
        accepted = True
    except InputError:
        accepted = False
    assert accepted is (1 <= batch <= 8 and 4 <= height <= 64 and 4 <= width <= 64)


def test_one_axis_has_one_size_in_all_inputs() -> None:
    inputs = tuple(Input(name=name, dtype="float32", shape=("batch", 4)) for name in ("a", "b"))
    out = Output(name="out", dtype="float32", shape=("batch",), kind="tensor")
    contract = Contract(task="tensors", inputs=inputs, outputs=(out,), axes={"batch": Range(low=1, high=8)})
    contract.require_arrays({"a": np.zeros((2, 4), np.float32), "b": np.zeros((2, 4), np.float32)})
    with pytest.raises(InputError, match="batch is 2 in another input, but 3 here"):
        contract.require_arrays({"a": np.zeros((2, 4), np.float32), "b": np.zeros((3, 4), np.float32)})
    with pytest.raises(ContractError, match="plain tensors"):
        _ = contract.pixels
