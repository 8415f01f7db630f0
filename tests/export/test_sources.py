import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgeport_export import ImageTask, image_contract, load_source
from edgeport_export.sources import data_folder, load_examples, own_examples
from edgeport_models import CheckpointError, DataError, NetworkError, load_data, network
from edgeport_runtime import Contract, InputError, Output, Pixels
from edgeport_runtime.average_precision import TrueBoxes
from edgeport_runtime.tasks import TaskName


def test_a_checkpoint_holds_everything_about_itself(checkpoint: Path) -> None:
    source = load_source(checkpoint, "cnn")
    assert (source.name, source.data, source.contract.labels) == ("cnn", "digits", tuple("0123456789"))
    assert not source.network.training
    with torch.inference_mode():
        assert source.network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_a_checkpoint_of_another_network_lists_every_key(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_source(checkpoint, "attention")
    for words in ("missing: stem.0.conv.depthwise.weight", "unexpected: ", "features.0.conv.weight", "head.bias", "trained for cnn"):
        assert words in str(caught.value)
    with pytest.raises(CheckpointError, match=r"of another shape|missing"):
        load_source(checkpoint, "cnn-separable")
    with pytest.raises(NetworkError, match="expected one of cnn"):
        load_source(checkpoint, "vgg")


def test_examples_of_a_data_set(checkpoint: Path) -> None:
    calibration, held_out = load_examples("digits", load_source(checkpoint).contract)
    assert (len(calibration), len(held_out)) == (160, 360)


def test_a_folder_of_images_without_labels_calibrates(checkpoint: Path, tmp_path: Path) -> None:
    contract = load_source(checkpoint).contract
    with pytest.raises(DataError, match="none in it"):
        own_examples(f"folder:{tmp_path}", None, contract)
    write(tmp_path / "a.png")
    for given in (f"folder:{tmp_path}", str(tmp_path)):
        calibration, held_out = own_examples(given, None, contract)
        assert [(example.source, example.truth) for example in calibration] == [(tmp_path / "a.png", None)] and held_out == []


def write(path: Path, side_px: int = 9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((side_px, side_px, 3), np.uint8)).save(path)


def test_class_folders_are_halved_and_each_image_has_one_part(checkpoint: Path, tmp_path: Path) -> None:
    logits = Output(name="logits", dtype="float32", shape=("batch", 2), kind="logits")
    contract = replace(load_source(checkpoint).contract, labels=("z", "a"), outputs=(logits,))
    for index in range(60):
        write(tmp_path / "az"[index % 2] / f"{index}.png")
    calibration, held_out = own_examples(str(tmp_path), None, contract)
    sources = [example.source for example in (*calibration, *held_out)]
    assert len(sources) == len(set(sources)) == 60 and 20 < len(held_out) < 40
    assert {(Path(str(each.source)).parent.name, each.truth) for each in held_out} == {("z", 0), ("a", 1)}  # the place in the labels, not in the alphabet
    write(tmp_path / "more" / "b.png")
    with pytest.raises(DataError, match="has the labels a, more, z"):
        own_examples(str(tmp_path), None, contract)


def test_what_is_held_out_is_not_calibrated_with(checkpoint: Path, tmp_path: Path) -> None:
    contract = load_source(checkpoint).contract
    write(tmp_path / "photos" / "deep" / "a.png")
    write(tmp_path / "judge" / "3" / "b.png")
    calibration, held_out = own_examples(str(tmp_path / "photos"), str(tmp_path / "judge"), contract)
    assert [(each.source, each.truth) for each in calibration] == [(tmp_path / "photos" / "deep" / "a.png", None)]
    assert [(each.source, each.truth) for each in held_out] == [(tmp_path / "judge" / "3" / "b.png", 3)]


@pytest.mark.parametrize("task", ["image-to-image", "segmentation"])
def test_photographs_get_no_noise_and_no_truth_unless_pairs_are_given(task: TaskName, tmp_path: Path) -> None:
    """An int8 variant at -9.4 dB from fp32 was taken because any network was judged as a denoiser."""
    contract = image_contract(nn.Conv2d(3, 3, 1), ImageTask(task=task, pixels=Pixels(height=32, width=32)))
    for index in range(20):
        write(tmp_path / "plain" / f"{index}.png", side_px=40)
        write(tmp_path / "pairs" / "input" / f"{index}.jpg")
        write(tmp_path / "pairs" / "target" / f"{index}.png")
    calibration, held_out = own_examples(f"folder:{tmp_path / 'plain'}", None, contract)
    assert [(each.source, each.truth) for each in calibration] == [(path, None) for path in sorted((tmp_path / "plain").iterdir())] and not held_out
    calibration, held_out = own_examples(str(tmp_path / "pairs"), None, contract)
    assert calibration and held_out and len(calibration) + len(held_out) == 20
    assert all(Path(str(each.truth)) == tmp_path / "pairs" / "target" / f"{Path(str(each.source)).stem}.png" for each in held_out)
    calibration, held_out = own_examples("photos", None, contract)
    assert not held_out and all(each.truth is None for each in calibration)
    assert np.array_equal(np.asarray(calibration[0].source), np.asarray(load_data("photos", truth="image").calibration[0].truth))


def test_a_task_without_a_metric_takes_no_truth_from_a_folder(tmp_path: Path) -> None:
    contract = image_contract(nn.Conv2d(3, 3, 1), ImageTask(task="tensors", pixels=Pixels(height=32, width=32)))
    write(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a folder holds no truths for the task 'tensors'; in Python, give export_bundle held_out="):
        own_examples(None, str(tmp_path), contract)


def test_a_folder_goes_before_a_data_set_of_the_same_name(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert data_folder("digits") is None and data_folder("nowhere") == Path("nowhere")
    write(tmp_path / "digits" / "a.png")
    assert data_folder("digits") == Path("digits")
    assert len(own_examples("digits", None, load_source(checkpoint).contract)[0]) == 1


def test_data_with_other_labels_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / name / "a.png")
    with pytest.raises(DataError, match="has the labels cat, dog, but the network was trained for 0, 1"):
        load_examples(f"folder:{tmp_path}", load_source(checkpoint).contract)
    bare = replace(load_source(checkpoint).contract, labels=())
    with pytest.raises(DataError, match="has the labels cat, dog, but the contract has none: name them with --labels"):
        load_examples(f"folder:{tmp_path}", bare)
    with pytest.raises(DataError, match="learns from labeled images"):
        load_examples("photos", load_source(checkpoint).contract)


def test_images_with_annotations_are_halved_or_judge(tmp_path: Path) -> None:
    contract = network("detector").contract(("cat", "dog"), 64)
    names = [f"{index}.png" for index in range(40)]
    for name in names:
        write(tmp_path / name)
    with pytest.raises(InputError, match="expected COCO's annotations beside the images"):
        own_examples(None, str(tmp_path), contract)
    assert own_examples(str(tmp_path), None, contract)[1] == []  # images alone calibrate
    found = {"images": [{"id": index, "file_name": name} for index, name in enumerate(names)], "categories": [{"id": 5, "name": "dog"}]}
    found["annotations"] = [{"image_id": index, "category_id": 5, "bbox": [1, 1, 4, 4]} for index in range(40)]
    (tmp_path / "annotations.json").write_text(json.dumps(found))
    calibration, held_out = own_examples(str(tmp_path), None, contract)
    assert len(calibration) + len(held_out) == 40 and 8 < len(held_out) < 32
    assert TrueBoxes.of(held_out[0].truth, "x").classes.tolist() == [1]
    assert len(own_examples(None, str(tmp_path), contract)[1]) == 40
    calibration, held_out = load_examples(f"folder:{tmp_path}", replace(contract, labels=("dog",), outputs=one_class(contract)))
    assert 0 < len(calibration) + len(held_out) < 20  # what training left out, a fifth


def one_class(contract: Contract) -> tuple[Output, ...]:
    return tuple(replace(each, shape=(*each.shape[:2], 1)) if each.kind == "scores" else each for each in contract.outputs)
