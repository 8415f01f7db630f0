from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgeport_models import Card, CheckpointError, network
from edgeport_models.checkpoint import _reason, load_state, read_card, read_weights, save, sha256


class Anything:
    """A class that weights_only refuses to load."""


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
    state = read_weights(path)
    assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())
    assert len(sha256(path)) == 64
    assert [p.name for p in path.parent.iterdir()] == ["cnn.safetensors"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"params_ema": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"model": {f"module._orig_mod.{key}": value for key, value in state.items()}},
    ],
)
def test_tensors_are_found_wherever_trainers_put_them(tmp_path: Path, module: nn.Module, wrap) -> None:  # type: ignore[no-untyped-def]
    expected = {key: torch.rand_like(value) for key, value in module.state_dict().items()}
    torch.save(wrap(expected), tmp_path / "w.pt")
    load_state(module, read_weights(tmp_path / "w.pt"), name="w.pt")
    assert all(torch.equal(value, expected[key]) for key, value in module.state_dict().items())


class Tied(nn.Module):
    """A part called `module`, and a weight with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.again = nn.Linear(3, 3), nn.Linear(3, 3)
        self.again.weight = self.module.weight


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model.", "net.model."])
def test_prefixes_go_where_they_do_not_fit_and_shared_weights_need_one_name(tmp_path: Path, prefix: str) -> None:
    made = Tied()
    expected = {"module.weight": torch.rand(3, 3), "module.bias": torch.rand(3), "again.bias": torch.rand(3)}
    save_file({prefix + key: value for key, value in expected.items()}, tmp_path / "w.safetensors")
    load_state(made, read_weights(tmp_path / "w.safetensors"), name="w")
    assert torch.equal(made.again.weight, expected["module.weight"]) and torch.equal(made.again.bias, expected["again.bias"])
    with pytest.raises(CheckpointError, match=r"2 missing: module\.weight, again\.weight"):
        load_state(Tied(), {"module.bias": torch.rand(3), "again.bias": torch.rand(3)}, name="w")


def test_what_was_found_instead_of_tensors_is_listed(tmp_path: Path) -> None:
    torch.save({"generator": {"a": torch.zeros(1)}, "step": 3}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"params_ema.*got a dict of generator, step"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("error", "phrase"),
    [
        (KeyError(101), "KeyError 101"),
        (EOFError(), "EOFError"),
        (RuntimeError("no central directory. If you see this, then"), "no central directory"),
        (ValueError("header too large\nat 0"), "header too large"),
    ],
)
def test_a_librarys_error_becomes_one_phrase(error: Exception, phrase: str) -> None:
    assert _reason(error) == phrase


@pytest.mark.parametrize("keep", [0, 3, 100, 3000])
def test_truncated_files(tmp_path: Path, module: nn.Module, card: Card, keep: int) -> None:
    save(tmp_path / "whole.safetensors", module, card)
    torch.save(module.state_dict(), tmp_path / "whole.pt")
    for name in ("whole.safetensors", "whole.pt"):
        cut = tmp_path / f"cut{Path(name).suffix}"
        cut.write_bytes((tmp_path / name).read_bytes()[:keep])
        with pytest.raises(CheckpointError, match=r"damaged or truncated|more than tensors"):
            read_weights(cut)
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        read_card(tmp_path / "cut.safetensors")


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_weights(tmp_path / "nothing.pt")
    with pytest.raises(CheckpointError, match="this is a folder; name the file in it"):
        read_weights(tmp_path)
    torch.save(Anything(), tmp_path / "object.pt")
    with pytest.raises(CheckpointError, match="save the module's state_dict"):
        read_weights(tmp_path / "object.pt")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    with pytest.raises(CheckpointError, match="expected tensors by name"):
        read_weights(tmp_path / "numbers.pt")
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="do not say which network"):
        read_card(tmp_path / "plain.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "strange.safetensors", metadata={"edgeport": "{}"})
    with pytest.raises(CheckpointError, match="description cannot be read"):
        read_card(tmp_path / "strange.safetensors")
    with pytest.raises(CheckpointError, match=r"expected a \.safetensors file"):
        read_card(tmp_path / "numbers.pt")


def test_every_key_that_differs_is_listed_at_once(module: nn.Module) -> None:
    state = module.state_dict()
    state["head.weight"] = torch.zeros(5, 128)
    state["extra.weight"] = state.pop("hidden.bias")
    with pytest.raises(CheckpointError) as caught:
        load_state(module, state, name="w.pt")
    text = str(caught.value)
    for words in ("w.pt", "CNN", "1 missing: hidden.bias", "1 unexpected: extra.weight", "1 of another shape: head.weight is (5, 128), expected (2, 128)"):
        assert words in text


def test_a_folder_that_cannot_be_written(tmp_path: Path, module: nn.Module, card: Card) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(tmp_path / "file" / "cnn.safetensors", module, card)
