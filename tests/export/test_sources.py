from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeport_export import load_source
from edgeport_export.sources import load_examples
from edgeport_models import CheckpointError, DataError, NetworkError


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
        load_examples(f"folder:{tmp_path}", contract)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    calibration, held_out = load_examples(f"folder:{tmp_path}", contract)
    assert [example.source for example in calibration] == [tmp_path / "a.png"] and held_out == []


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
