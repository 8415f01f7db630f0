import pytest
import torch

from edgeport_models import NetworkError, network
from edgeport_runtime.tasks import find_task

NAMES = ("cnn", "cnn-separable", "resnet18", "attention", "generator", "detector", "segmenter")


def test_unknown_names_and_arguments_are_refused() -> None:
    with pytest.raises(NetworkError, match="expected one of cnn, cnn-separable, resnet18, attention, generator, detector, segmenter, got 'vgg'"):
        network("vgg")
    with pytest.raises(NetworkError, match="cnn cannot be built from"):
        network("cnn").make({"num_classes": "many"})
    assert network("cnn-separable").make({"num_classes": 3, "weights": "ignored, not known"}).head.out_features == 3  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
def test_a_network_gives_what_its_contract_promises(name: str) -> None:
    entry = network(name)
    contract = entry.contract(() if not entry.has_classes else ("a", "b", "c"), entry.side_px)
    module = entry.make({"num_classes": 3, **entry.untrained}).eval()
    side = entry.side_px
    with torch.inference_mode():
        found = module(torch.zeros(2, 3, side, side))
    shapes = {"classification": [(2, 3)], "image-to-image": [(2, 3, side, side)], "segmentation": [(2, 3, side, side)]}
    shapes["detection"] = [(2, side**2 // 16, 4), (2, side**2 // 16, 3), (2, side**2 // 16, 2)]
    assert [tuple(each.shape) for each in (found.values() if isinstance(found, dict) else [found])] == shapes[contract.task]
    assert find_task(contract.task).truth == entry.truth and entry.has_classes == (contract.task != "image-to-image")
    assert contract.inputs[0].pixels is not None and entry.recipe.epochs >= 1


def test_only_arguments_that_a_network_takes_reach_it() -> None:
    assert "frozen" in network("resnet18").parameters and "frozen" not in network("cnn").parameters
