from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgeport_models import Card, CheckpointError, network
from edgeport_models.checkpoint import read_card, save, sha256
from edgeport_models.weights_file import read_weights


@pytest.fixture
def card() -> Card:
    entry = network("cnn")
    return Card(network="cnn", arguments={"num_classes": 2}, contract=entry.contract(("a", "b"), 32), data="digits", recipe={"epochs": 1})


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return network("cnn").make({"num_classes": 2})


def test_round_trip(tmp_path: Path, module: nn.Module, card: Card) -> None:
    path = tmp_path / "deep" / "cnn.safetensors"
    save(path, module, card)
    assert read_card(path) == card
    state = read_weights(path).tensors
    assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())
    assert len(sha256(path)) == 64
    assert [p.name for p in path.parent.iterdir()] == ["cnn.safetensors"]


@pytest.mark.parametrize("keep", [0, 3, 100, 3000])
def test_truncated_files(tmp_path: Path, module: nn.Module, card: Card, keep: int) -> None:
    save(tmp_path / "whole.safetensors", module, card)
    torch.save(module.state_dict(), tmp_path / "whole.pt")
    for name in ("whole.safetensors", "whole.pt"):
        cut = tmp_path / f"cut{Path(name).suffix}"
        cut.write_bytes((tmp_path / name).read_bytes()[:keep])
        with pytest.raises(CheckpointError, match=r"damaged or truncated|more than tensors|this file is empty"):
            read_weights(cut)
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        read_card(tmp_path / "cut.safetensors")


def test_files_without_a_card(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="do not say which network"):
        read_card(tmp_path / "plain.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "strange.safetensors", metadata={"edgeport": "{}"})
    with pytest.raises(CheckpointError, match="description cannot be read"):
        read_card(tmp_path / "strange.safetensors")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    with pytest.raises(CheckpointError, match=r"expected a \.safetensors file"):
        read_card(tmp_path / "numbers.pt")
    with pytest.raises(CheckpointError, match="this is a folder; name the file in it"):
        read_card(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path, module: nn.Module, card: Card) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(tmp_path / "file" / "cnn.safetensors", module, card)
