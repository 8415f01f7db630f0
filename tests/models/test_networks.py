"""Each network: shapes at every size from its minimum up, the structure that is promised, and gradients where they are wanted."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgeport_models import CNN, AttentionNet, CheckpointError, DepthwiseSeparableConv2d, Generator, NetworkError, PatchDiscriminator, ResNet18, network
from edgeport_models import resnet as resnet_module

BUILT = {
    "cnn": lambda: CNN(num_classes=7),
    "cnn-separable": lambda: CNN(num_classes=7, separable=True),
    "resnet18": lambda: ResNet18(num_classes=7, weights="none"),
    "attention": lambda: AttentionNet(num_classes=7, channels=16),
}


@pytest.mark.parametrize("name", BUILT)
@pytest.mark.parametrize("extra", [(0, 0), (1, 0), (3, 20), (29, 2)])
def test_classifiers_take_any_size_from_their_minimum_up(name: str, extra: tuple[int, int]) -> None:
    module = BUILT[name]().eval()
    sides = [module.SMALLEST_PX + more for more in extra]
    with torch.inference_mode():
        assert module(torch.randn(2, 3, *sides)).shape == (2, 7)


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (32, 17)])
def test_the_generator_keeps_the_size_and_stays_in_range(size: tuple[int, int]) -> None:
    with torch.inference_mode():
        out = Generator()(torch.randn(2, 3, *size) * 9)
    assert out.shape == (2, 3, *size) and out.abs().max() <= 1


def test_below_its_minimum_the_cnn_fails() -> None:
    with pytest.raises(RuntimeError):
        CNN()(torch.randn(1, 3, CNN.SMALLEST_PX - 1, CNN.SMALLEST_PX - 1))


def test_the_generator_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 3, 16, 16) - 0.5
    with torch.inference_mode():
        out = Generator()(x)
    assert torch.corrcoef(torch.stack([out.flatten(), x.flatten()]))[0, 1] > 0.6


def test_the_structures_that_are_promised() -> None:
    convolutions = [m for m in Generator().modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size) for m in convolutions] == [(3, 64, (3, 3)), (64, 64, (3, 3)), (64, 64, (3, 3)), (64, 3, (3, 3))]
    cnn = CNN(num_classes=10)
    assert (cnn.hidden.in_features, cnn.hidden.out_features, cnn.head.out_features) == (64 * 6 * 6, 128, 10)
    assert sum(isinstance(m, DepthwiseSeparableConv2d) for m in CNN(separable=True).modules()) == 2
    with torch.inference_mode():
        assert AttentionNet().stem(torch.zeros(1, 3, 128, 128)).shape == (1, 128, 32, 32)  # 1,024 positions
        assert PatchDiscriminator()(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)).shape == (1, 1, 8, 8)
    assert ResNet18(weights="none").fc.in_features == 512


def test_a_frozen_backbone_does_not_learn() -> None:
    module = ResNet18(num_classes=3, weights="none", frozen=True).train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    module(torch.randn(4, 3, 32, 32)).sum().backward()
    torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 1.0).step()
    changed = {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"fc.weight", "fc.bias"}  # not even BatchNorm's running statistics


def test_resnet_from_a_local_file_takes_the_backbone_and_not_the_head(tmp_path: Path) -> None:
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


def test_the_registry_says_what_it_has() -> None:
    with pytest.raises(NetworkError, match="expected one of cnn, cnn-separable, resnet18, attention, generator, got 'vgg'"):
        network("vgg")
    with pytest.raises(NetworkError, match="cnn cannot be built from"):
        network("cnn").make({"num_classes": "many"})
    assert network("cnn-separable").make({"num_classes": 3, "weights": "ignored, not known"}).head.out_features == 3  # type: ignore[union-attr]
