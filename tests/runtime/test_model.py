import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeport_runtime import Bundle, DeviceError, ImageError, InputError, Prediction, load

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


def test_outputs_that_were_run_elsewhere_are_interpreted(classifier: Path) -> None:
    model = load(classifier)
    outputs = model.raw(np.stack([DARK, BRIGHT]))
    assert model.interpret(outputs, [(16, 16)] * 2, (16, 16)) == model.batch([DARK, BRIGHT])
    for sources_px, network_px in (([(16, 16)], (16, 16)), ([(16, 16), (0, 0)], (16, 16)), ([(16, 16)] * 2, (0, 16))):
        with pytest.raises(InputError, match=r"expected a \(height, width\) of each of the 2 images"):
            model.interpret(outputs, sources_px, network_px)


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


def test_a_model_and_a_bundle_say_what_they_are(classifier: Path) -> None:
    model = load(classifier, precision="fp32")
    assert repr(model) == "<Model 'tiny-classifier': classification, fp32 on cpu, because asked for>"
    assert repr(Bundle(classifier)).startswith(f"<Bundle {str(classifier)!r}: classification, fp32, int8; auto is fp32, because int8 is not ")


def test_a_model_is_a_context_and_says_so_when_it_was_closed(classifier: Path) -> None:
    with load(classifier) as model:
        assert model(DARK)
    with pytest.raises(DeviceError, match="this engine was closed: load the model again"):
        model(DARK)
    with pytest.raises(DeviceError, match="this engine was closed"):
        model.check()  # and not that its numbers differ
    model.close()  # once more does no harm


def test_warming_up_runs_each_size_once(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, shapes = load(classifier), []
    monkeypatch.setattr(model.engine, "run", lambda inputs: shapes.append(inputs["pixels"].shape))
    model.warmup()
    model.warmup(batches=(1, 4), sizes_px=[(16, 24), (8, 8)])
    default = model.contract.pixels
    assert shapes == [(1, default.height, default.width, 3), (1, 16, 24, 3), (1, 8, 8, 3), (4, 16, 24, 3), (4, 8, 8, 3)]
    for wrong in ({"batches": 5}, {"sizes_px": [64]}, {"sizes_px": 64}):
        with pytest.raises(InputError, match=r"warmup takes|size_px must be two"):
            model.warmup(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot run at batch 1 and 999x8"):
        model.warmup(sizes_px=[(999, 8)])
    assert model.counters()["calls"] == 0  # a warm-up is no call


def test_calls_images_and_errors_are_counted(classifier: Path) -> None:
    model = load(classifier)
    model.raw(np.stack([DARK] * 3))
    model(BRIGHT)
    with pytest.raises(InputError):
        model.raw(DARK)
    found = model.counters()
    assert (found["calls"], found["images"], found["errors"], found["latency_ms"]["count"]) == (2, 4, 1, 2)


def test_the_raw_call_on_the_device_gives_the_same_numbers(classifier: Path) -> None:
    model = load(classifier)
    np.testing.assert_array_equal(model.raw_on_device(DARK[None])["logits"].numpy(), model.raw(DARK[None])["logits"])
    np.testing.assert_array_equal(model.raw_on_device(pixels=DARK[None])["logits"].numpy(), model.raw(DARK[None])["logits"])
    assert (model.counters()["calls"], model.counters()["images"]) == (4, 4)
    with pytest.raises(InputError, match=r"expected onnxruntime.OrtValue or arrays, got str"):
        model.raw_on_device("pixels")
