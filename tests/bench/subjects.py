"""The networks of the benchmark at their fixed widths and sizes, with random weights that matter, and what a plain export makes of them."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from zoo import MEAN, STD, calm, settled_modules

from edgeport_export.network.contracts import ImageTask, image_contract
from edgeport_export.network.size_sweep import random_image
from edgeport_models import network
from edgeport_runtime import Contract, Pixels, Range

OWN = {"resnet18": 224, "generator": 128, "attention": 64, "cnn": 64}
OTHERS = {"mobilenet_v2": 224, "efficientnet_b0": 224, "resnet50": 224, "convnext_tiny": 224, "swin_t": 224}
OF_TIMM = {"vit_tiny": "vit_tiny_patch16_224", "deit_tiny": "deit_tiny_patch16_224"}  # their heads, zero at first, are drawn


@dataclass(frozen=True, kw_only=True)
class Subject:
    name: str
    network: nn.Module
    contract: Contract

    @property
    def side(self) -> int:
        return self.contract.pixels.height


def own(name: str) -> Subject:
    """One of edgeport's networks: AttentionNet has 128 channels, the generator 64, as they come."""
    torch.manual_seed(0)
    entry = network(name)
    module = entry.make(entry.untrained)
    contract = entry.contract(() if not entry.has_classes else tuple("0123456789"), OWN[name])
    settled_modules(module, OWN[name], contract.pixels.mean, contract.pixels.std, (1.0,))
    return Subject(name=name, network=module.eval(), contract=contract)


def other(name: str) -> Subject:
    from torchvision.models import get_model

    return _classifier(name, lambda: get_model(name, weights=None), OTHERS[name], MEAN, STD)


def of_timm(name: str) -> Subject:
    from timm import create_model

    return _classifier(name, lambda: create_model(OF_TIMM[name]), 224, (0.5,) * 3, (0.5,) * 3)


def _classifier(name: str, make: Callable[[], nn.Module], side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Subject:
    torch.manual_seed(0)
    module = make()
    calm(module)
    settled_modules(module, side, mean, std, (1.0,))
    task = ImageTask(task="classification", pixels=Pixels(height=side, width=side, mean=mean, std=std), axes={"batch": Range(low=1, high=32)})
    return Subject(name=name, network=module.eval(), contract=image_contract(module, task))


SUBJECTS: dict[str, Callable[[], Subject]] = {
    **{name: partial(own, name) for name in OWN},
    **{name: partial(other, name) for name in OTHERS},
    **{name: partial(of_timm, name) for name in OF_TIMM},
}


def images(subject: Subject, count: int, seed: int) -> np.ndarray:
    """uint8 (count, H, W, C)."""
    return np.concatenate([random_image((1, subject.side, subject.side, 3), np.random.default_rng(seed + index)) for index in range(count)])


class Plain(nn.Module):
    """What somebody writes without edgeport: textbook normalization before the network, and for a generator the way back to pixels after it."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.network = subject.network
        self.generates = subject.contract.task == "image-to-image"
        pixels = subject.contract.pixels
        self.register_buffer("mean", torch.tensor(pixels.mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(pixels.std).reshape(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Any:
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        y = self.network((pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std)
        return ((y + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1) if self.generates else y
