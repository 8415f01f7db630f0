from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgeport_models import CheckpointError, NetworkError, ResNet18
from edgeport_models import resnet as resnet_module


@pytest.mark.parametrize("extra", [(0, 0), (1, 0), (3, 20), (29, 2)])
def test_it_takes_any_size_from_its_minimum_up(extra: tuple[int, int]) -> None:
    sides = [ResNet18.SMALLEST_PX + more for more in extra]
    with torch.inference_mode():
        assert ResNet18(num_classes=7, weights="none").eval()(torch.randn(2, 3, *sides)).shape == (2, 7)


def test_the_structure_that_is_promised() -> None:
    assert ResNet18(weights="none").fc.in_features == 512


def test_a_frozen_backbone_does_not_learn() -> None:
    module = ResNet18(num_classes=3, weights="none", frozen=True).train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    module(torch.randn(4, 3, 32, 32)).sum().backward()
    torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 1.0).step()
    changed = {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"fc.weight", "fc.bias"}  # not even BatchNorm's running statistics


def test_a_local_file_gives_the_backbone_and_not_the_head(tmp_path: Path) -> None:
    donor = ResNet18(num_classes=5, weights="none")
    save_file(donor.state_dict(), tmp_path / "donor.safetensors")
    torch.save({"state_dict": donor.state_dict()}, tmp_path / "donor.pt")
    for name in ("donor.safetensors", "donor.pt"):
        module = ResNet18(num_classes=2, weights=str(tmp_path / name))
        torch.testing.assert_close(module.layer3[0].conv1.weight, donor.layer3[0].conv1.weight)
        assert module.fc.out_features == 2
    save_file({"conv1.weight": donor.conv1.weight}, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        ResNet18(weights=str(tmp_path / "part.safetensors"))


def test_imagenet_weights_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(resnet_module.ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(NetworkError, match=r"could not be downloaded .*--weights FILE.*--weights none"):
        ResNet18()
