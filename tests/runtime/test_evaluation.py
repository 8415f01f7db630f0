from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeport_runtime import Example, InputError, evaluate, load
from edgeport_runtime.evaluation import measure


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
