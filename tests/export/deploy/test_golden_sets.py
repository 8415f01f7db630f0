"""Golden cases as arrays: the bundle's own, cut into batches, or made where it has none."""

from pathlib import Path

import numpy as np

from edgeport_export.deploy.golden_sets import PYTORCH, sets_at, sizes_of, stored_sets
from edgeport_runtime import Bundle, load

FIXTURES = Path(__file__).parents[2] / "fixtures" / "format2"
CLASSIFIER, GENERATOR = Bundle(FIXTURES / "classifier"), Bundle(FIXTURES / "generator")


def test_stored_cases_are_those_of_the_bundle() -> None:
    found = stored_sets(CLASSIFIER, "fp32")
    stored = [case for case in CLASSIFIER.manifest.golden if case.sizes is None]
    assert [each.name for each in found] == [case.folder for case in stored] and {each.against for each in found} == {PYTORCH}
    for each, case in zip(found, stored, strict=True):
        np.testing.assert_array_equal(each.expected["logits"], CLASSIFIER.tensor(case.outputs[0]))
        np.testing.assert_array_equal(each.inputs["pixels"], CLASSIFIER.tensor(case.inputs[0]))
    int8 = stored_sets(CLASSIFIER, "int8")
    np.testing.assert_array_equal(int8[0].expected["logits"], CLASSIFIER.tensor(stored[0].host["int8"][0]))
    assert stored_sets(CLASSIFIER, "fp16") == []


def test_pixels_are_held_to_the_values_before_rounding() -> None:
    (first, *_), case = stored_sets(GENERATOR, "fp32"), GENERATOR.manifest.golden[0]
    np.testing.assert_array_equal(first.expected["image"], GENERATOR.tensor(case.levels["image"]))
    np.testing.assert_array_equal(first.rounded["image"], GENERATOR.tensor(case.outputs[0]))
    assert first.expected["image"].dtype.kind == "f" and first.rounded["image"].dtype == np.uint8
    assert all(first.compared(first.rounded)) and stored_sets(GENERATOR, "int8")[0].rounded == {}


def test_an_engine_that_differs_is_found() -> None:
    first = stored_sets(CLASSIFIER, "fp32")[0]
    assert all(first.compared(first.expected))
    assert not all(first.compared({"logits": first.expected["logits"] + 1e-3}))
    assert not all(first.compared({"logits": first.expected["logits"][:, :2]}))


def test_a_larger_batch_is_cut() -> None:
    whole = [each for each in stored_sets(CLASSIFIER, "fp32") if each.inputs["pixels"].shape[1:3] == (16, 16)]
    images = sum(len(each.inputs["pixels"]) for each in whole)
    parts = sets_at(CLASSIFIER, "fp32", {"batch": 1, "height": 16, "width": 16})
    assert len(parts) == images > len(whole) and {len(each.inputs["pixels"]) for each in parts} == {1}
    np.testing.assert_array_equal(np.concatenate([each.expected["logits"] for each in parts]), np.concatenate([each.expected["logits"] for each in whole]))


def test_where_there_is_none_the_bundles_variant_answers() -> None:
    sizes = {"batch": 2, "height": 20, "width": 12}
    (made,) = sets_at(CLASSIFIER, "fp32", sizes)
    assert made.inputs["pixels"].shape == (2, 20, 12, 3) and made.against == "the bundle's own fp32, since it holds no case of this size"
    with load(FIXTURES / "classifier", precision="fp32") as model:
        np.testing.assert_array_equal(made.expected["logits"], model.raw(**made.inputs)["logits"])
    assert sizes_of(CLASSIFIER.manifest.contract, made.inputs) == sizes
