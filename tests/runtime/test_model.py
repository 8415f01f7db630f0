import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeport_runtime import Bundle, BundleError, FormatError, ImageError, InputError, Model, Prediction, SessionOptions, load, selection
from edgeport_runtime import model as model_module
from edgeport_runtime.bundle import MANIFEST
from edgeport_runtime.check import CheckReport
from edgeport_runtime.engine import Engine
from edgeport_runtime.manifest import TargetCpu, sealed

DARK, BRIGHT = (np.full((16, 16, 3), level, np.uint8) for level in (30, 220))


@pytest.mark.parametrize("precision", ["fp32", "int8", "auto"])
def test_a_classifier_names_the_class(classifier: Path, precision: str) -> None:
    model = load(classifier, precision=precision)
    dark, bright = model.batch([DARK, BRIGHT])
    assert isinstance(dark, Prediction) and isinstance(bright, Prediction)
    assert (dark.label, bright.label) == ("dark", "bright")
    assert dark.top[0].label == "dark" and len(dark.top) == 3
    assert sum(each.score for each in dark.top) == pytest.approx(1.0)
    assert list(dark.top) == sorted(dark.top, key=lambda each: -each.score)
    assert len(model(DARK, top=1).top) == 1  # type: ignore[union-attr]


def test_scores_are_the_softmax_of_the_raw_logits(classifier: Path) -> None:
    model = load(classifier, precision="fp32")
    logits = model.raw(DARK[None])["logits"][0].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum()
    answer = model(DARK)
    assert isinstance(answer, Prediction)
    assert answer.score == pytest.approx(expected.max(), rel=1e-12)


def test_a_generator_gives_an_image_of_the_same_size(generator: Path) -> None:
    answer = load(generator)(np.zeros((9, 21, 3), np.uint8))
    assert isinstance(answer, Image.Image)
    assert answer.size == (21, 9) and answer.mode == "RGB"


def test_batch_keeps_the_order_of_mixed_sizes(generator: Path) -> None:
    model = load(generator, precision="fp32")
    photos = [np.random.default_rng(index).integers(0, 256, (8 + index % 3, 12, 3), dtype=np.uint8) for index in range(20)]
    for photo, answer in zip(photos, model.batch(photos), strict=True):
        np.testing.assert_array_equal(np.asarray(answer), np.asarray(model(photo)))


def test_batch_of_nothing_is_nothing(classifier: Path) -> None:
    model = load(classifier)
    assert model.batch([]) == []
    for wrong in ("photo.png", b"bytes", Path("photo.png"), None, 3, DARK, DARK[:, :, 0], Image.fromarray(DARK)):
        with pytest.raises(InputError, match="batch takes several images"):
            model.batch(wrong)  # type: ignore[arg-type]
    assert len(model.batch(np.stack([DARK, DARK]))) == 2  # type: ignore[arg-type]
    for top in (0, 1.5, None, "3", True):
        with pytest.raises(InputError, match="top is the number of classes to list"):
            model(DARK, top=top)  # type: ignore[arg-type]
    for size_px in (64, "32x32", (32,), (32, 32, 3), (32.0, 32)):
        with pytest.raises(InputError, match=r"size_px must be two whole numbers, \(height, width\)"):
            model(DARK, size_px=size_px)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected arrays, got what numpy makes none of"):
        model.raw([[1], [2, 3]])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected the inputs"):
        model.raw({1: DARK[None], "pixels": DARK[None]})  # type: ignore[dict-item]
    for path in (None, 3, b"bundle"):
        with pytest.raises(InputError, match="path must name a bundle"):
            load(path)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="given twice"):
        model.raw(DARK[None], pixels=DARK[None])
    with pytest.raises(InputError, match="given twice"):
        model.raw({"pixels": DARK[None]}, pixels=DARK[None])
    np.testing.assert_array_equal(model.raw({"pixels": DARK[None]})["logits"], model.raw(DARK[None])["logits"])
    with pytest.raises(ImageError, match="300000 px is too large"):
        model(DARK, size_px=(300_000, 300_000))


def test_size_can_be_chosen_within_the_range(classifier: Path) -> None:
    model = load(classifier)
    assert isinstance(model(DARK, size_px=(24, 40)), Prediction)
    with pytest.raises(ImageError, match="65 px is too large for the height of this model"):
        model(DARK, size_px=(65, 16))


def test_an_image_too_small_for_the_network(generator: Path) -> None:
    with pytest.raises(ImageError, match=r"an array of shape \(3, 9, 3\): 3 px is too small for the height of this model \(4\.\.64 px\)"):
        load(generator)(np.zeros((3, 9, 3), np.uint8))


@pytest.mark.parametrize("array", [np.zeros((16, 16, 3), np.uint8), np.zeros((1, 16, 16, 3), np.float32), [[1]]])
def test_raw_refuses_other_arrays(classifier: Path, array: object) -> None:
    with pytest.raises(InputError, match="input 'pixels': expected uint8"):
        load(classifier).raw(array)  # type: ignore[arg-type]


def test_raw_takes_views_and_leaves_them_alone(classifier: Path) -> None:
    model = load(classifier, precision="fp32")
    whole = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    before = whole.copy()
    view = whole[:, ::2, ::2]
    np.testing.assert_array_equal(model.raw(view)["logits"], model.raw(np.ascontiguousarray(view))["logits"])
    np.testing.assert_array_equal(whole, before)


def test_one_model_from_many_threads(classifier: Path) -> None:
    model = load(classifier, precision="fp32", threads=1)
    images = [np.random.default_rng(index).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8) for index in range(16)]
    expected = [model.raw(image)["logits"] for image in images]
    got: list[np.ndarray] = [np.empty(0)] * len(images)

    def run(index: int) -> None:
        got[index] = model.raw(images[index])["logits"]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(np.stack(got), np.stack(expected))


def test_a_bundle_that_was_loaded_for_batches_runs_them_all_alike(altered: Path) -> None:
    manifest = json.loads((altered / MANIFEST).read_text())
    manifest["auto"] = {"precision": "fp32", "reason": "slower alone", "in_batches": "int8", "from_batch": "8"}
    (altered / MANIFEST).write_text(json.dumps(sealed(manifest)))
    alone, together = load(altered), load(altered, batch=8)
    assert (alone.precision, together.precision, load(altered, precision="fp32", batch=8).precision) == ("fp32", "int8", "fp32")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(together.raw(pixels)["logits"], load(altered, precision="int8").raw(pixels)["logits"])
    for path in (altered, altered / "model.int8.onnx"):
        assert load(path, batch=np.int64(8)).precision in ("int8", "as stored")  # type: ignore[arg-type]
        for wrong in (0, -1, 9, "8", None, 2.0, float("nan"), True):
            with pytest.raises(InputError, match=f"whole number within 1..8, got {wrong!r}"):
                load(path, batch=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "threads", "expected"),
    [
        ({"batch": 8}, 2, True),
        ({"batch": 8, "precision": "int8"}, 2, True),
        ({"batch": 8}, 4, True),
        ({"batch": 6}, 2, True),
        ({"batch": np.int64(8)}, 2, True),
        ({"batch": 4}, 2, False),
        ({"batch": 4, "precision": "int8"}, 2, False),  # measured from 6 images on
        ({"batch": 7}, 2, False),  # does not divide
        ({"batch": 8}, 3, False),
        ({"batch": 8}, 1, False),
        ({"batch": 8, "precision": "fp32"}, 2, False),  # measured with the other one
        ({"batch": 8, "split_batch": False}, 2, False),
        ({"split_batch": True}, 2, True),
        ({}, 2, False),
    ],
)
def test_batches_are_split_among_the_threads_as_was_measured(altered: Path, given: dict[str, Any], threads: int, expected: bool) -> None:
    manifest = json.loads((altered / MANIFEST).read_text())
    manifest["auto"] = {"precision": "fp32", "reason": "slower alone", "in_batches": "int8", "from_batch": "6", "data_parallel_from": "6"}
    (altered / MANIFEST).write_text(json.dumps(sealed(manifest)))
    model = load(altered, threads=threads, **given)
    assert model.engine.options.split_batch == expected
    report = model.check()
    assert report and len(report.comparisons) == (6 if expected else 4)  # golden cases go through both sessions, and their images one by one


def test_values_that_split_batch_cannot_have_are_refused(altered: Path) -> None:
    for wrong in ("yes", 1, np.array([True, False])):
        with pytest.raises(InputError, match="True, False, or None for what was measured, got "):
            load(altered, split_batch=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="split_batch must be True or False, got 'no'"):
        SessionOptions(split_batch="no")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="threads of a CPU, so there is none on cuda"):
        load(altered, device="cuda", split_batch=True)


def test_fp16_that_fails_its_golden_cases_on_the_card_is_not_taken(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "choose", lambda *_: ("fp16", "the fast one"))
    asked: list[str] = []
    closed: list[str] = []

    def loaded(bundle: Bundle, chosen: str, reason: str, options: SessionOptions) -> Model:
        asked.append(chosen)
        made = real(bundle, "fp32", reason, options)
        if chosen == "fp16":
            monkeypatch.setattr(made, "check", lambda: CheckReport(precision="fp16", against="the host", comparisons=()))
            monkeypatch.setattr(made.engine, "close", lambda: closed.append(chosen))
        return made

    real = model_module._load_variant
    monkeypatch.setattr(model_module, "_load_variant", loaded)
    found = load(classifier)
    assert asked == ["fp16", "fp32"] and closed == ["fp16"]  # its memory is free before fp32 is loaded
    assert "fp16 does not pass its golden cases on this card" in found.reason


def test_seven_bit_weights_need_no_probe(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "int8_products_are_exact", lambda: False)
    bundle = Bundle(classifier)
    assert real_load(bundle).engine.options.exact_int8
    x86 = TargetCpu(name="x86", machines=("x86_64",), narrow_weights=True)
    narrow = tuple(replace(each, target=x86) if each.precision == "int8" else each for each in bundle.manifest.variants)
    bundle.manifest = replace(bundle.manifest, variants=narrow)
    assert not real_load(bundle).engine.options.exact_int8


def real_load(bundle: Bundle) -> Model:
    return model_module._load_variant(bundle, "int8", "asked for", SessionOptions())


def test_a_lone_file_loads_without_its_bundle(classifier: Path, tmp_path: Path) -> None:
    path = tmp_path / "lone.onnx"
    path.write_bytes((classifier / "model.onnx").read_bytes())
    model = load(path)
    np.testing.assert_array_equal(model.raw(DARK[None])["logits"], load(classifier, precision="fp32").raw(DARK[None])["logits"])
    with pytest.raises(BundleError, match=r"a lone \.onnx file carries no golden cases"):
        model.check()
    for precision in ("int8", "fp32"):
        with pytest.raises(InputError, match="leave precision at 'auto'"):
            load(path, precision=precision)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(FormatError, match=r"lone\.onnx: .*damaged"):
        load(path)
    with pytest.raises(BundleError, match="cannot be read"):
        load(tmp_path / "nothing.onnx")


def test_auto_gives_its_reason(classifier: Path) -> None:
    model = load(classifier)
    assert model.precision in ("int8", "fp32")
    assert model.reason.startswith("int8 is ") and "times as fast as fp32 at batch 8" in model.reason
    with pytest.raises(InputError, match="precision must be one of"):
        load(classifier, precision="int4")


def test_a_graph_with_other_names_is_refused(classifier: Path, generator: Path) -> None:
    model = load(classifier)
    with pytest.raises(BundleError, match=r"promises \['pixels'\] -> \['logits'\], but the graph has \['pixels'\] -> \['image'\]"):
        Engine((generator / "model.onnx").read_bytes(), model.contract, model.engine.options)


def test_fp16_that_passes_its_golden_cases_says_so_afterwards(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "choose", lambda *_: ("fp16", "fp16 is the fast precision on CUDA"))
    real = model_module._load_variant
    monkeypatch.setattr(model_module, "_load_variant", lambda bundle, chosen, reason, options: real(bundle, "fp32", reason, options))
    assert load(classifier).reason == "fp16 is the fast precision on CUDA, and its golden cases passed on this card"


@pytest.mark.parametrize(("exact", "precision", "slower"), [(True, "int8", False), (False, "int8", True), (False, "fp32", False)])
def test_int8_takes_exact_products_if_the_cpu_saturates(classifier: Path, exact: bool, precision: str, slower: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "int8_products_are_exact", lambda: exact)
    loaded = load(classifier, precision=precision)
    assert loaded.engine.options.exact_int8 is slower and ("saturate" in loaded.reason) is slower
    assert loaded.check() and loaded.bundle is not None
    alone = load(classifier / loaded.bundle.variant(precision).file)
    assert alone.engine.options.exact_int8 is slower and ("saturate" in alone.reason) is slower


def test_a_broken_image_can_be_an_error_in_its_place(classifier: Path) -> None:
    model = load(classifier)
    answers = model.batch([DARK, b"torn", BRIGHT], errors="return")
    assert [getattr(answer, "label", None) for answer in answers] == ["dark", None, "bright"]
    assert isinstance(answers[1], ImageError) and "an image of 4 bytes" in str(answers[1])
    with pytest.raises(ImageError, match="an image of 4 bytes"):
        model.batch([DARK, b"torn", BRIGHT])
    with pytest.raises(InputError, match="errors 'raise' or 'return', got 'rgb' and 'skip'"):
        model.batch([DARK], errors="skip")  # type: ignore[call-overload]


def test_channels_can_be_blue_green_red(generator: Path) -> None:
    model = load(generator, precision="fp32")
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(model(image[:, :, ::-1], channels="bgr")), np.asarray(model(image)))
    with pytest.raises(InputError, match="channels is 'rgb' or 'bgr'"):
        model(image, channels="hsv")
    answers = model.batch([image, "nowhere.png", Tensor(image)], channels="bgr", errors="return")
    assert isinstance(answers[1], ImageError) and "channels='bgr' is for arrays (H, W, 3) or (H, W, 4), got nowhere.png" in str(answers[1])
    np.testing.assert_array_equal(np.asarray(answers[2]), np.asarray(answers[0]))


class Tensor:
    """As torch's: a shape, and what numpy makes an array of; iterating gives its rows."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape = array, array.shape

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return self.array

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.array)


def test_one_tensor_is_one_image(classifier: Path) -> None:
    model = load(classifier)
    image = np.full((16, 16, 3), 225, np.uint8)
    assert model(Tensor(image)).label == "bright"
    with pytest.raises(InputError, match=r"batch takes several images, as a list, got an array of shape \(16, 16, 3\)"):
        model.batch(Tensor(image))
    assert len(model.batch(Tensor(np.stack([image] * 3)))) == 3


@pytest.mark.parametrize("bound", [0, -1.0, float("nan"), float("inf"), "many", None])
def test_a_bound_of_memory_is_a_number(bound: object, classifier: Path) -> None:
    with pytest.raises(InputError, match="max_memory_mb is a number of MB above 0"):
        load(classifier, max_memory_mb=bound)  # type: ignore[arg-type]


def test_a_model_and_a_bundle_say_what_they_are(classifier: Path) -> None:
    model = load(classifier, precision="fp32")
    assert repr(model) == "<Model 'tiny-classifier': classification, fp32 on cpu, because asked for>"
    assert repr(Bundle(classifier)).startswith(f"<Bundle {str(classifier)!r}: classification, fp32, int8; auto is fp32, because int8 is not ")
