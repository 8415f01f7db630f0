import pytest
import torch

from edgeport_models import NetworkError, network

NAMES = ("cnn", "cnn-separable", "resnet18", "attention", "generator")


def test_unknown_names_and_arguments_are_refused() -> None:
    with pytest.raises(NetworkError, match="expected one of cnn, cnn-separable, resnet18, attention, generator, got 'vgg'"):
        network("vgg")
    with pytest.raises(NetworkError, match="cnn cannot be built from"):
        network("cnn").make({"num_classes": "many"})
    assert network("cnn-separable").make({"num_classes": 3, "weights": "ignored, not known"}).head.out_features == 3  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
def test_a_network_gives_what_its_contract_promises(name: str) -> None:
    entry = network(name)
    contract = entry.contract(() if entry.generates else ("a", "b", "c"), entry.side_px)
    module = entry.make({"num_classes": 3, **entry.untrained}).eval()
    with torch.inference_mode():
        shape = module(torch.zeros(2, 3, entry.side_px, entry.side_px)).shape
    expected = (2, 3, entry.side_px, entry.side_px) if entry.generates else (2, 3)
    assert shape == expected and (contract.task == "image-to-image") == entry.generates
    assert contract.inputs[0].pixels is not None and entry.recipe.epochs >= 1


def test_only_arguments_that_a_network_takes_reach_it() -> None:
    assert "frozen" in network("resnet18").parameters and "frozen" not in network("cnn").parameters
