import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeport_runtime import BundleError, FormatError, ImageError, InputError, Prediction, load
from edgeport_runtime.engine import Engine
from edgeport_runtime.model import batches, softmax

DARK, BRIGHT = (np.full((16, 16, 3), level, np.uint8) for level in (30, 220))


@pytest.mark.parametrize("precision", ["fp32", "int8", "auto"])
def test_a_classifier_says_what_it_sees(classifier: Path, precision: str) -> None:
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


def test_softmax_does_not_overflow() -> None:
    np.testing.assert_allclose(softmax(np.array([[1000.0, 1000.0], [-1000.0, 0.0]], np.float32)), [[0.5, 0.5], [0.0, 1.0]])


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
    for wrong in ("photo.png", b"bytes", Path("photo.png")):
        with pytest.raises(InputError, match="batch takes several images"):
            model.batch(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="given twice"):
        model.raw(DARK[None], pixels=DARK[None])
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


def test_auto_says_why(classifier: Path) -> None:
    model = load(classifier)
    assert model.precision in ("int8", "fp32")
    assert "see the evidence" in model.reason
    with pytest.raises(InputError, match="precision must be one of"):
        load(classifier, precision="int4")


def test_batches_group_by_size_up_to_the_largest() -> None:
    shapes = [(2, 2), (3, 3), (2, 2), (2, 2), (3, 3)]
    assert batches(shapes, 2) == [[0, 2], [3], [1, 4]]


def test_a_graph_with_other_names_is_refused(classifier: Path, generator: Path) -> None:
    model = load(classifier)
    with pytest.raises(BundleError, match=r"promises \['pixels'\] -> \['logits'\], but the graph has \['pixels'\] -> \['image'\]"):
        Engine((generator / "model.onnx").read_bytes(), model.contract, model.engine.options)
