from pathlib import Path

import pytest
import torch

from edgeport_models import CheckpointError
from edgeport_models.weights_file import _reason, read_weights


@pytest.mark.parametrize(
    ("error", "phrase"),
    [
        (KeyError(101), "KeyError 101"),
        (EOFError(), "EOFError"),
        (RuntimeError("no central directory. If you see this, then"), "no central directory"),
        (ValueError("header too large\nat 0"), "header too large"),
        (RuntimeError("Weights only load failed. Do it only if. WeightsUnpickler error: \n\nUnsupported operand 149"), "Unsupported operand 149"),
    ],
)
def test_a_librarys_error_becomes_one_phrase(error: Exception, phrase: str) -> None:
    assert _reason(error) == phrase


def test_names_are_dotted_and_places_are_kept(tmp_path: Path) -> None:
    torch.save({"model": {"a.b": torch.ones(2), "n": 3}, "c": torch.zeros(1)}, tmp_path / "w.pt")
    found = read_weights(tmp_path / "w.pt")
    assert {key: tuple(value.shape) for key, value in found.tensors.items()} == {"model.a.b": (2,), "c": (1,)}
    assert found.places == {"model.a.b": "model.", "c": ""}


@pytest.mark.parametrize(
    ("value", "words"),
    [({"epoch": 3}, "expected tensors by name, got a dict of epoch"), ([torch.ones(1)], "got list"), (torch.ones(1), "got Tensor"), ({}, "got dict")],
)
def test_files_without_named_tensors(tmp_path: Path, value: object, words: str) -> None:
    torch.save(value, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=words):
        read_weights(tmp_path / "w.pt")


def test_a_path_that_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_weights(tmp_path / "nothing.pt")
    with pytest.raises(CheckpointError, match="there is none in it"):
        read_weights(tmp_path)
