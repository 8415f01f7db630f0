from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeport_runtime import Contract, DetectionHead, Example, ImageError, InputError, Output, Pixels, evaluate, load
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import pixel_input
from edgeport_runtime.engine import Arrays
from edgeport_runtime.evaluation import folder_examples, measure, read_examples
from edgeport_runtime.images import Pixel, prepare_mask


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_accuracy_counts_right_answers(classifier: Path, tmp_path: Path) -> None:
    for index, (folder, level) in enumerate([("dark", 30), ("dark", 40), ("bright", 220), ("bright", 20)]):  # the last one is misfiled
        write(tmp_path / folder / f"{index}.png", np.full((20, 20, 3), level, np.uint8))
    quality = evaluate(load(classifier), f"folder:{tmp_path}")
    assert (quality.metric, quality.value, quality.count) == ("accuracy", 0.75, 4)
    assert quality.answers == (2, 0, 0, 0)  # `bright` comes first by name
    assert str(quality) == "75.00% accuracy"
    assert all(0 < margin <= 1 for margin in quality.margins)


def test_psnr_of_a_run_that_is_known(generator: Path) -> None:
    contract = load(generator).contract
    photos = [np.full((8, 8 + index, 3), 100, np.uint8) for index in range(3)]
    examples = [Example(source=photo, truth=photo) for photo in photos]
    quality = measure(contract, lambda pixels: {"image": pixels + 5}, examples)
    assert quality.value == pytest.approx(20 * np.log10(255 / 5))
    assert str(quality) == "34.15 dB PSNR"


def test_pairs_are_found_by_name(generator: Path, tmp_path: Path) -> None:
    write(tmp_path / "input" / "a.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="target: expected a folder of images"):
        evaluate(load(generator), tmp_path)
    write(tmp_path / "target" / "b.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match=r"no target image for a\.png"):
        evaluate(load(generator), tmp_path)
    write(tmp_path / "target" / "a.png", np.zeros((8, 9, 3), np.uint8))
    with pytest.raises(InputError, match=r"the output is \(8, 8, 3\), but its target image is \(8, 9, 3\)"):
        evaluate(load(generator), tmp_path)


@pytest.mark.parametrize(("layout", "message"), [([], "got no folders"), (["cats"], "cats which is no label"), (["dark"], "there are none in it")])
def test_a_folder_of_another_layout(classifier: Path, tmp_path: Path, layout: list[str], message: str) -> None:
    for name in layout:
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=message):
        evaluate(load(classifier), tmp_path)
    with pytest.raises(InputError, match="expected one folder of images per label"):
        evaluate(load(classifier), tmp_path / "nowhere")


def test_nothing_to_evaluate(classifier: Path) -> None:
    model = load(classifier)
    with pytest.raises(InputError, match="nothing to evaluate"):
        measure(model.contract, model.raw, [])


def contract_of(shape: tuple[int | str, ...], task: str, **pixels: object) -> Contract:
    given = Pixels(height=4, width=6, **pixels)  # type: ignore[arg-type]
    kind = "pixels" if task == "image-to-image" else "tensor"
    output = Output(name="y", dtype="uint8" if kind == "pixels" else "float32", shape=shape, kind=kind)  # type: ignore[arg-type]
    single = replace(pixel_input(given), shape=(1, 4, 6, given.channels))
    return Contract(task=task, inputs=(single,), outputs=(output,), axes={}, labels=())  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_target_follows_the_size_and_the_channels_of_the_output(mode: str, channels: int, times: int) -> None:
    """x2 networks and gray-to-color networks could not be judged: the target was fitted to the input."""
    count = 3 if mode == "RGB" else 1
    contract = contract_of((1, 4 * times, 6 * times, channels), "image-to-image", mode=mode, mean=(0.5,) * count, std=(0.5,) * count)
    target = np.random.default_rng(0).integers(0, 256, (8 * times, 12 * times, 3), dtype=np.uint8)
    fitted = np.asarray(Image.fromarray(target).convert("RGB" if channels == 3 else "L").resize((6 * times, 4 * times), Image.Resampling.BILINEAR))
    answer = fitted.reshape(1, 4 * times, 6 * times, channels).astype(np.int64)
    off = np.where(answer > 127, answer - 2, answer + 2).astype(np.uint8)
    quality = measure(contract, lambda pixels: {"y": off}, [Example(source=np.zeros((4, 6, 3), np.uint8), truth=target)])
    assert quality.value == pytest.approx(20 * np.log10(255 / 2))


@pytest.mark.parametrize(("task", "shape"), [("image-to-image", (1, 4, 6, 3)), ("segmentation", (1, 3, 4, 6))])
@pytest.mark.parametrize(
    ("image", "target", "fits"),
    [
        ((4, 6), (4, 6), True),
        ((400, 600), (800, 1201), True),  # rounding
        ((400, 400), (80, 120), True),  # as the output is
        ((400, 400), (800, 800), True),  # as the image is
        ((400, 600), (600, 400), False),
        ((400, 600), (400, 400), False),
    ],
)
def test_a_target_of_another_view_is_refused(task: str, shape: tuple[int, ...], image: tuple[int, int], target: tuple[int, int], fits: bool) -> None:
    contract = contract_of(shape, task)
    zeros = np.zeros(shape, np.uint8 if task == "image-to-image" else np.float32)
    truth = np.zeros((*target, 3) if task == "image-to-image" else target, np.uint8)
    example = Example(source=np.zeros((*image, 3), np.uint8), truth=truth)
    if fits:
        measure(contract, lambda pixels: {"y": zeros}, [example])
    else:
        with pytest.raises(InputError, match=rf"target is {target[0]}x{target[1]} .HxW., but the image is {image[0]}x{image[1]}: these are not the same view"):
            measure(contract, lambda pixels: {"y": zeros}, [example])


def test_masks_are_read_as_indices_and_fitted_without_mixing(tmp_path: Path) -> None:
    contract = contract_of((1, 3, 4, 6), "segmentation")
    classes = np.array([[0, 0, 1, 1, 2, 2]] * 4, dtype=np.uint8)
    big = np.repeat(np.repeat(classes, 3, axis=0), 3, axis=1)
    palette = Image.fromarray(big)
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0] + [0] * 759)
    assert palette.mode == "P"
    write(tmp_path / "input" / "a.jpg", np.zeros((4, 6, 3), np.uint8))
    (tmp_path / "target").mkdir()
    palette.save(tmp_path / "target" / "a.png")
    answer = np.moveaxis(np.eye(3, dtype=np.float32)[classes], -1, 0)[None]
    for truth in (tmp_path / "target" / "a.png", palette, big, big.astype(np.int64)):
        quality = measure(contract, lambda pixels: {"y": answer}, [Example(source=tmp_path / "input" / "a.jpg", truth=truth)])
        assert (quality.metric, quality.value) == ("mean_iou", 1.0)
    assert [each.truth for each in folder_examples(contract, tmp_path)] == [tmp_path / "target" / "a.png"]
    with pytest.raises(ImageError, match="expected a mask, a gray or palette image whose values are classes, got an image of mode RGB"):
        measure(contract, lambda pixels: {"y": answer}, [Example(source=tmp_path / "input" / "a.jpg", truth=tmp_path / "input" / "a.jpg")])


def test_where_letterbox_pads_a_mask_counts_for_nothing() -> None:
    pixels = Pixels(height=4, width=6, resize="letterbox")
    assert prepare_mask(np.ones((4, 4), np.uint8), pixels, (4, 6)).tolist() == [[255, 1, 1, 1, 1, 255]] * 4


class Dataset:
    """As torch's: a length and items, and nothing that iterates."""

    __iter__ = None

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (4, 4)), index


def test_a_loader_of_batches_is_named() -> None:
    class Loader(Dataset):
        dataset, batch_size = (), 8

    with pytest.raises(InputError, match=r"a DataLoader gives batches; give its dataset \(loader\.dataset\)"):
        read_examples(Loader())  # type: ignore[arg-type]


def test_datasets_are_read_by_index() -> None:
    assert [(each.source.size, each.truth) for each in read_examples(Dataset())] == [((4, 4), 0), ((4, 4), 1)]  # type: ignore[union-attr, arg-type]
    with pytest.raises(InputError, match=r"got float; .* a dataset without ToTensor and Normalize"):
        read_examples([(1.0, 3)])  # type: ignore[list-item]


def test_boxes_are_judged_in_pixels_of_the_source() -> None:
    """The network sees 64x64; the source of 128x256 fills the middle half of that, a quarter of its size. What it finds is exactly what is there."""
    outputs = (
        Output(name="boxes", dtype="float32", shape=("batch", 2, 4), kind="boxes"),
        Output(name="scores", dtype="float32", shape=("batch", 2, 2), kind="scores"),
    )
    contract = Contract(
        task="detection",
        inputs=(pixel_input(Pixels(height=64, width=64, resize="letterbox")),),
        outputs=outputs,
        axes=image_axes(smallest_px=64, largest_px=64),
        labels=("cat", "dog"),
        detection=DetectionHead(activation="none"),
    )
    truth = ([[40, 20, 80, 60], [100, 0, 256, 128]], [0, 1])

    def run(pixels: Pixel) -> Arrays:
        boxes = np.array([[[10, 21, 20, 31], [25, 16, 64, 48]]] * len(pixels), np.float32)
        return {"boxes": boxes, "scores": np.array([[[0.9, 0.1], [0.0, 0.8]]] * len(pixels), np.float32)}

    quality = measure(contract, run, [Example(source=np.zeros((128, 256, 3), np.uint8), truth=truth)] * 2)
    assert (quality.metric, quality.value, quality.at_50, quality.count) == ("mean_ap", pytest.approx(1.0), pytest.approx(1.0), 2)
    moved = ([[40, 40, 80, 80], [100, 0, 256, 128]], [0, 1])  # a box without overlap of a half, and one that is right
    assert measure(contract, run, [Example(source=np.zeros((128, 256, 3), np.uint8), truth=moved)]).at_50 == pytest.approx(0.5)
